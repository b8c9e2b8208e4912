//! That a bound of the kernel's memory is met shows in the log and in the metrics.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Outcome, PATIENCE, SILENCE};

use crate::manifests::{BACKEND, Service, cluster_ip};
use crate::scene::{AGENT, READY, Scene, sluice, until, well};

#[test]
fn a_client_that_is_held_up_is_said_and_counted() {
    let scene = Scene::new();
    let (node, client) = (scene.lab.node(), scene.lab.pod(0));
    scene.apply(&Service::new(3).here(node));
    let _server = well(node.serve(BACKEND));
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_249));
    let arguments = AGENT.map(|argument| if argument == "0" { "127.0.0.1:10249" } else { argument });
    let mut command = sluice(arguments);
    command.arg("--manifests").arg(scene.manifests()).args(["--admin-socket", "0"]);
    let agent = well(node.spawn(&command));
    well(agent.wait_for(READY, PATIENCE));

    let spent = "limit rate over 1/hour burst 1 packets timeout 1h";
    let element = format!("{{ {} . udp {spent} }}", client.v4);
    well(node.ns.nft(&format!("add element inet sluice clients_of_host_flows4 {element}")));
    let to = cluster_ip(3, Family::V4);
    assert!(client.ask(Protocol::Udp, to, PATIENCE).by().is_some());
    assert_eq!(client.ask(Protocol::Udp, to, SILENCE), Outcome::Silent);

    let line = well(agent.wait_for("packets to endpoints in this node's network were dropped", PATIENCE));
    assert!(line.contains("WARN") && line.contains("Fix: "), "{line}");
    let scrape = || {
        let mut stream = node.tcp_stream(metrics, PATIENCE).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    until("it is counted", || {
        scrape().lines().any(|line| {
            line.strip_prefix("sluice_nftables_fast_clients_total ").is_some_and(|number| number != "0")
        })
    });
}
