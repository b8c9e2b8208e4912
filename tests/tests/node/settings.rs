//! What flags and wiring change: connection tracking, who is a local pod, masquerading, pods on a bridge.

use sluice::proxy::CaptureConfig;
use sluice_capture::tproxy;
use sluice_model::TrafficPolicy;
use sluice_table::LocalPods;
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, SILENCE, Wiring};

use super::hosts::{add_service, families_and_protocols, lab};
use super::rules::{KINDS, Kind};
use super::world::World;

#[test]
fn nothing_captured_is_tracked_unless_asked_for() {
    for track in [false, true] {
        let mut world = World::new(lab(), |config| {
            let CaptureConfig::Tproxy(config) = &mut config.capture else { panic!("not capturing") };
            config.track = track;
        });
        let _servers = add_service(
            &mut world,
            1,
            TrafficPolicy::Cluster,
            &[("pod-1", "node"), ("other-pod-0", "other")],
        );
        // Somebody has to want connection tracking, or there is none.
        let firewall = "table inet firewall { chain forward { type filter hook forward priority 0; ct state invalid drop; }; \
                        chain input { type filter hook input priority 0; ct state invalid drop; }; \
                        chain output { type filter hook output priority 0; ct state invalid drop; }; }";
        world.lab.node().ns.nft_file(firewall).unwrap();
        for (family, protocol) in families_and_protocols() {
            for host in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
                for _ in 0..2 {
                    let outcome = host.ask(protocol, world.address(Kind::ClusterIp, 1, family), PATIENCE);
                    assert!(outcome.by().is_some(), "{track} {family} {protocol} {}: {outcome:?}", host.name);
                }
            }
        }
        let entries = world.lab.node().ns.conntrack_entries().unwrap();
        assert_eq!(entries > 0, track, "{entries} entries");
    }
}

#[test]
fn local_pods_are_told_by_interface_and_by_node_too() {
    type Detector = (&'static str, LocalPods, tproxy::LocalPods);
    let detectors: [Detector; 3] = [
        ("by prefix", LocalPods::Detected, tproxy::LocalPods::Interface { pattern: "veth*".into() }),
        ("by the Node's CIDRs", LocalPods::DetectedByNodeCidrs, tproxy::LocalPods::NodeCidrs),
        ("by nothing", LocalPods::DetectedIn(Vec::new()), tproxy::LocalPods::None),
    ];
    for (name, table, capture) in detectors {
        let mut world = World::new(lab(), |config| {
            config.table.local_pods = table;
            let CaptureConfig::Tproxy(config) = &mut config.capture else { panic!("not capturing") };
            config.local_pods = capture.clone();
            config.cluster_cidrs = Vec::new();
        });
        let _servers = add_service(&mut world, 1, TrafficPolicy::Local, &[("pod-1", "node")]);
        let _elsewhere = add_service(&mut world, 2, TrafficPolicy::Local, &[("other-pod-0", "other")]);
        let is_detected = capture != tproxy::LocalPods::None;
        for (family, protocol) in families_and_protocols() {
            let ask = |host: &Host, kind, number| {
                host.ask(
                    protocol,
                    world.address(kind, number, family),
                    if is_detected { PATIENCE } else { SILENCE },
                )
            };
            let context = format!("{name} {family} {protocol}");
            let [pod, outside] = [world.lab.pod(0), world.lab.outside()];
            // A pod keeps its address; others do only where no pod can be told.
            assert_eq!(ask(pod, Kind::ClusterIp, 1).source(), Some(pod.ip(family)), "{context}");
            let seen = ask(outside, Kind::ClusterIp, 1).source().unwrap();
            assert_eq!(world.is_nodes(seen), is_detected, "{context}");
            // Only a local pod is not bound by policy Local.
            let outcome = ask(pod, Kind::NodePort, 2);
            assert_eq!(outcome.by().is_some(), is_detected, "{context}: {outcome:?}");
        }
    }
}

#[test]
fn masquerade_all_hides_pods_at_cluster_ips() {
    let mut world = World::new(lab(), |config| config.table.masquerade_all = true);
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node")]);
    for (family, protocol) in families_and_protocols() {
        let outcome = world.lab.pod(0).ask(protocol, world.address(Kind::ClusterIp, 1, family), PATIENCE);
        assert!(outcome.source().is_some_and(|seen| world.is_nodes(seen)), "{outcome:?}");
    }
}

#[test]
fn pods_on_a_bridge_are_served() {
    let lab = Lab::builder().wiring(Wiring::Bridged).build().unwrap_or_else(|error| panic!("{error}"));
    for setting in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        // As kube-proxy needs it. Not there without br_netfilter.
        let _ = lab.node().ns.set(setting, "1");
    }
    let mut world = World::new(lab, |_| {});
    let _servers =
        add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node"), ("other-pod-0", "other")]);
    let pod = world.lab.pod(0);
    for (family, protocol) in families_and_protocols() {
        for kind in KINDS {
            let outcomes = [(); 2].map(|()| pod.ask(protocol, world.address(kind, 1, family), PATIENCE));
            let context = format!("{family} {protocol} {kind:?}: {outcomes:?}");
            let mut answered: Vec<_> = outcomes.iter().filter_map(Outcome::by).collect();
            answered.sort_unstable();
            assert_eq!(answered, ["other-pod-0", "pod-1"], "{context}");
            let keeps_address = kind == Kind::ClusterIp;
            let is_kept = |outcome: &Outcome| outcome.source() == Some(pod.ip(family));
            assert!(outcomes.iter().all(|outcome| is_kept(outcome) == keeps_address), "{context}");
        }
    }
}
