//! Reachability, and the source addresses that servers see.

use std::net::{IpAddr, SocketAddr};

use sluice_model::Family;
use sluice_testbed::lab::{Host, Lab, PATIENCE, RpFilter, Wiring};

use super::{PORT, families_and_protocols, lab, well};

/// All hosts send requests to all hosts, including themselves, and servers see their real addresses.
fn assert_full_mesh(lab: &Lab) {
    let hosts =
        [lab.node(), lab.pod(0), lab.pod(1), lab.other(), lab.other_pod(0), lab.other_pod(1), lab.outside()];
    let _servers = hosts.map(|host| well(host.serve(PORT)));
    for client in hosts {
        for server in hosts {
            for (family, protocol) in families_and_protocols() {
                // On a bridge, the node has an address there, and prefers it for its neighbours.
                let source =
                    match (&*client.name, server.name.starts_with("pod"), bridge_address(client, family)) {
                        ("node", true, Some(bridge)) => bridge,
                        _ => client.ip(family),
                    };
                let outcome = client.ask(protocol, (server.ip(family), PORT).into(), PATIENCE);
                let context = format!("{protocol} {family} {} -> {}", client.name, server.name);
                assert_eq!(outcome.by(), Some(&*server.name), "{context}: {outcome:?}");
                assert_eq!(outcome.source(), Some(source), "{context}: {outcome:?}");
            }
        }
    }
}

/// The address of the node's bridge, if it has one.
fn bridge_address(host: &Host, family: Family) -> Option<IpAddr> {
    let text = host.ns.ip("-o address show dev cni0").ok()?;
    ["10.244.1.1", "fd00:244:1::1"]
        .into_iter()
        .filter(|address| text.contains(&format!("{address}/")))
        .map(|address| address.parse::<IpAddr>().unwrap())
        .find(|address| Family::of(*address) == family)
}

#[test]
fn everybody_reaches_everybody_with_its_own_address() {
    assert_full_mesh(&lab());
}

#[test]
fn everybody_reaches_everybody_through_a_bridge() {
    assert_full_mesh(&well(Lab::builder().wiring(Wiring::Bridged).build()));
}

#[test]
fn everybody_reaches_everybody_where_sources_are_checked_strictly() {
    let lab = well(Lab::builder().rp_filter(RpFilter::Strict).build());
    for setting in ["lo", "eth0", "veth0"].map(|link| format!("/proc/sys/net/ipv4/conf/{link}/rp_filter")) {
        assert_eq!(lab.node().ns.read(&setting).unwrap(), "1", "{setting}");
    }
    assert_full_mesh(&lab);
}

#[test]
fn a_pod_can_be_added_and_unplugged_at_any_time() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let mut lab = well(Lab::builder().wiring(wiring).pods(0).other_pods(0).build());
        for index in 0..3 {
            let pod = well(lab.add_pod());
            assert_eq!(pod.name, format!("pod-{index}"));
            assert_eq!(lab.pod(index).v4, pod.v4);
            let _server = well(pod.serve(PORT));
            for (family, protocol) in families_and_protocols() {
                let outcome = lab.outside().ask(protocol, (pod.ip(family), PORT).into(), PATIENCE);
                assert_eq!(outcome.by(), Some(&*pod.name), "{protocol} {family}");
            }
        }
        well(lab.unplug_pod(1));
        assert!(lab.unplug_pod(1).is_err(), "it is gone");
        assert!(lab.node().ns.ip("link show veth1").is_err());
        well(lab.node().ns.ip("link show veth2"));
    }
}

#[test]
fn what_is_for_services_comes_to_the_node_from_anywhere() {
    let lab = lab();
    let addresses =
        ["10.96.0.1", "203.0.113.1", "fd00:96::1", "fd00:cb::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    for address in addresses {
        let suffix = if address.is_ipv6() { "/128 dev lo nodad" } else { "/32 dev lo" };
        well(lab.node().ns.ip(&format!("address add {address}{suffix}")));
    }
    let sockets = addresses.map(|address| SocketAddr::from((address, 80)));
    let _server = well(lab.node().serve_at(&sockets));
    for client in [lab.pod(0), lab.node(), lab.other(), lab.other_pod(0), lab.outside()] {
        for to in sockets {
            for protocol in super::PROTOCOLS {
                let outcome = client.ask(protocol, to, PATIENCE);
                assert_eq!(outcome.by(), Some("node"), "{protocol} {} -> {to}: {outcome:?}", client.name);
            }
        }
    }
}

#[test]
fn labs_run_side_by_side_with_the_same_addresses() {
    let labs = [lab(), lab(), lab()];
    // Each has a server on another pod.
    let [zero, one, _] = &labs;
    let _servers = [well(zero.pod(0).serve(PORT)), well(one.pod(1).serve(PORT))];
    for (family, protocol) in families_and_protocols() {
        for (lab, serves) in labs.iter().zip([Some(0), Some(1), None]) {
            for index in 0..2 {
                let outcome = lab.outside().ask(protocol, (lab.pod(index).ip(family), PORT).into(), PATIENCE);
                let by = (serves == Some(index)).then(|| format!("pod-{index}"));
                assert_eq!(outcome.by(), by.as_deref(), "{protocol} {family}: {outcome:?}");
            }
        }
    }
}
