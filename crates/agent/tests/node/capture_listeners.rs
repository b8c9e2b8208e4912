//! The sockets where workers take captured packets: nobody else gets at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluice_model::Protocol;
use sluice_testbed::lab::{Outcome, SILENCE};

use crate::manifests::FAMILIES;
use crate::scene::{Scene, is_refused, well};

/// Three in a row, and the one after them, which is nobody's.
const LISTENERS: [u16; 3] = [10_265, 10_266, 10_267];

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// The ports of an address, with both protocols.
fn listeners(ip: impl Into<IpAddr>) -> impl Iterator<Item = (SocketAddr, Protocol)> {
    let ip = ip.into();
    LISTENERS
        .into_iter()
        .flat_map(move |port| PROTOCOLS.map(|protocol| (SocketAddr::new(ip, port), protocol)))
}

#[test]
fn a_connection_to_a_listener_of_the_workers_is_refused() {
    let scene = Scene::new();
    let _agent = scene.start();
    let node = scene.lab.node();
    let listening = well(node.ns.output("ss", &["--no-header", "--tcp", "--listening", "--numeric"]));
    assert!(LISTENERS.iter().all(|port| listening.contains(&format!("127.0.0.1:{port}"))), "{listening}");

    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for (to, protocol) in loopback.into_iter().flat_map(listeners) {
        let outcome = node.ask(protocol, to, SILENCE);
        assert!(is_refused(&outcome), "{protocol} {to}: {outcome:?}");
    }
    for host in [node, scene.lab.pod(0), scene.lab.outside()] {
        for (to, protocol) in FAMILIES.into_iter().flat_map(|family| listeners(node.ip(family))) {
            let outcome = host.ask(protocol, to, SILENCE);
            assert_eq!(outcome, Outcome::Refused, "{protocol} {to} from {}", host.name);
        }
    }
}

/// `route_localnet` lets others send to 127.0.0.1, as kube-proxy has it set on nodes.
#[test]
fn nor_does_a_pod_reach_it_where_loopback_addresses_are_routed() {
    let scene = Scene::new();
    let (node, pod) = (scene.lab.node(), scene.lab.pod(0));
    let _control = well(node.serve_at(&[(Ipv4Addr::LOCALHOST, 9999).into()]));
    for host in [node, pod] {
        well(host.ns.set("net/ipv4/conf/all/route_localnet", "1"));
    }
    well(pod.ns.ip("address delete 127.0.0.1/8 dev lo"));
    well(pod.ns.ip("route add 127.0.0.1/32 via 169.254.1.1 dev eth0 onlink"));
    let _agent = scene.start();
    for protocol in PROTOCOLS {
        let outcome = pod.ask(protocol, (Ipv4Addr::LOCALHOST, 9999).into(), SILENCE);
        assert_eq!(outcome.by(), Some("node"), "{protocol}: the way there is open: {outcome:?}");
    }
    for (to, protocol) in listeners(Ipv4Addr::LOCALHOST) {
        assert_eq!(pod.ask(protocol, to, SILENCE), Outcome::Silent, "{protocol} {to}");
    }
}
