//! Connections of clients across changes: balancing and passive health as a whole.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::{Balance, Selection, SourceAddress, Upstream};

pub(super) const EXTERNAL: [u8; 4] = [198, 51, 100, 1];

pub(super) fn from(n: u8) -> Client {
    Client { ip: [10, 1, 0, n].into(), origin: Origin::LocalPod }
}

/// The last octet of an endpoint.
pub(super) fn octet(upstream: &Upstream) -> u8 {
    match upstream.address().ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => panic!("no IPv6 here"),
    }
}

/// A writer with `web` on a cluster IP and a nodePort, endpoints 1 to 3, changed by `edit`.
pub(super) fn scene(edit: impl FnOnce(&mut Service)) -> (Writer, Reader) {
    let mut web = service("web", 1, WEB);
    web.external_ips = vec![[198, 51, 100, 1].into()];
    edit(&mut web);
    let mut writer = writer();
    step(&mut writer, [apply(web), apply(slice("web-a", "web", &[1, 2, 3]))]);
    let reader = writer.table().reader();
    (writer, reader)
}

pub(super) fn select(
    reader: &mut Reader,
    key: FrontendKey,
    client: Client,
    now: Instant,
) -> (Selection, Arc<Upstream>) {
    let mut selection = reader.lookup(key).unwrap().select(client, now).unwrap();
    let upstream = selection.next(now).unwrap();
    (selection, upstream)
}

#[test]
fn a_hairpin_gets_the_nodes_address_and_only_towards_itself() {
    let (_writer, mut reader) = scene(|_| {});
    let client = Client { ip: [10, 0, 0, 2].into(), origin: Origin::LocalPod };
    let sources: Vec<_> = (0..3)
        .map(|_| {
            let (selection, upstream) = select(&mut reader, key(WEB), client, Instant::now());
            (octet(&upstream), selection.source_address(&upstream))
        })
        .collect();
    assert_eq!(sources, [(1, SourceAddress::Client), (2, SourceAddress::Node), (3, SourceAddress::Client)]);
}

#[test]
fn a_process_of_the_node_sees_a_client_from_outside_as_long_as_the_address_is_the_nodes() {
    let (mut writer, mut reader) = scene(|_| {});
    let outside = Client { ip: [192, 0, 2, 9].into(), origin: Origin::Outside };
    let mut sources = || {
        let mut sources: Vec<_> = (0..3)
            .map(|_| {
                let (selection, upstream) = select(&mut reader, key(EXTERNAL), outside, Instant::now());
                (octet(&upstream), selection.source_address(&upstream))
            })
            .collect();
        sources.sort_unstable_by_key(|(endpoint, _)| *endpoint);
        sources.into_iter().map(|(_, source)| source).collect::<Vec<_>>()
    };
    use SourceAddress::{Client as Own, Node};
    assert_eq!(sources(), [Node, Node, Node]);
    writer.set_interfaces([[127, 0, 0, 1].into(), [10, 0, 0, 2].into()]);
    assert_eq!(sources(), [Node, Own, Node]);
    writer.apply(apply(slice("web-a", "web", &[2, 3, 4])));
    assert_eq!(sources(), [Own, Node, Node], "an endpoint that stays, and one that is new");
    writer.set_interfaces([[127, 0, 0, 1].into(), [10, 0, 0, 4].into()]);
    assert_eq!(sources(), [Node, Node, Own]);
}

#[test]
fn where_frontends_are_listened_on_a_process_of_the_node_sees_the_nodes_address_as_everybody_does() {
    let mut writer = Writer::new(WriterConfig::new("here"));
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1]))]);
    writer.set_interfaces([[10, 0, 0, 1].into()]);
    let mut reader = writer.table().reader();
    let (selection, upstream) = select(&mut reader, key(WEB), from(1), Instant::now());
    assert_eq!(selection.source_address(&upstream), SourceAddress::Node);
}

#[test]
fn a_process_of_the_node_that_refuses_clients_from_outside_is_passed_over_for_them() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|_| {});
    writer.set_interfaces([[10, 0, 0, 2].into()]);
    for n in 1..=3 {
        let client = Client { origin: Origin::Outside, ..from(n) };
        let mut selection = reader.lookup(key(EXTERNAL)).unwrap().select(client, now).unwrap();
        while let Some(upstream) = selection.next(now) {
            if octet(&upstream) == 2 {
                selection.fail(&upstream, Heard::Refusal, now);
            } else {
                selection.skip(&upstream);
            }
        }
    }
    let client = Client { origin: Origin::Outside, ..from(9) };
    let picked = [(); 4].map(|()| octet(&select(&mut reader, key(EXTERNAL), client, now).1));
    assert!(!picked.contains(&2), "{picked:?}");
}

