//! kubeadm's configuration on a node.

use std::fs;

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{PATIENCE, SILENCE};
use tempfile::TempDir;

use crate::manifests::node_port;
use crate::scene::{READY, Scene, is_refused, sluice, until, well};

/// `config.conf` of kubeadm 1.36.
const KUBEADM: &str = include_str!("../../src/config/tests/kubeadm.yaml");

#[test]
fn kubeadms_file_serves_a_node_and_where_node_ports_are_is_followed() {
    let scene = Scene::new();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.conf");
    let text = KUBEADM.replace("clusterCIDR: 10.244.0.0/16", "clusterCIDR: 10.244.0.0/16,fd00:244::/32");
    let text = format!("{text}sluice:\n  manifests: [{}]\n", scene.manifests().display());
    let put = |text: &str| {
        let new = directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &file).unwrap();
    };
    put(&text);
    let agent =
        sluice(["agent", "--config", file.to_str().unwrap(), "--hostname-override=node", "--admin-socket=0"]);
    let agent = well(scene.lab.node().spawn(&agent));
    well(agent.wait_for(READY, PATIENCE));
    scene.assert_served(1);
    // As kube-proxy has them.
    for port in [10_249, 10_256] {
        assert!(scene.lab.node().tcp_stream(([127, 0, 0, 1], port).into(), PATIENCE).is_ok(), "{port}");
    }
    let from_outside = (scene.lab.node().v4, 10_256).into();
    assert!(scene.lab.outside().tcp_stream(from_outside, PATIENCE).is_ok());

    let to = node_port(1, Family::V4);
    let ask = || scene.lab.outside().ask(Protocol::Tcp, to, SILENCE);
    put(&text.replace("nodePortAddresses: null", "nodePortAddresses: [192.0.2.77/32]"));
    until("there is no such address", || is_refused(&ask()));
    put(&text);
    until("the node's own address is served again", || ask().by().is_some());
    scene.assert_served(1);
}
