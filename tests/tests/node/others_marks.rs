//! Marks of other programs that have bits of ours: tunnels' sockets, and connections that have a mark of their own.

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Lab, Outcome, PATIENCE, RpFilter, Wiring};

use super::rules::{KINDS, Kind};
use super::world::{BACKEND, FAMILIES, PROTOCOLS, World, service, slices};

/// Of wg-quick (51820), of Mullvad and NordVPN, and `ip rule add fwmark 100` of who has several uplinks.
const MARKS: [u32; 4] = [0xca6c, 0x6d6f_6c65, 0xe1f1, 100];

/// Whoever is behind each Service: a pod, and the node itself.
const BEHIND: [(u8, &str); 2] = [(1, "pod-1"), (2, "node")];

/// Lets in answers of the node's connections, errors about these, and neighbour discovery; and what a rule says.
const FIREWALL: &str = "
    table inet firewall { chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        RULE
    }; }";

fn world(wiring: Wiring) -> World {
    let lab = Lab::builder().wiring(wiring).rp_filter(RpFilter::Strict).build();
    let mut world = World::new(lab.unwrap_or_else(|error| panic!("{error}")), |_| {});
    let (pod, node) = (world.lab.pod(1), world.lab.node());
    let services = [(1, pod), (2, node)].into_iter().flat_map(|(number, host)| {
        let service = Change::Apply(service(number, TrafficPolicy::Cluster).into());
        [service].into_iter().chain(slices(number, &[(host, "node")]))
    });
    let services: Vec<Change> = services.collect();
    world.apply(services);
    world
}

/// All of these marks, in both families and protocols.
fn cases() -> impl Iterator<Item = (u32, Family, Protocol)> {
    let families = FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)));
    families.flat_map(|(family, protocol)| MARKS.map(|mark| (mark, family, protocol)))
}

/// Whoever connects to the node, to a pod of it, or from it, meets somebody: the node is left as it was.
fn assert_all_meet(world: &World, context: &str) {
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
        let [node, pod, outside] = [world.lab.node(), world.lab.pod(1), world.lab.outside()];
        for (from, to) in [(outside, node), (outside, pod), (pod, outside), (node, outside), (node, pod)] {
            let outcome = from.ask(protocol, (to.ip(family), BACKEND).into(), PATIENCE);
            assert_eq!(
                outcome.by(),
                Some(&*to.name),
                "{context}: {family} {protocol} {}: {outcome:?}",
                from.name
            );
        }
    }
}

/// All Services answer clients of all places.
fn assert_served(world: &World, context: &str) {
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
        for (kind, (number, name)) in KINDS.into_iter().flat_map(|kind| BEHIND.map(|behind| (kind, behind))) {
            for client in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
                let outcome = client.ask(protocol, world.address(kind, number, family), PATIENCE);
                let context = format!("{context}: {family} {protocol} {kind:?} {number} {}", client.name);
                assert_eq!(outcome.by(), Some(name), "{context}: {outcome:?}");
            }
        }
    }
}

#[test]
fn what_a_process_sends_with_a_mark_of_its_own_is_tracked_so_its_answers_pass_a_firewall() {
    let world = world(Wiring::Routed);
    let (node, outside) = (world.lab.node(), world.lab.outside());
    let _server = outside.serve(BACKEND).unwrap();
    node.ns.nft_file(&FIREWALL.replace("RULE", "")).unwrap();
    for (mark, family, protocol) in cases() {
        let ask = |port| node.ask_marked(mark, protocol, (outside.ip(family), port).into(), PATIENCE);
        let outcome = ask(BACKEND);
        assert_eq!(outcome.by(), Some("outside"), "{mark:#x} {family} {protocol}: {outcome:?}");
        assert_eq!(ask(BACKEND + 1), Outcome::Refused, "{mark:#x} {family} {protocol}");
    }
}

#[test]
fn a_process_with_a_mark_of_its_own_reaches_services() {
    let world = world(Wiring::Routed);
    let node = world.lab.node();
    let _servers = [world.lab.pod(1), node].map(|host| host.serve(BACKEND).unwrap());
    for (mark, family, protocol) in cases() {
        for (kind, (number, name)) in KINDS.into_iter().flat_map(|kind| BEHIND.map(|behind| (kind, behind))) {
            let outcome = node.ask_marked(mark, protocol, world.address(kind, number, family), PATIENCE);
            assert_eq!(outcome.by(), Some(name), "{mark:#x} {family} {protocol} {kind:?}: {outcome:?}");
        }
    }
}

/// As wg-quick does for its tunnel, and others for every connection that came by an uplink of theirs.
#[test]
fn packets_that_get_the_mark_of_their_connection_go_where_they_are_sent() {
    let world = world(Wiring::Routed);
    let node = world.lab.node();
    let _servers = [node, world.lab.pod(1), world.lab.outside()].map(|host| host.serve(BACKEND).unwrap());
    for mark in MARKS {
        let rules = format!(
            "table inet others {{
                chain prerouting {{ type filter hook prerouting priority -150; meta mark set ct mark; }}
                chain output {{ type filter hook output priority -150; ct mark set {mark}; }}
                chain forward {{ type filter hook forward priority -150; ct mark set {mark}; }}
                chain input {{ type filter hook input priority -150; ct mark set {mark}; }}
            }}"
        );
        node.ns.nft_file(&rules).unwrap();
        let context = format!("{mark:#x}");
        assert_all_meet(&world, &context);
        node.ns.nft("delete table inet others").unwrap();
    }
}

/// Bits that others add to marks are theirs, and stay.
#[test]
fn everybody_is_served_where_others_add_their_bits_to_marks() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let world = world(wiring);
        let node = world.lab.node();
        let _servers = [node, world.lab.pod(1), world.lab.outside()].map(|host| host.serve(BACKEND).unwrap());
        for bits in [0x4000, 0x1_0000] {
            let chain = |hook: &str, priority: &str| {
                format!(
                    "chain {hook} {{ type filter hook {hook} priority {priority}; meta mark set meta mark | {bits}; }}"
                )
            };
            let rules = [chain("prerouting", "-150"), chain("output", "-150")].join("; ");
            node.ns.nft_file(&format!("table inet others {{ {rules}; }}")).unwrap();
            let context = format!("{wiring:?} {bits:#x}");
            assert_all_meet(&world, &context);
            node.ns.nft_file(&FIREWALL.replace("RULE", "meta mark & 0x30 == 0x10 accept")).unwrap();
            assert_served(&world, &context);
            for family in FAMILIES {
                let to = world.address(Kind::NodePort, 1, family);
                world.lab.outside().echo_tcp(to, 1_000_000, PATIENCE).unwrap();
            }
            node.ns.nft("delete table inet others").unwrap();
            node.ns.nft("delete table inet firewall").unwrap();
        }
    }
}
