//! Session affinity across changes of objects.

use std::time::Duration;

use super::connections::{EXTERNAL, from, octet, scene, select};
use super::*;

#[test]
fn affinity_is_shared_by_all_addresses_and_survives_changes_of_others() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    let mut pick = |key, n, now| octet(&select(&mut reader, key, from(n), now).1);
    assert_eq!([1, 2, 3, 1].map(|n| pick(key(WEB), n, now)), [1, 2, 3, 1]);
    assert_eq!([1, 2, 3].map(|n| pick(key(EXTERNAL), n, now)), [1, 2, 3]);
    writer.apply(apply(slice("web-a", "web", &[2, 3, 4, 5])));
    assert_eq!([2, 3].map(|n| pick(key(WEB), n, now)), [2, 3]);
    assert_eq!(pick(key(EXTERNAL), 1, now), pick(key(WEB), 1, now), "moved, and stays there");
}

#[test]
fn affinity_goes_with_its_endpoint_even_if_that_comes_back() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    assert_eq!(octet(&select(&mut reader, key(WEB), from(1), now).1), 1);
    let mut unready = slice("web-a", "web", &[1, 2, 3]);
    (unready.endpoints[0].ready, unready.endpoints[0].serving) = (false, false);
    writer.apply(apply(unready));
    writer.apply(apply(slice("web-a", "web", &[1, 2, 3])));
    assert_ne!(octet(&select(&mut reader, key(WEB), from(1), now).1), 1);
}

#[test]
fn affinity_does_not_carry_a_client_past_the_policy() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| {
        web.affinity = Some(Duration::from_secs(100));
        web.external_policy = TrafficPolicy::Local;
    });
    let mut mixed = slice("web-a", "web", &[1, 2, 3]);
    mixed.endpoints[2].node = Some("here".into());
    writer.apply(apply(mixed));
    let client = Client { origin: Origin::Outside, ..from(1) };
    assert_eq!(octet(&select(&mut reader, key(WEB), client, now).1), 1, "policy Cluster");
    assert_eq!(octet(&select(&mut reader, key(EXTERNAL), client, now).1), 3, "policy Local");
    assert_eq!(octet(&select(&mut reader, key(WEB), client, now).1), 1, "and keeps what it had");
}

#[test]
fn a_client_keeps_an_endpoint_of_each_set_where_neither_is_in_both() {
    let start = Instant::now();
    let (mut writer, mut reader) = scene(|web| {
        web.affinity = Some(Duration::from_secs(100));
        web.external_policy = TrafficPolicy::Local;
    });
    // The endpoint on this node is hinted to another zone.
    let mut hinted = slice("web-a", "web", &[1, 2, 3]);
    for (endpoint, zone) in hinted.endpoints.iter_mut().zip(["z1", "z1", "z2"]) {
        endpoint.zone_hints = Box::from([zone.into()]);
    }
    hinted.endpoints[2].node = Some("here".into());
    let node = Node {
        name: "here".into(),
        zone: Some("z1".into()),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    writer.apply_all([apply(node), apply(hinted.clone())]);
    let outside = |n| Client { origin: Origin::Outside, ..from(n) };
    let both = |reader: &mut Reader, n, at| {
        let now = start + Duration::from_secs(at);
        [WEB, EXTERNAL].map(|ip| octet(&select(reader, key(ip), outside(n), now).1))
    };
    let seen: Vec<_> = [0, 40, 80, 120].map(|at| both(&mut reader, 1, at)).into();
    assert_eq!(seen, [[1, 3]; 4]);
    let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
    assert_eq!(port.affinity().unwrap().len(), 2);
    // When the one endpoint goes, the client still keeps the other one.
    hinted.endpoints.drain(..2);
    writer.apply(apply(hinted));
    assert_eq!(both(&mut reader, 1, 130), [3, 3]);
    writer.expire_affinity(start + Duration::from_secs(230));
    assert!(port.affinity().unwrap().is_empty());
}

#[test]
fn a_client_comes_back_to_its_endpoint_after_two_hundred_thousand_others() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    let client = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        Client { ip: [10, a, b, c].into(), origin: Origin::Outside }
    };
    let first = octet(&select(&mut reader, key(WEB), client(0), now).1);
    (1..200_000).for_each(|n| _ = select(&mut reader, key(WEB), client(n), now));
    let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
    assert_eq!((port.affinity().unwrap().len(), port.affinity().unwrap().evicted()), (200_000, 0));
    assert_eq!(octet(&select(&mut reader, key(WEB), client(0), now).1), first);
}

