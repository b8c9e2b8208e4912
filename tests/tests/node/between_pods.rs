//! What pods send to each other passes a shorter way through the rules. Nothing of ours may take it.

use std::net::{IpAddr, SocketAddr};

use sluice_model::{Change, Family, Object, TrafficPolicy};
use sluice_testbed::lab::{Lab, PATIENCE};
use sluice_tests::wait::until;

use super::hosts::families_and_protocols;
use super::rules::{KINDS, Kind};
use super::world::{BACKEND, World, service, slices};

/// One of the ports that pods' kernels choose from; gRPC's examples have it.
const HIGH_PORT: u16 = 50_051;

fn world() -> World {
    World::new(Lab::new().unwrap_or_else(|error| panic!("{error}")), |_| {})
}

/// With a Service whose endpoint, a pod, listens on a port.
fn world_with_endpoint(port: u16) -> World {
    let mut world = world();
    let mut changes = slices(1, &[(world.lab.pod(1), "node")]);
    for change in &mut changes {
        let Change::Apply(Object::EndpointSlice(slice)) = change else { panic!("{change:?}") };
        slice.ports.iter_mut().for_each(|slice_port| slice_port.number = port);
    }
    changes.push(Change::Apply(service(1, TrafficPolicy::Cluster).into()));
    world.apply(changes);
    world
}

#[test]
fn an_endpoint_may_listen_where_pods_choose_their_ports() {
    let world = world_with_endpoint(HIGH_PORT);
    let _server = world.lab.pod(1).serve(HIGH_PORT).unwrap();
    let ask_all = |when: &str| {
        for (family, protocol) in families_and_protocols() {
            for kind in KINDS {
                for client in [world.lab.pod(0), world.lab.pod(1), world.lab.node(), world.lab.outside()] {
                    let outcome = client.ask(protocol, world.address(kind, 1, family), PATIENCE);
                    let context = format!("{when} {family} {protocol} {kind:?} {}", client.name);
                    assert_eq!(outcome.by(), Some("pod-1"), "{context}: {outcome:?}");
                }
            }
        }
    };
    ask_all("at first");
    ask_all("and again");
}

/// Each packet that takes the longer way is counted while nobody repairs the rules.
#[test]
fn pods_conversations_take_the_shorter_way_and_those_with_services_do_not() {
    let mut world = world_with_endpoint(BACKEND);
    let _server = world.lab.pod(1).serve(BACKEND).unwrap();
    world.stop();
    let node = &world.lab.node().ns;
    for chain in ["packets4", "packets6"] {
        node.nft(&format!("insert rule inet sluice {chain} meta l4proto {{ tcp, udp }} iif != lo counter"))
            .unwrap();
    }
    let counted = || {
        let rules = ["packets4", "packets6"].map(|chain| {
            let listed = node.nft(&format!("list chain inet sluice {chain}")).unwrap();
            let packets = listed.split_once("counter packets ").map(|(_, rest)| rest.to_owned());
            packets.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok()).unwrap()
        });
        rules.iter().sum::<u64>()
    };
    for (family, protocol) in families_and_protocols() {
        let direct = (world.lab.pod(1).ip(family), BACKEND).into();
        let outcome = world.lab.pod(0).ask(protocol, direct, PATIENCE);
        assert_eq!(outcome.by(), Some("pod-1"), "{family} {protocol}: {outcome:?}");
        assert_eq!(counted(), 0, "{family} {protocol}");
    }
    for (family, protocol) in families_and_protocols() {
        let before = counted();
        let to = world.address(Kind::ClusterIp, 1, family);
        let _nobody_answers = world.lab.pod(0).ask(protocol, to, std::time::Duration::from_millis(50));
        assert!(counted() > before, "{family} {protocol}");
    }
}

#[test]
fn an_address_of_the_node_among_the_pods_is_known_as_long_as_it_is_there() {
    let world = world();
    let node = &world.lab.node().ns;
    let rules = |chain: &str| node.nft(&format!("list chain inet sluice {chain}")).unwrap();
    for (chain, family, ip) in [("to_pods4", "ip", "10.244.1.200"), ("to_pods6", "ip6", "fd00:244:1::200")] {
        assert!(rules(chain).contains(" goto between_pods"), "{}", rules(chain));
        node.ip(&format!("address add {ip} dev lo")).unwrap();
        let rule = format!("{family} daddr {ip} return");
        until("the address is told from pods", || rules(chain).contains(&rule));
        assert!(rules(chain).find(&rule) < rules(chain).find(" goto between_pods"), "{}", rules(chain));
        let prefix = if family == "ip" { 32 } else { 128 };
        node.ip(&format!("address del {ip}/{prefix} dev lo")).unwrap();
        until("the address has gone", || !rules(chain).contains(&rule));
    }
}

#[test]
fn external_addresses_among_the_pods_are_served_however_many_there_are() {
    let mut world = world_with_endpoint(BACKEND);
    let _server = world.lab.pod(1).serve(BACKEND).unwrap();
    let addresses = |last: u8| -> [IpAddr; 2] {
        [format!("10.244.1.{last}"), format!("fd00:244:1::{last}")].map(|ip| ip.parse().unwrap())
    };
    let mut service = service(1, TrafficPolicy::Cluster);
    service.external_ips = (100..120).flat_map(addresses).collect();
    world.apply([Change::Apply(service.into())]);
    for last in [100, 119] {
        for (ip, (family, protocol)) in
            families_and_protocols().flat_map(|of| addresses(last).map(|ip| (ip, of)))
        {
            if Family::of(ip) == family {
                let to = SocketAddr::new(ip, world.address(Kind::ExternalIp, 1, family).port());
                let outcome = world.lab.pod(0).ask(protocol, to, PATIENCE);
                assert_eq!(outcome.by(), Some("pod-1"), "{protocol} to {to}: {outcome:?}");
            }
        }
    }
    let node = &world.lab.node().ns;
    for chain in ["to_pods4", "to_pods6"] {
        let rules = node.nft(&format!("list chain inet sluice {chain}")).unwrap();
        let place = |what: &str| rules.find(what).unwrap_or_else(|| panic!("{what} is not in {rules}"));
        assert!(place("@external_ips") < place("goto between_pods"), "{rules}");
        assert_eq!(
            rules.matches(" return").count(),
            2,
            "the bridge's address, and one for all others: {rules}"
        );
    }
}
