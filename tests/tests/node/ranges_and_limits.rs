//! Source ranges that change, and the limit of a Service: what runs goes on, what is new is turned away.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::num::NonZeroU32;

use ipnet::IpNet;
use sluice_model::{Change, Protocol, Service, TrafficPolicy};
use sluice_testbed::lab::{Lab, Outcome, PATIENCE, SILENCE, Server, ask_on};
use sluice_tests::wait;

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, PROTOCOLS, World, service, slices};

/// A lab, and Service 1, changed by `edit`, with `pod-1` behind it.
fn world(edit: impl FnOnce(&mut Service)) -> (World, Server) {
    let mut world = World::new(Lab::new().unwrap_or_else(|error| panic!("{error}")), |_| {});
    let pod = world.lab.pod(1).clone();
    let server = pod.serve(BACKEND).unwrap();
    let mut service = service(1, TrafficPolicy::Cluster);
    edit(&mut service);
    world.apply(
        [Change::Apply(service.into())].into_iter().chain(slices(1, &[(&pod, "node")])).collect::<Vec<_>>(),
    );
    (world, server)
}

fn ranges(ranges: &[&str]) -> Option<Vec<IpNet>> {
    Some(ranges.iter().map(|range| range.parse().unwrap()).collect())
}

/// Whether a line that is sent comes back.
fn echoes(stream: &TcpStream, line: &str) -> bool {
    let (mut writer, mut back) = (stream, String::new());
    let written = writer.write_all(line.as_bytes());
    written.and_then(|()| BufReader::new(stream).read_line(&mut back)).is_ok() && back == line
}

#[test]
fn source_ranges_that_change_leave_open_connections_and_flows_alone_and_turn_new_ones_away() {
    let everybody = ranges(&["192.168.20.0/24", "fd00:20::/64"]);
    let nobody = ranges(&["192.0.2.0/24", "2001:db8::/64"]);
    let (mut world, _server) = world(|service| service.source_ranges = everybody.clone());
    let outside = world.lab.outside().clone();
    let open = FAMILIES.map(|family| {
        let to = world.address(Kind::LoadBalancer, 1, family);
        let stream = outside.tcp_stream(to, PATIENCE).unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        let flow = outside.udp_socket(to).unwrap();
        assert_eq!(ask_on(&flow, PATIENCE).by(), Some("pod-1"), "{family}");
        (family, to, stream, flow)
    });
    let opened = world.proxy().stats().udp_flows_opened;
    for (allowed, are_let_in) in [(&nobody, false), (&everybody, true), (&nobody, false)] {
        let mut changed = service(1, TrafficPolicy::Cluster);
        changed.source_ranges = allowed.clone();
        world.apply([Change::Apply(changed.into())]);
        for (family, to, stream, flow) in &open {
            for _ in 0..3 {
                assert!(echoes(stream, "still here\n"), "{family} {allowed:?}");
                assert_eq!(ask_on(flow, PATIENCE).by(), Some("pod-1"), "{family} {allowed:?}");
            }
            for protocol in PROTOCOLS {
                let patience = if are_let_in { PATIENCE } else { SILENCE };
                let outcome = outside.ask(protocol, *to, patience);
                let wanted = are_let_in.then_some("pod-1");
                assert_eq!(outcome.by(), wanted, "{family} {protocol} {allowed:?}: {outcome:?}");
                assert!(are_let_in || outcome == Outcome::Silent, "{family} {protocol}: {outcome:?}");
            }
        }
    }
    let more = world.proxy().stats().udp_flows_opened - opened;
    assert_eq!(more, 2, "those that were let in; the open ones are the same flows");
}

#[test]
fn a_service_has_as_many_udp_flows_as_it_may_and_tcp_connections_count_too() {
    let (mut world, _server) = world(|service| service.max_connections = NonZeroU32::new(3));
    let pod = world.lab.pod(0).clone();
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        let before = world.proxy().stats();
        let flows: Vec<_> = (0..2).map(|_| pod.udp_socket(to).unwrap()).collect();
        for flow in &flows {
            assert_eq!(ask_on(flow, PATIENCE).by(), Some("pod-1"), "{family}");
        }
        let stream = pod.tcp_stream(to, PATIENCE).unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        // Both protocols have one limit together: it is the Service's.
        let one_more = pod.udp_socket(to).unwrap();
        assert_eq!(ask_on(&one_more, PATIENCE), Outcome::Refused, "{family}: one more than it may have");
        let stats = world.proxy().stats();
        assert_eq!(stats.udp_over_service_limit - before.udp_over_service_limit, 1, "{family}: {stats:?}");
        wait::until("it is counted that it was told", || {
            world.proxy().stats().udp_refusals - before.udp_refusals == 1
        });
        for flow in &flows {
            assert_eq!(ask_on(flow, PATIENCE).by(), Some("pod-1"), "{family}: what is there goes on");
        }
        assert!(echoes(&stream, "still here\n"), "{family}");
        // One ends, and another one has its place.
        drop(stream);
        wait::until("the connection has ended", || world.proxy().stats().tcp_active == 0);
        assert_eq!(ask_on(&one_more, PATIENCE).by(), Some("pod-1"), "{family}");
        // All flows end with their endpoint, and so does what they count.
        world.apply(slices(1, &[]));
        let endpoint = world.lab.pod(1).clone();
        world.apply(slices(1, &[(&endpoint, "node")]));
        wait::until("the flows have ended", || world.proxy().stats().udp_flows_active == 0);
    }
    assert_eq!(
        pod.ask(Protocol::Udp, world.address(Kind::NodePort, 1, FAMILIES[0]), PATIENCE).by(),
        Some("pod-1")
    );
}
