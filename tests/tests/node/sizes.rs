//! Datagrams of any size, bulk, and what is so little that it is one packet.

use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, TcpListener};

use rustix::net::{SendFlags, send};
use sluice_model::{Family, TrafficPolicy};
use sluice_testbed::lab::{Host, PATIENCE};

use super::hosts::world;
use super::rules::Kind;
use super::world::{BACKEND, FAMILIES};

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

/// How often what leaves in one packet is sent.
const TIMES: usize = 8;

/// Has a host count the TCP packets of a port that are an end and bytes before it: longer than the headers, with the
/// timestamps among TCP's options.
fn count_whole(host: &Host, port: &str) {
    let is_whole = format!("tcp {port} tcp flags & fin == fin meta length");
    let rules = format!(
        "table inet t {{
            counter whole {{}}
            chain in {{
                type filter hook input priority 0;
                ip version 4 {is_whole} > 52 counter name whole;
                ip6 version 6 {is_whole} > 72 counter name whole;
            }}
        }}"
    );
    host.ns.nft_file(&rules).unwrap();
}

/// How many there were since the last look.
fn whole(host: &Host) -> usize {
    let counted = host.ns.nft("reset counter inet t whole").unwrap();
    let packets = counted.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    packets.unwrap_or_else(|| panic!("{counted}"))
}

#[test]
fn what_a_client_sends_and_the_end_behind_it_come_in_one_packet_if_they_left_in_one() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    count_whole(world.lab.pod(1), "dport 8080");
    for family in FAMILIES {
        for _ in 0..TIMES {
            let to = world.address(Kind::ClusterIp, 1, family);
            let mut stream = BufReader::new(world.lab.pod(0).tcp_stream(to, PATIENCE).unwrap());
            let mut said = String::new();
            stream.read_line(&mut said).unwrap();
            send(stream.get_ref(), b"x\n", SendFlags::MORE).unwrap();
            stream.get_ref().shutdown(Shutdown::Write).unwrap();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.ends_with("\nx\n"), "{said}");
        }
        // One that is sent again counts again.
        let packets = whole(world.lab.pod(1));
        assert!(packets >= TIMES, "{family}: {packets}");
    }
}

#[test]
fn what_an_endpoint_sends_and_the_end_behind_it_come_in_one_packet_if_they_left_in_one() {
    let (world, servers) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    // Whoever answers here ends first, or last.
    drop(servers);
    let (client_pod, endpoint_pod) = (world.lab.pod(0), world.lab.pod(1));
    count_whole(client_pod, "sport 80");
    for family in FAMILIES {
        let at = (endpoint_pod.ip(family), BACKEND);
        let listener = endpoint_pod.ns.run(|| TcpListener::bind(at)).unwrap();
        for client_has_ended in [true, false] {
            for _ in 0..TIMES {
                let to = world.address(Kind::ClusterIp, 1, family);
                let mut client = client_pod.tcp_stream(to, PATIENCE).unwrap();
                let (mut endpoint, _) = listener.accept().unwrap();
                endpoint.set_read_timeout(Some(PATIENCE)).unwrap();
                if client_has_ended {
                    client.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(endpoint.read(&mut [0]).unwrap(), 0);
                }
                send(&endpoint, b"x", SendFlags::MORE).unwrap();
                endpoint.shutdown(Shutdown::Write).unwrap();
                let mut said = String::new();
                client.read_to_string(&mut said).unwrap();
                assert_eq!(said, "x");
                if !client_has_ended {
                    client.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(endpoint.read(&mut [0]).unwrap(), 0);
                }
            }
            let packets = whole(client_pod);
            assert!(packets >= TIMES, "{family}, the client has ended: {client_has_ended}; {packets}");
        }
    }
}
