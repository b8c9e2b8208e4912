//! Who is let in, and where: source ranges, ports that no Service has, addresses of nodePorts, endpoints that refuse.

use std::net::{IpAddr, SocketAddr};

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_table::NodePortAddresses;
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, SILENCE, Wiring};
use sluice_tests::wait;

use super::hosts::{add_service, families_and_protocols, host_named, lab, serve, world};
use super::rules::Kind;
use super::world::{FAMILIES, PORT, World, service, slices};

#[test]
fn source_ranges_guard_load_balancer_addresses_and_nothing_else() {
    let mut world = World::new(lab(), |_| {});
    let _server = serve(world.lab.pod(1));
    // Outside is in, pods and the node are not.
    let mut guarded = service(1, TrafficPolicy::Cluster);
    let ranges = ["192.168.20.0/24", "192.168.20.20/32", "fd00:20::/64"];
    guarded.source_ranges = Some(ranges.map(|range| range.parse().unwrap()).into());
    // The node is in, outside is not. The node's address is in the range: so are its own processes.
    let mut reversed = service(2, TrafficPolicy::Cluster);
    reversed.source_ranges =
        Some(["192.168.10.0/24", "fd00:10::/64"].map(|range| range.parse().unwrap()).into());
    // Nobody answers, and who is not in the ranges must not even know that.
    let mut empty = service(3, TrafficPolicy::Cluster);
    empty.source_ranges = guarded.source_ranges.clone();
    let endpoint = world.lab.pod(1).clone();
    let mut changes: Vec<Change> =
        [guarded, reversed, empty].map(|service| Change::Apply(service.into())).into();
    changes.extend((1..=2).flat_map(|number| slices(number, &[(&endpoint, "node")])));
    world.apply(changes);

    let ask = |host: &Host, kind, number, family, protocol, patience| {
        host.ask(protocol, world.address(kind, number, family), patience)
    };
    let [outside, pod, node] = [world.lab.outside(), world.lab.pod(0), world.lab.node()];
    for (family, protocol) in families_and_protocols() {
        let context = format!("{family} {protocol}");
        let answered = |host, kind, number| {
            let outcome = ask(host, kind, number, family, protocol, PATIENCE);
            assert_eq!(outcome.by(), Some("pod-1"), "{context} {} {kind:?}: {outcome:?}", host.name);
        };
        let silent = |host: &Host, number| {
            let outcome = ask(host, Kind::LoadBalancer, number, family, protocol, SILENCE);
            assert_eq!(outcome, Outcome::Silent, "{context} {} {number}", host.name);
        };
        answered(outside, Kind::LoadBalancer, 1);
        silent(pod, 1);
        silent(node, 1);
        answered(node, Kind::LoadBalancer, 2);
        silent(outside, 2);
        silent(pod, 3);
        let refused = ask(outside, Kind::LoadBalancer, 3, family, protocol, PATIENCE);
        assert_eq!(refused, Outcome::Refused, "{context}");
        for kind in [Kind::ClusterIp, Kind::ExternalIp, Kind::NodePort] {
            answered(pod, kind, 1);
        }
    }
}

#[test]
fn ports_that_a_service_does_not_have_are_refused_and_addresses_that_none_has_are_silent() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    for (family, protocol) in families_and_protocols() {
        let of_service = SocketAddr::new(world.address(Kind::ClusterIp, 1, family).ip(), 81);
        let of_nobody = SocketAddr::new(world.address(Kind::ClusterIp, 99, family).ip(), PORT);
        for host in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
            let outcome = host.ask(protocol, of_service, PATIENCE);
            let is_refused = match (protocol, host.name.as_str()) {
                (Protocol::Udp, "node") => outcome == Outcome::Forbidden,
                _ => outcome == Outcome::Refused,
            };
            assert!(is_refused, "{family} {protocol} {}: {outcome:?}", host.name);
            let outcome = host.ask(protocol, of_nobody, SILENCE);
            assert_eq!(outcome, Outcome::Silent, "{family} {protocol} {}", host.name);
        }
        // nodePorts are not served on loopback.
        let loopback: IpAddr =
            if family == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
        let outcome = world.lab.node().ask(protocol, (loopback, 30_001).into(), PATIENCE);
        assert_eq!(outcome, Outcome::Refused, "{family} {protocol}");
    }
}

#[test]
fn a_udp_client_is_refused_where_its_endpoints_port_is_closed() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let lab = Lab::builder().wiring(wiring).build().unwrap_or_else(|error| panic!("{error}"));
        let mut world = World::new(lab, |_| {});
        for (number, name, on) in [(1, "other-pod-0", "other"), (2, "pod-1", "node")] {
            let endpoint = host_named(&world.lab, name).clone();
            let service = Change::Apply(service(number, TrafficPolicy::Cluster).into());
            world.apply([service].into_iter().chain(slices(number, &[(&endpoint, on)])).collect::<Vec<_>>());
        }
        for (family, number) in FAMILIES.into_iter().flat_map(|family| [1, 2].map(|number| (family, number)))
        {
            for (host, kind) in [
                (world.lab.pod(0), Kind::ClusterIp),
                (world.lab.node(), Kind::ClusterIp),
                (world.lab.outside(), Kind::NodePort),
            ] {
                let outcome = host.ask(Protocol::Udp, world.address(kind, number, family), PATIENCE);
                assert_eq!(outcome, Outcome::Refused, "{wiring:?} {family} {} Service {number}", host.name);
            }
        }
        // Counted once it is sent: a client may be faster than that.
        wait::until("every refusal is counted", || world.proxy().stats().udp_refusals == 12);
    }
}

#[test]
fn node_ports_are_served_on_the_addresses_in_the_cidrs_as_they_come_and_go() {
    let mut world = World::new(lab(), |config| {
        config.node_ports = NodePortAddresses::Inside(vec!["198.51.100.0/24".parse().unwrap()]);
    });
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let at: SocketAddr = ([198, 51, 100, 7], 30_001).into();
    let router = &world.lab.router().ns;
    router.ip("route add 198.51.100.0/24 via 192.168.10.10").unwrap();
    let ask = |world: &World, to| world.lab.outside().ask(Protocol::Tcp, to, SILENCE);
    assert_eq!(ask(&world, ([192, 168, 10, 10], 30_001).into()), Outcome::Refused, "not in the CIDR");
    // IPv6 has no CIDR in the list: all of its addresses.
    let outcome =
        world.lab.outside().ask(Protocol::Tcp, world.address(Kind::NodePort, 1, Family::V6), PATIENCE);
    assert_eq!(outcome.by(), Some("pod-1"));

    world.lab.node().ns.ip("address add 198.51.100.7/32 dev eth0").unwrap();
    world.tick();
    assert_eq!(ask(&world, at).by(), Some("pod-1"));
    world.lab.node().ns.ip("address del 198.51.100.7/32 dev eth0").unwrap();
    world.tick();
    assert_eq!(ask(&world, at).by(), None);
}