#[test]
fn endpoints_that_are_not_tried_take_no_attempt_from_others() {
    let now = Instant::now();
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let endpoints: Vec<u8> = (1..=10).collect();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &endpoints))]);
    let mut name = |is_tried: fn(u8) -> bool| {
        let mut selection = reader.lookup(key(WEB)).unwrap().select(from(1), now).unwrap();
        let mut named = Vec::new();
        while let Some(upstream) = selection.next(now) {
            named.push(octet(&upstream));
            match is_tried(octet(&upstream)) {
                true => selection.skip(&upstream),
                false => selection.pass_by(&upstream),
            }
        }
        named
    };
    assert_eq!(name(|_| true).len(), 4);
    let mut named = name(|n| n == 10);
    named.sort_unstable();
    assert_eq!(named, endpoints, "each once, and the last one that there is too");
    let many: Vec<u8> = (1..=100).collect();
    step(&mut writer, [apply(slice("web-a", "web", &many))]);
    let mut selection = reader.lookup(key(WEB)).unwrap().select(from(1), now).unwrap();
    let named = std::iter::from_fn(|| selection.next(now).inspect(|upstream| selection.pass_by(upstream)));
    assert_eq!(named.count(), 16);
}

#[test]
fn an_endpoint_that_was_silent_for_a_client_is_tried_last_for_that_client_and_for_a_while() {
    let start = Instant::now();
    let (_writer, mut reader) = scene(|_| {});
    let (mut selection, silent) = select(&mut reader, key(WEB), from(1), start);
    selection.fail(&silent, Heard::Nothing, start);
    let next = selection.next(start).unwrap();
    let _lease = selection.connected(&next, start);
    let silent = octet(&silent);
    let mut picks = |n, seconds| {
        let now = start + Duration::from_secs(seconds);
        [(); 6].map(|()| octet(&select(&mut reader, key(WEB), from(n), now).1))
    };
    assert!(!picks(1, 9).contains(&silent), "others are there");
    assert!(picks(2, 9).contains(&silent), "for another client nothing has changed");
    // If there is no other endpoint, it is tried nevertheless.
    let (mut selection, _) = select(&mut reader, key(WEB), from(1), start);
    let mut named = Vec::new();
    while let Some(upstream) = selection.next(start) {
        named.push(octet(&upstream));
        selection.skip(&upstream);
    }
    assert_eq!(named.last(), Some(&silent), "{named:?}");
    let later = start + Duration::from_secs(11);
    let picks = [(); 6].map(|()| octet(&select(&mut reader, key(WEB), from(1), later).1));
    assert!(picks.contains(&silent), "it is asked again");
}

#[test]
fn least_connections_counts_those_under_way() {
    let now = Instant::now();
    let (_writer, mut reader) =
        scene(|web| _ = web.annotations.insert("balance".into(), "least-connections".into()));
    let mut open: Vec<_> = (0..6).map(|_| select(&mut reader, key(WEB), from(1), now)).collect();
    let octets = |open: &[(Selection, Arc<Upstream>)]| open.iter().map(|(_, u)| octet(u)).collect::<Vec<_>>();
    assert_eq!(octets(&open), [1, 2, 3, 1, 2, 3], "none is established yet");
    open.retain(|(_, upstream)| octet(upstream) != 3);
    let picks: Vec<_> = (0..2).map(|_| select(&mut reader, key(WEB), from(1), now)).collect();
    assert_eq!(octets(&picks), [3, 3]);
    let leases: Vec<_> = open.into_iter().chain(picks).map(|(mut s, u)| s.connected(&u, now)).collect();
    assert!(leases.iter().all(|lease| lease.stats().connecting.load(Ordering::Relaxed) == 0));
    assert!(leases.iter().all(|lease| lease.stats().active.load(Ordering::Relaxed) == 2));
}

