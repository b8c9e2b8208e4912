//! Endpoints that are processes of the node itself (pods in its network): whom they see, and what a client learns
//! of a closed port.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use sluice::proxy::CaptureConfig;
use sluice_model::{Change, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Builder, Host, Lab, Outcome, PATIENCE, RpFilter, Wiring, ask_on};
use sluice_tests::wait;

use super::rules::{KINDS, Kind};
use super::world::{BACKEND, FAMILIES, PROTOCOLS, World, service, slices};

/// A lab with Services 1 and 2, of policy Cluster and Local, whose endpoint is the node.
fn world(wiring: Wiring) -> World {
    world_with(Lab::builder().wiring(wiring), false)
}

/// The same, in such a lab, and with connections tracked or not.
fn world_with(lab: Builder, track: bool) -> World {
    let lab = lab.build().unwrap_or_else(|error| panic!("{error}"));
    let mut world = World::new(lab, |config| {
        let CaptureConfig::Tproxy(config) = &mut config.capture else { panic!("not capturing") };
        config.track = track;
    });
    let node = world.lab.node().clone();
    for (number, policy) in [(1, TrafficPolicy::Cluster), (2, TrafficPolicy::Local)] {
        let service = Change::Apply(service(number, policy).into());
        world.apply([service].into_iter().chain(slices(number, &[(&node, "node")])).collect::<Vec<_>>());
    }
    world
}

#[test]
fn a_process_of_the_node_sees_the_own_address_of_every_client_that_is_not_of_the_node() {
    let labs = [
        ("routed, strict", Lab::builder().rp_filter(RpFilter::Strict), false),
        ("bridged", Lab::builder().wiring(Wiring::Bridged), false),
        ("tracked", Lab::builder(), true),
    ];
    for (name, lab, track) in labs {
        let world = world_with(lab, track);
        let node = world.lab.node();
        let _server = node.serve(BACKEND).unwrap();
        for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
            for (kind, number) in KINDS.into_iter().flat_map(|kind| [(kind, 1), (kind, 2)]) {
                let to = world.address(kind, number, family);
                let context = format!("{name}: {family} {protocol} {kind:?} Service {number}");
                for client in
                    [world.lab.pod(0), world.lab.outside(), world.lab.other(), world.lab.other_pod(0)]
                {
                    let outcome = client.ask(protocol, to, PATIENCE);
                    assert_eq!(outcome.by(), Some("node"), "{context} {}: {outcome:?}", client.name);
                    assert_eq!(outcome.source(), Some(client.ip(family)), "{context} {}", client.name);
                    // Nobody is taken for somebody else.
                    let direct = client.ask(protocol, (node.ip(family), BACKEND).into(), PATIENCE);
                    assert_eq!((direct.by(), direct.source()), (Some("node"), Some(client.ip(family))));
                }
                let outcome = node.ask(protocol, to, PATIENCE);
                assert!(outcome.source().is_some_and(|seen| world.is_nodes(seen)), "{context}: {outcome:?}");
            }
        }
    }
}

#[test]
fn bulk_passes_between_a_client_from_outside_and_a_process_of_the_node() {
    let world = world(Wiring::Routed);
    let _server = world.lab.node().serve(BACKEND).unwrap();
    for family in FAMILIES {
        let to = world.address(Kind::NodePort, 1, family);
        world.lab.outside().echo_tcp(to, 20_000_000, PATIENCE).unwrap();
        for length in [0, 2_000, 60_000] {
            world.lab.outside().echo_udp(to, length, PATIENCE).unwrap();
        }
    }
}

#[test]
fn a_process_of_the_node_is_asked_with_the_nodes_address_where_it_is_not_at_the_nodes_addresses() {
    // The other node's: an answer to somebody from outside would not come back.
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    let mut world = World::new(lab, |_| {});
    let other = world.lab.other().clone();
    let _server = other.serve(BACKEND).unwrap();
    let service = Change::Apply(service(1, TrafficPolicy::Cluster).into());
    world.apply([service].into_iter().chain(slices(1, &[(&other, "other")])).collect::<Vec<_>>());
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
        let outcome = world.lab.outside().ask(protocol, world.address(Kind::NodePort, 1, family), PATIENCE);
        assert!(outcome.source().is_some_and(|seen| world.is_nodes(seen)), "{family}: {outcome:?}");
    }
}

