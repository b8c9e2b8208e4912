//! Endpoints that this node has no route to: others are tried first for a second, and no failure is counted.

use std::time::Duration;

use super::connections::{EXTERNAL, from, octet, scene};
use super::*;
use crate::{Balance, SourceAddress};

/// A writer with `web`, endpoints 1 to 21, and this balancing policy.
fn scene_of_21(balance: Balance) -> (Writer, Reader) {
    let (mut writer, reader) =
        scene(|web| _ = web.annotations.insert("balance".into(), balance.name().into()));
    let endpoints: Vec<u8> = (1..=21).collect();
    step(&mut writer, [apply(slice("web-a", "web", &endpoints))]);
    (writer, reader)
}

/// Connects with a client while only these endpoints have a route. Returns how many others were tried, and
/// the endpoint that it got.
fn connect(
    reader: &mut Reader,
    frontend: FrontendKey,
    client: Client,
    with_route: &[u8],
    now: Instant,
) -> (usize, Option<u8>) {
    let mut selection = reader.lookup(frontend).unwrap().select(client, now).unwrap();
    let mut tried = 0;
    while let Some(upstream) = selection.next(now) {
        if with_route.contains(&octet(&upstream)) {
            drop(selection.connected(&upstream, now));
            return (tried, Some(octet(&upstream)));
        }
        selection.no_route(&upstream, now);
        tried += 1;
    }
    (tried, None)
}

#[test]
fn one_of_many_endpoints_that_alone_can_be_reached_is_found_and_the_others_are_tried_once_a_second() {
    for balance in Balance::ALL {
        let (_writer, mut reader) = scene_of_21(balance);
        let start = Instant::now();
        for after in [0, 2, 4] {
            let now = start + Duration::from_secs(after);
            let connections: Vec<_> =
                (0..60).map(|n| connect(&mut reader, key(WEB), from(n), &[21], now)).collect();
            assert!(connections.iter().all(|(tried, _)| *tried <= 4), "{balance}: {connections:?}");
            let tried: usize = connections.iter().map(|(tried, _)| tried).sum();
            assert!(tried <= 20, "{balance}: {connections:?}");
            let in_vain = connections.iter().filter(|(_, got)| got.is_none()).count();
            assert!(in_vain <= 5, "{balance}: {connections:?}");
        }
        let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
        let traffic = port.traffic();
        assert_eq!((traffic.failures, traffic.passed_over), (0, 0), "{balance}: none is blamed");
        let is_passed_over = |upstream: &Arc<crate::Upstream>| {
            upstream.passed_over_for(SourceAddress::Client, start + Duration::from_secs(4)).is_some()
        };
        assert!(!port.endpoints().iter().any(is_passed_over), "{balance}");
    }
}

#[test]
fn while_there_is_a_way_to_none_each_connection_tries_one_and_the_first_success_is_known_to_all() {
    let (_writer, mut reader) = scene_of_21(Balance::RoundRobin);
    let now = Instant::now();
    let mut connect = |with_route: &[u8]| connect(&mut reader, key(WEB), from(1), with_route, now);
    (0..6).for_each(|_| _ = connect(&[]));
    assert_eq!([(); 50].map(|()| connect(&[])), [(1, None); 50]);
    assert!((0..1_000).any(|_| connect(&[7]).1 == Some(7)), "each is asked now and then");
    assert_eq!([(); 50].map(|()| connect(&[7])), [(0, Some(7)); 50]);
}

#[test]
fn what_is_known_of_the_nodes_way_is_not_said_of_clients() {
    let (_writer, mut reader) = scene(|_| {});
    let (now, outside) = (Instant::now(), Client { origin: Origin::Outside, ..from(1) });
    let mut connect =
        |frontend, client, with_route: &[u8]| connect(&mut reader, key(frontend), client, with_route, now);
    // Two are known to have no route from the node's address, which says nothing about clients' own
    // addresses.
    (0..3).for_each(|_| _ = connect(EXTERNAL, outside, &[3]));
    assert_eq!([(); 6].map(|()| connect(EXTERNAL, outside, &[3])), [(0, Some(3)); 6]);
    let got: BTreeSet<_> = (0..3).map(|_| connect(WEB, from(1), &[1, 2, 3]).1).collect();
    assert_eq!(got, [1, 2, 3].map(Some).into());
}

#[test]
fn one_that_has_failed_is_asked_before_one_that_there_is_no_way_to() {
    let now = Instant::now();
    // Often enough to rule out chance.
    for _ in 0..30 {
        let (_writer, mut reader) = scene(|_| {});
        // Endpoint 3 refuses all connections, and is the only one with a route.
        for n in 1..=6 {
            let mut selection = reader.lookup(key(WEB)).unwrap().select(from(n), now).unwrap();
            while let Some(upstream) = selection.next(now) {
                match octet(&upstream) {
                    3 => selection.fail(&upstream, Heard::Refusal, now),
                    _ => selection.no_route(&upstream, now),
                }
            }
        }
        assert_eq!(connect(&mut reader, key(WEB), from(9), &[3], now), (0, Some(3)));
    }
}

#[test]
fn a_client_that_keeps_its_endpoint_gets_another_one_when_somebody_has_found_no_way_there() {
    let (_writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(60)));
    let now = Instant::now();
    let (_, kept) = connect(&mut reader, key(WEB), from(1), &[1, 2, 3], now);
    let others: Vec<u8> = (1..=3).filter(|n| Some(*n) != kept).collect();
    (2..=4).for_each(|n| _ = connect(&mut reader, key(WEB), from(n), &others, now));
    let (tried, other) = connect(&mut reader, key(WEB), from(1), &others, now);
    assert_eq!(tried, 0);
    assert!(other.is_some_and(|other| others.contains(&other)), "{other:?}");
    assert_eq!(connect(&mut reader, key(WEB), from(1), &others, now), (0, other), "and keeps that");
}

#[test]
fn where_failures_are_not_looked_at_there_are_ways_all_the_same() {
    let mut writer = Writer::new(WriterConfig { passive_health: false, ..WriterConfig::new("here") });
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1, 2, 3]))]);
    let (mut reader, now) = (writer.table().reader(), Instant::now());
    (0..3).for_each(|_| _ = connect(&mut reader, key(WEB), from(1), &[3], now));
    assert_eq!([(); 6].map(|()| connect(&mut reader, key(WEB), from(1), &[3], now)), [(0, Some(3)); 6]);
}