#[test]
fn an_attempt_that_failed_is_under_way_no_more() {
    let now = Instant::now();
    let (_writer, mut reader) =
        scene(|web| _ = web.annotations.insert("balance".into(), "least-connections".into()));
    let connecting = |upstream: &Upstream| upstream.stats().connecting.load(Ordering::Relaxed);
    let (mut selection, first) = select(&mut reader, key(WEB), from(1), now);
    assert_eq!(connecting(&first), 1);
    selection.fail(&first, Heard::Refusal, now);
    assert_eq!(connecting(&first), 0);
    let second = selection.next(now).unwrap();
    assert_eq!((connecting(&first), connecting(&second)), (0, 1));
    drop(selection);
    assert_eq!(connecting(&second), 0);
}

#[test]
fn a_random_service_meets_every_endpoint() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|web| _ = web.annotations.insert("balance".into(), "random".into()));
    let mut counts = [0; 4];
    (0..3_000).for_each(|_| counts[usize::from(octet(&select(&mut reader, key(WEB), from(1), now).1))] += 1);
    assert!(counts[1..].iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
}

#[test]
fn source_hash_sends_a_client_to_one_endpoint_on_every_node() {
    let now = Instant::now();
    let hashed = |web: &mut Service| _ = web.annotations.insert("balance".into(), "source-hash".into());
    let ((_here, mut reader), (_there, mut other)) = (scene(hashed), scene(hashed));
    let mut seen = BTreeSet::new();
    for n in 0..100 {
        let endpoint = octet(&select(&mut reader, key(WEB), from(n), now).1);
        assert_eq!(octet(&select(&mut reader, key(EXTERNAL), from(n), now).1), endpoint);
        assert_eq!(octet(&select(&mut other, key(WEB), from(n), now).1), endpoint);
        seen.insert(endpoint);
    }
    assert_eq!(seen.len(), 3);
}

/// Connects with a client until it gets endpoint 2, and fails there.
fn fail_endpoint_2(reader: &mut Reader, client: Client, heard: Heard, now: Instant) -> Arc<Upstream> {
    loop {
        let (mut selection, upstream) = select(reader, key(WEB), client, now);
        if octet(&upstream) == 2 {
            selection.fail(&upstream, heard, now);
            return upstream;
        }
    }
}

/// How often each endpoint is chosen for 100 connections.
fn meetings(reader: &mut Reader, client: Client, now: Instant) -> [u8; 4] {
    let mut counts = [0; 4];
    (0..100).for_each(|_| counts[usize::from(octet(&select(reader, key(WEB), client, now).1))] += 1);
    counts
}

#[test]
fn an_endpoint_that_keeps_failing_is_passed_over_and_its_share_spreads_evenly() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|_| {});
    (1..=2).for_each(|n| _ = fail_endpoint_2(&mut reader, from(n), Heard::Refusal, now));
    let upstream = fail_endpoint_2(&mut reader, from(3), Heard::Refusal, now);
    let seen = SourceAddress::Client;
    assert_eq!(upstream.passed_over_for(seen, now), Some(Duration::from_secs(1)));
    assert_eq!(upstream.stats().passed_over.load(Ordering::Relaxed), 1);
    assert_eq!(meetings(&mut reader, from(1), now), [0, 50, 0, 50]);
    let later = now + Duration::from_secs(1);
    let picks: BTreeSet<_> =
        (0..3).map(|_| octet(&select(&mut reader, key(WEB), from(1), later).1)).collect();
    assert_eq!(picks, BTreeSet::from([1, 2, 3]), "tried again");
    let (mut selection, _) = select(&mut reader, key(WEB), from(1), later);
    let _lease = selection.connected(&upstream, later);
    assert_eq!((upstream.passed_over_for(seen, now), upstream.failures_in_a_row(seen)), (None, 0));
}

#[test]
fn a_client_that_a_policy_denies_takes_the_endpoint_from_nobody() {
    let now = Instant::now();
    for heard in [Heard::Refusal, Heard::Nothing] {
        let (_writer, mut reader) = scene(|_| {});
        // Far enough apart that an endpoint that did not answer is tried again.
        let later = |n: u32| now + n * Duration::from_secs(11);
        (0..50).for_each(|n| _ = fail_endpoint_2(&mut reader, from(1), heard, later(n)));
        for client in [from(2), Client { origin: Origin::Node, ..from(3) }] {
            assert!(meetings(&mut reader, client, later(49))[2] >= 33, "{heard:?} {client:?}");
        }
        assert!(meetings(&mut reader, from(1), later(50))[2] >= 33, "{heard:?}");
    }
}

