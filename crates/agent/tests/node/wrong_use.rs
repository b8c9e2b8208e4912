//! Where the program cannot work it ends, and says why and what helps.

use std::fs;
use std::process::Command;

use sluice_testbed::lab::PATIENCE;
use tempfile::TempDir;

use crate::scene::{AGENT, Scene, sluice, well};
use crate::settings;

/// The program fails on the node, and says all of this in one line.
#[track_caller]
fn assert_ends_and_says(scene: &Scene, runner: &[&str], said: &[&str]) {
    let mut command = Command::new(runner[0]);
    command.args(&runner[1..]).arg(env!("CARGO_BIN_EXE_sluice"));
    command.args(AGENT).arg("--manifests").arg(scene.manifests()).env_remove("RUST_LOG");
    let mut agent = well(scene.lab.node().spawn(&command));
    let line = well(agent.wait_for("ERROR", PATIENCE));
    assert!(said.iter().all(|part| line.contains(part)), "{line}");
    assert_eq!(well(agent.wait(PATIENCE)).code(), Some(1));
    assert_eq!(well(scene.lab.node().ns.nft("list ruleset")), "");
}

#[test]
fn without_cap_net_admin() {
    let without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
    assert_ends_and_says(&Scene::new(), &without, &["cannot capture", "run with CAP_NET_ADMIN"]);
}

#[test]
fn without_nft() {
    assert_ends_and_says(
        &Scene::new(),
        &["env", "PATH=/nonexistent"],
        &["program nft is not here", "install it"],
    );
}

/// As in kube-proxy's ConfigMap, after somebody has edited it.
#[test]
fn without_a_kubeconfig_that_is_one_nothing_is_changed_on_the_node() {
    let scene = Scene::new();
    let ns = &scene.lab.node().ns;
    let kernel = || {
        let ip = ["rule", "-6 rule", "route show table all", "-6 route show table all"];
        let routing = ip.map(|what| well(ns.ip(what))).concat();
        (well(ns.nft("list ruleset")), routing, settings::values(&scene.lab))
    };
    let before = kernel();
    let directory = TempDir::new().unwrap();
    let [kubeconfig, config] = ["kubeconfig.conf", "config.conf"].map(|name| directory.path().join(name));
    fs::write(&kubeconfig, "apiVersion: v1\nkind: Config\nclusters: 7\n").unwrap();
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clientConnection:\n  kubeconfig: {}\n",
        kubeconfig.display()
    );
    fs::write(&config, text).unwrap();
    let mut agent =
        well(scene.lab.node().spawn(&sluice(["agent".as_ref(), "--config".as_ref(), config.as_os_str()])));
    let line = well(agent.wait_for("ERROR", PATIENCE));
    for part in ["cannot follow an apiserver", "kubeconfig.conf", "clusters"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(well(agent.wait(PATIENCE)).code(), Some(1));
    assert_eq!(kernel(), before);
}

#[test]
fn what_check_calls_a_problem_is_a_warning_of_the_agents() {
    let scene = Scene::new();
    well(scene.lab.node().ns.set("net/ipv4/conf/eth0/src_valid_mark", "1"));
    well(scene.lab.node().ns.ip("rule add fwmark 0x20 lookup 100 priority 100"));
    let agent = well(scene.lab.node().spawn(&scene.command()));
    let line = well(agent.wait_for("packet marks: ", PATIENCE));
    assert!(line.contains("WARN") && line.contains("fwmark 0x20/0xffffffff, IPv4 priority 100"), "{line}");
    let line = well(agent.wait_for("reverse path: ", PATIENCE));
    for part in ["WARN", "on eth0", "Fix: set net.ipv4.conf.INTERFACE.src_valid_mark=0"] {
        assert!(line.contains(part), "{line}");
    }
}