/// A datagram of a client to a port of the node that nobody listens at.
fn ask_closed_port(client: &Host, to: IpAddr) -> Outcome {
    let socket: UdpSocket = client.udp_socket((to, BACKEND + 1).into()).unwrap();
    ask_on(&socket, PATIENCE)
}

#[test]
fn a_client_is_refused_where_the_nodes_port_is_closed() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let world = world(wiring);
        let node = world.lab.node();
        for family in FAMILIES {
            for (client, kind) in [
                (world.lab.pod(0), Kind::ClusterIp),
                (world.lab.pod(0), Kind::NodePort),
                (world.lab.outside(), Kind::NodePort),
                (world.lab.outside(), Kind::LoadBalancer),
                (node, Kind::ClusterIp),
            ] {
                let context = format!("{wiring:?} {family} {} {kind:?}", client.name);
                let to = world.address(kind, 1, family);
                for _ in 0..2 {
                    assert_eq!(client.ask(Protocol::Udp, to, PATIENCE), Outcome::Refused, "{context}");
                    // What the node says of the client's own datagrams is for the client.
                    assert_eq!(ask_closed_port(client, node.ip(family)), Outcome::Refused, "{context}");
                }
                // Nobody listens, and no other endpoint is left: known once the client's handshake is over.
                let outcome = client.ask(Protocol::Tcp, to, PATIENCE);
                assert!(matches!(outcome, Outcome::Refused | Outcome::Reset), "{context}: {outcome:?}");
            }
        }
        wait::until("every refusal is counted", || world.proxy().stats().udp_refusals == 20);
    }
}

/// At a pace at which the kernel has something to say all the time, of two CPUs.
#[test]
fn every_question_of_clients_that_ask_two_at_a_time_is_refused() {
    /// Fewer than a worker tells a client in a second.
    const QUESTIONS: usize = 45;
    let world = world(Wiring::Routed);
    let node = world.lab.node();
    // Or else the kernel keeps most of its errors back.
    node.ns.set_all(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")]).unwrap();
    let limits = [("net/ipv4/icmp_msgs_per_sec", "100000"), ("net/ipv4/icmp_msgs_burst", "100000")];
    if node.ns.read("/proc/sys/net/ipv4/icmp_msgs_per_sec").is_err() {
        sluice_sys::skipped("before Linux 6.11 the limit on errors is that of all namespaces");
        return;
    }
    node.ns.set_all(&limits).unwrap();
    for (family, client) in
        FAMILIES.into_iter().flat_map(|f| [0, 1].map(|pod| world.lab.pod(pod)).map(|pod| (f, pod)))
    {
        let to = world.address(Kind::ClusterIp, 1, family);
        let ask = || (0..QUESTIONS).map(|_| client.ask(Protocol::Udp, to, PATIENCE)).collect::<Vec<_>>();
        let outcomes = std::thread::scope(|scope| {
            let other = scope.spawn(ask);
            [ask(), other.join().unwrap()].concat()
        });
        let lost: Vec<&Outcome> = outcomes.iter().filter(|outcome| **outcome != Outcome::Refused).collect();
        assert!(lost.is_empty(), "{family} {}: {lost:?}, {:?}", client.name, world.proxy().stats());
    }
}

#[test]
fn a_client_is_refused_once_a_process_of_the_node_has_closed_its_port_and_served_when_it_is_back() {
    let world = world(Wiring::Routed);
    let node = world.lab.node();
    for (family, client) in
        FAMILIES.into_iter().flat_map(|f| [(f, world.lab.pod(0)), (f, world.lab.outside())])
    {
        let flow = client.udp_socket(world.address(Kind::NodePort, 1, family)).unwrap();
        for _ in 0..2 {
            let server = node.serve(BACKEND).unwrap();
            assert_eq!(ask_on(&flow, PATIENCE).by(), Some("node"), "{family} {}", client.name);
            drop(server);
            assert_eq!(ask_until_heard(&flow), Outcome::Refused, "{family} {}", client.name);
        }
    }
}

/// Asks as a resolver does, which asks again: neither a datagram nor an ICMP message is sure to arrive (RFC 1122, 3.2.2.1).
fn ask_until_heard(socket: &UdpSocket) -> Outcome {
    (0..20)
        .map(|_| ask_on(socket, Duration::from_secs(1)))
        .find(|outcome| *outcome != Outcome::Silent)
        .unwrap_or(Outcome::Silent)
}