#[test]
fn what_fails_with_the_nodes_address_is_passed_over_with_the_nodes_address() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|_| {});
    let node = Client { origin: Origin::Node, ..from(1) };
    (0..3).for_each(|_| _ = fail_endpoint_2(&mut reader, node, Heard::Nothing, now));
    assert_eq!(meetings(&mut reader, node, now), [0, 50, 0, 50]);
    assert!(meetings(&mut reader, from(2), now)[2] >= 33);
}

#[test]
fn where_all_would_be_passed_over_none_is() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|_| {});
    let route = Arc::clone(reader.lookup(key(WEB)).unwrap());
    for n in 1..=3 {
        let mut selection = route.select(from(n), now).unwrap();
        while let Some(upstream) = selection.next(now) {
            selection.fail(&upstream, Heard::Refusal, now);
        }
    }
    let backends = route.service_port().backends();
    assert!(
        backends
            .cluster()
            .upstreams()
            .iter()
            .all(|upstream| upstream.passed_over_for(SourceAddress::Client, now).is_some())
    );
    let mut selection = route.select(from(1), now).unwrap();
    let mut tried = BTreeSet::new();
    while let Some(upstream) = selection.next(now) {
        assert!(tried.insert(octet(&upstream)));
        selection.fail(&upstream, Heard::Refusal, now);
    }
    assert_eq!(tried.len(), 2, "two are enough to find out whether it is over");
}

#[test]
fn a_connection_is_led_to_four_endpoints_at_most() {
    for balance in Balance::ALL {
        let now = Instant::now();
        let (mut writer, mut reader) =
            scene(|web| _ = web.annotations.insert("balance".into(), balance.name().into()));
        writer.apply(apply(slice("web-a", "web", &(1..=200).collect::<Vec<_>>())));
        let (mut selection, mut upstream) = select(&mut reader, key(WEB), from(1), now);
        let mut tried = BTreeSet::new();
        loop {
            assert!(tried.insert(octet(&upstream)));
            selection.fail(&upstream, Heard::Refusal, now);
            match selection.next(now) {
                Some(next) => upstream = next,
                None => break,
            }
        }
        assert_eq!(tried.len(), 4, "{balance}");
    }
}

#[test]
fn the_only_endpoint_left_has_no_other() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|_| {});
    writer.apply(apply(slice("web-a", "web", &[1, 2])));
    let (mut selection, first) = select(&mut reader, key(WEB), from(1), now);
    selection.fail(&first, Heard::Refusal, now);
    let second = selection.next(now).unwrap();
    selection.fail(&second, Heard::Nothing, now);
    assert!(selection.next(now).is_none());
    writer.apply(apply(slice("web-a", "web", &[1, 2, 3])));
    assert!(selection.next(now).is_some(), "one that has come in the meantime");
}

#[test]
fn endpoints_that_are_passed_over_are_the_last_resort_of_a_retry() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|_| {});
    (1..=3).for_each(|n| _ = fail_endpoint_2(&mut reader, from(n), Heard::Refusal, now));
    let (mut selection, mut upstream) = select(&mut reader, key(WEB), from(1), now);
    let mut order = vec![octet(&upstream)];
    loop {
        selection.fail(&upstream, Heard::Refusal, now);
        match selection.next(now) {
            None => break,
            Some(next) => upstream = next,
        }
        order.push(octet(&upstream));
    }
    assert!(order == [1, 3, 2] || order == [3, 1, 2], "{order:?}");
}

#[test]
fn passive_health_can_be_switched_off() {
    let now = Instant::now();
    let mut writer = Writer::new(WriterConfig { passive_health: false, ..WriterConfig::new("here") });
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1]))]);
    let mut reader = writer.table().reader();
    for n in 1..=5 {
        let (mut selection, upstream) = select(&mut reader, key(WEB), from(n), now);
        selection.fail(&upstream, Heard::Refusal, now);
        assert_eq!(upstream.passed_over_for(SourceAddress::Node, now), None);
    }
    let upstream = select(&mut reader, key(WEB), from(1), now).1;
    assert_eq!(upstream.stats().connect_failures.load(Ordering::Relaxed), 5);
}

