//! Datagrams of any size, bulk, and what is so little that it is one packet.

use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;

use rustix::net::{SendFlags, send};
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

#[test]
fn data_and_the_end_behind_it_come_in_one_packet_if_they_left_in_one() {
    const TIMES: usize = 8;
    // Longer than the headers, with the timestamps among TCP's options.
    const WHOLE: &str = "table inet t {
        counter whole {}
        chain in {
            type filter hook input priority 0;
            ip version 4 tcp dport 8080 tcp flags & fin == fin meta length > 52 counter name whole;
        }
    }";
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let pod = &world.lab.pod(1).ns;
    pod.nft_file(WHOLE).unwrap();
    for _ in 0..TIMES {
        let to = world.address(Kind::ClusterIp, 1, Family::V4);
        let mut stream = BufReader::new(world.lab.pod(0).tcp_stream(to, PATIENCE).unwrap());
        let mut said = String::new();
        stream.read_line(&mut said).unwrap();
        send(stream.get_ref(), b"x\n", SendFlags::MORE).unwrap();
        stream.get_ref().shutdown(Shutdown::Write).unwrap();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.ends_with("\nx\n"), "{said}");
    }
    let counted = pod.nft("list counter inet t whole").unwrap();
    let packets = counted.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    // One that is sent again counts again.
    assert!(packets.is_some_and(|packets: usize| packets >= TIMES), "{counted}");
}