#[test]
fn affinity_that_is_switched_off_is_forgotten() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
    select(&mut reader, key(WEB), from(1), now);
    writer.apply(apply(service("web", 1, WEB)));
    let picks = [0; 4].map(|_| octet(&select(&mut reader, key(WEB), from(1), now).1));
    assert_eq!(picks, [2, 3, 1, 2]);
    let again = Service { affinity: Some(Duration::from_secs(100)), ..service("web", 1, WEB) };
    writer.apply(apply(again));
    assert_eq!(octet(&select(&mut reader, key(WEB), from(1), now).1), 3, "not the one it had");
    writer.apply(apply(service("web", 1, WEB)));
    writer.expire_affinity(now);
    assert_eq!(port.affinity().unwrap().len(), 0);
}

#[test]
fn a_client_whose_endpoint_fails_keeps_the_one_that_answered() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    let (mut selection, first) = select(&mut reader, key(WEB), from(1), now);
    selection.fail(&first, Heard::Refusal, now);
    let second = selection.next(now).unwrap();
    let _lease = selection.connected(&second, now);
    assert_ne!(octet(&first), octet(&second));
    assert_eq!(octet(&select(&mut reader, key(EXTERNAL), from(1), now).1), octet(&second));
}

#[test]
fn the_table_forgets_idle_clients() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    (1..=20).for_each(|n| _ = select(&mut reader, key(WEB), from(n), now));
    let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
    writer.expire_affinity(now + Duration::from_secs(99));
    assert_eq!(port.affinity().unwrap().len(), 20);
    writer.expire_affinity(now + Duration::from_secs(100));
    assert_eq!(port.affinity().unwrap().len(), 0);
}

#[test]
fn an_ipv4_client_of_a_dual_stack_socket_is_the_same_client() {
    let now = Instant::now();
    let (_writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    let mapped = Client { ip: "::ffff:10.1.0.1".parse().unwrap(), origin: Origin::LocalPod };
    let first = octet(&select(&mut reader, key(WEB), mapped, now).1);
    assert_eq!(octet(&select(&mut reader, key(WEB), from(1), now).1), first);
}

#[test]
fn a_look_over_the_clients_of_a_port_is_one_look_however_many_addresses_it_has() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| {
        web.affinity = Some(Duration::from_secs(100));
        web.external_ips.push([198, 51, 100, 2].into());
    });
    for [high, low] in (0..3_000_u16).map(u16::to_be_bytes) {
        let client = Client { ip: [10, 1, high, low].into(), origin: Origin::LocalPod };
        select(&mut reader, key(WEB), client, now);
    }
    let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
    assert_eq!(port.affinity().unwrap().len(), 3_000);
    writer.expire_affinity(now + Duration::from_secs(100));
    assert_eq!(port.affinity().unwrap().len(), 3_000 - 1_024);
}

#[test]
fn the_clients_of_an_endpoint_that_is_gone_make_room_behind_one_whose_endpoint_stays() {
    let now = Instant::now();
    let (mut writer, mut reader) = scene(|web| web.affinity = Some(Duration::from_secs(100)));
    for n in 0..30 {
        select(&mut reader, key(WEB), from(n), now);
    }
    let port = Arc::clone(reader.lookup(key(WEB)).unwrap().service_port());
    // Each client has connected only once.
    writer.expire_affinity(now);
    writer.apply(apply(slice("web-a", "web", &[1])));
    assert_eq!(port.affinity().unwrap().len(), 30);
    writer.expire_affinity(now);
    assert_eq!(port.affinity().unwrap().len(), 10);
}
