//! Datagrams of any size, and bulk.

use sluice_model::{Family, TrafficPolicy};
use sluice_testbed::lab::PATIENCE;

use super::hosts::world;
use super::rules::Kind;
use super::world::FAMILIES;

#[test]
fn datagrams_of_any_size_and_bulk_pass_whole() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    for family in FAMILIES {
        for (host, kind) in [
            (world.lab.pod(0), Kind::ClusterIp),
            (world.lab.node(), Kind::ClusterIp),
            (world.lab.outside(), Kind::NodePort),
            (world.lab.outside(), Kind::LoadBalancer),
        ] {
            let to = world.address(kind, 1, family);
            let context = format!("{family} {} {kind:?}", host.name);
            // What a node sends itself over lo in IPv6 fragments, the kernel puts together only so far.
            let longest = if (family, host.name.as_str()) == (Family::V6, "node") { 65_000 } else { 65_507 };
            for length in [0, 2_000, 60_000, longest] {
                let echoed = host.echo_udp(to, length, PATIENCE);
                assert!(echoed.is_ok(), "{context}, {length} bytes: {echoed:?}");
            }
            let echoed = host.echo_tcp(to, 20_000_000, PATIENCE);
            assert!(echoed.is_ok(), "{context}: {echoed:?}");
        }
    }
    let stats = world.proxy().stats();
    assert_eq!((stats.udp_dropped_error, stats.udp_unroutable, stats.tcp_unroutable), (0, 0, 0), "{stats:?}");
}
