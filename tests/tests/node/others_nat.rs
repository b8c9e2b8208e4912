//! Connections of others whose source port is a nodePort: a NAT chooses among all ports from 1024 on, and their answers
//! come to an address and port that are a Service's.

use std::net::UdpSocket;

use sluice_model::{Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{PATIENCE, ask_on};

use super::hosts::{families_and_protocols, world};
use super::rules::Kind;
use super::world::World;

/// What a pod sends to somewhere else leaves with the node's address and the nodePort of Service 1.
const NAT: &str = "
    table inet others { chain postrouting {
        type nat hook postrouting priority 100;
        iifname \"veth*\" meta l4proto { tcp, udp } th dport 9000-9999 masquerade to :30001
    }; }";

fn assert_served(world: &World, context: &str) {
    for (family, protocol) in families_and_protocols() {
        let to = world.address(Kind::NodePort, 1, family);
        for client in [world.lab.outside(), world.lab.pod(0), world.lab.node()] {
            let outcome = client.ask(protocol, to, PATIENCE);
            assert_eq!(
                outcome.by(),
                Some("pod-1"),
                "{context}: {protocol} {to} {}: {outcome:?}",
                client.name
            );
        }
    }
}

#[test]
fn a_connection_whose_source_port_a_nat_has_made_a_node_port_is_answered() {
    let (world, _behind) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let [outside, pod, node] = [world.lab.outside(), world.lab.pod(0), world.lab.node()];
    let _server = outside.serve(9_000).unwrap();
    node.ns.nft_file(NAT).unwrap();
    assert_served(&world, "before");
    for (family, protocol) in families_and_protocols() {
        let outcome = pod.ask(protocol, (outside.ip(family), 9_000).into(), PATIENCE);
        assert_eq!(outcome.by(), Some("outside"), "{family} {protocol}: {outcome:?}");
        assert_eq!(outcome.source(), Some(node.ip(family)), "{family} {protocol}: it was masqueraded");
    }
    assert_served(&world, "after");
}

/// Nothing keeps a process from a nodePort as its own, and connection tracking knows what it has asked.
#[test]
fn a_process_that_asks_from_a_node_port_is_answered() {
    let (world, _behind) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let [outside, node] = [world.lab.outside(), world.lab.node()];
    let _server = outside.serve(9_000).unwrap();
    for family in [Family::V4, Family::V6] {
        let socket = node.ns.run(|| UdpSocket::bind((node.ip(family), 30_001)).unwrap());
        socket.connect((outside.ip(family), 9_000)).unwrap();
        let outcome = ask_on(&socket, PATIENCE);
        assert_eq!(outcome.by(), Some("outside"), "{family}: {outcome:?}");
    }
}

/// Of a connection that was answered with a cookie there is nothing but what the client sends back.
#[test]
fn node_ports_are_served_with_syn_cookies() {
    let (world, _behind) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    world.lab.node().ns.set("net/ipv4/tcp_syncookies", "2").unwrap();
    assert_served(&world, "cookies");
    for family in [Family::V4, Family::V6] {
        let to = world.address(Kind::NodePort, 1, family);
        world.lab.outside().echo_tcp(to, 1_000_000, PATIENCE).unwrap();
        let outcome = world.lab.outside().ask(Protocol::Tcp, to, PATIENCE);
        assert_eq!(outcome.by(), Some("pod-1"), "{outcome:?}");
    }
}