#[test]
fn opening_a_udp_flow_proves_nothing_but_its_answer_does() {
    let now = Instant::now();
    let mut web = service("web", 1, WEB);
    web.ports[0].protocol = Protocol::Udp;
    let mut web_slice = slice("web-a", "web", &[1]);
    web_slice.ports[0].protocol = Protocol::Udp;
    let mut writer = writer();
    step(&mut writer, [apply(web), apply(web_slice)]);
    let mut reader = writer.table().reader();
    let key = FrontendKey::new(WEB.into(), 80, Protocol::Udp);
    let leases: Vec<_> = (1..=3)
        .map(|n| {
            let (mut selection, upstream) = select(&mut reader, key, from(n), now);
            let lease = selection.connected(&upstream, now);
            lease.refused(now);
            lease
        })
        .collect();
    assert!(leases[0].passed_over_for(SourceAddress::Client, now).is_some());
    leases[0].answered();
    assert!(leases[0].passed_over_for(SourceAddress::Client, now).is_none());
}

#[test]
fn a_retry_sees_the_endpoints_as_they_are_by_then() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|_| {});
    let (mut selection, first) = select(&mut reader, key(WEB), from(1), now);
    writer.apply(apply(slice("web-a", "web", &[1, 9])));
    selection.fail(&first, Heard::Refusal, now);
    assert_eq!(selection.next(now).map(|upstream| octet(&upstream)), Some(9));
    writer.apply(apply(slice("web-a", "web", &[])));
    assert!(selection.next(now).is_none());
}

#[test]
fn a_service_has_no_more_connections_than_its_limit_over_all_ports_and_addresses() {
    let now = Instant::now();
    let limited = |max| {
        let mut web = service("web", 1, WEB);
        web.external_ips = vec![EXTERNAL.into()];
        web.ports.push(ServicePort { name: "other".into(), port: 81, ..web.ports[0].clone() });
        web.max_connections = NonZeroU32::new(max);
        web
    };
    let mut web_slice = slice("web-a", "web", &[1, 2, 3]);
    web_slice.ports.push(SlicePort { name: "other".into(), ..web_slice.ports[0].clone() });
    let mut writer = writer();
    step(&mut writer, [apply(limited(3)), apply(web_slice)]);
    let mut reader = writer.table().reader();
    let other = FrontendKey::new(WEB.into(), 81, Protocol::Tcp);
    let is_over = |reader: &mut Reader, key| {
        let selected = reader.lookup(key).unwrap().select(from(1), now);
        selected.is_err_and(|rejection| {
            assert_eq!(rejection.verdict, Verdict::Refuse(Reason::TooManyConnections));
            rejection.is_limit()
        })
    };
    let (mut first, upstream) = select(&mut reader, key(WEB), from(1), now);
    let second = select(&mut reader, key(EXTERNAL), from(2), now);
    let third = select(&mut reader, other, from(3), now);
    assert!(is_over(&mut reader, key(WEB)) && is_over(&mut reader, other));
    let lease = first.connected(&upstream, now);
    drop(first);
    assert!(is_over(&mut reader, key(WEB)), "it goes on");
    drop(lease);
    assert!(!is_over(&mut reader, key(WEB)));
    // A changed limit takes existing connections into account.
    writer.apply(apply(limited(2)));
    assert!(is_over(&mut reader, key(WEB)), "two are under way");
    drop(second);
    assert!(!is_over(&mut reader, key(WEB)));
    writer.apply(apply(limited(0)));
    let many: Vec<_> = (0..10).map(|n| select(&mut reader, key(WEB), from(n), now)).collect();
    writer.apply(apply(limited(1)));
    assert!(is_over(&mut reader, key(WEB)), "the third is under way; those without a limit do not count");
    drop((third, many));
    assert!(!is_over(&mut reader, key(WEB)));
}

#[test]
fn readers_know_for_which_families_pods_are_told_from_others() {
    let config = WriterConfig { local_pods: LocalPods::DetectedByNodeCidrs, ..WriterConfig::new("here") };
    let mut writer = Writer::new(config);
    let reader = writer.table().reader();
    let told = || [Family::V4, Family::V6].map(|family| reader.detects_local_pods(family));
    assert_eq!(told(), [false, false]);
    let node = Node {
        name: "here".into(),
        zone: None,
        addresses: Vec::new(),
        pod_cidrs: vec!["fd00:244::/64".parse().unwrap()],
        eligible: true,
    };
    writer.apply(apply(node));
    assert_eq!(told(), [false, true]);
    writer.apply(Change::Delete(ObjectRef::Node("here".into())));
    assert_eq!(told(), [false, true], "its pods are where they were");
    let writer = Writer::new(WriterConfig::new("here"));
    assert!(writer.table().reader().detects_local_pods(Family::V6), "from the start");
}
