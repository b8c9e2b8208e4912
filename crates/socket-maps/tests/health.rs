//! Connections to unverified endpoints, and how endpoints are verified, with maps in plain memory.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail tests")]

use std::net::SocketAddr;

use sluice_model::{Frontend, Protocol};
use sluice_socket_maps::{Capacity, Kernel, Maps, Memory, Picked, Port, PortKey};
use sluice_table::{AtSocket, SetName, SocketNumber, SocketOutcomes};

const KEY: PortKey = PortKey(1);

fn address(number: u8) -> SocketAddr {
    ([10, 1, 0, number], 8080).into()
}

fn frontend(protocol: Protocol) -> Frontend {
    Frontend::new([10, 96, 0, 1].into(), 80, protocol)
}

/// Maps, with an agent that relays.
fn maps() -> Maps<Memory> {
    let mut maps = Maps::new(Memory::new(Capacity { frontends: 10, sets: 10, slots: 100, endpoints: 100 }));
    maps.kernel_mut().beat();
    maps
}

fn set(maps: &mut Maps<Memory>, protocol: Protocol, endpoints: &[u8]) {
    let outcome = AtSocket::Balance(SetName::Cluster);
    let frontends = vec![(frontend(protocol), SocketOutcomes { node: outcome, pod: outcome })];
    let cluster = endpoints.iter().map(|number| address(*number)).collect();
    maps.apply([(KEY, Port { frontends, cluster, ..Port::default() })]);
}

/// The last bytes of the endpoints of this many connections; 0 for a connection that is left to the relay.
fn picks(maps: &mut Maps<Memory>, protocol: Protocol, times: usize) -> Vec<u8> {
    let pick = |_| match maps.kernel_mut().pick(frontend(protocol), false) {
        Picked::Endpoint(SocketAddr::V4(to)) => to.ip().octets()[3],
        Picked::Untranslated => 0,
        other => panic!("{other:?}"),
    };
    (0..times).map(pick).collect()
}

fn number(maps: &Maps<Memory>, endpoint: u8) -> SocketNumber {
    maps.numbers(KEY, SetName::Cluster).find(|(at, _)| *at == address(endpoint)).unwrap().1
}

#[test]
fn connections_to_endpoints_that_are_new_are_left_to_the_relay_until_it_has_connected() {
    let mut maps = maps();
    set(&mut maps, Protocol::Tcp, &[1, 2]);
    assert_eq!(picks(&mut maps, Protocol::Tcp, 2), [0, 0]);
    let health = maps.kernel().health();
    health.has_served(number(&maps, 1));
    assert_eq!(picks(&mut maps, Protocol::Tcp, 4), [1, 0, 1, 0], "it loses no turn");
    health.has_served(number(&maps, 2));
    assert_eq!(picks(&mut maps, Protocol::Tcp, 2), [1, 2]);
    set(&mut maps, Protocol::Tcp, &[1, 2, 3]);
    assert_eq!(picks(&mut maps, Protocol::Tcp, 3), [1, 2, 0], "those that stay are known");
}

#[test]
fn what_has_failed_is_in_doubt_and_what_comes_back_is_new() {
    let mut maps = maps();
    set(&mut maps, Protocol::Tcp, &[1, 2]);
    let health = maps.kernel().health();
    for endpoint in [1, 2] {
        health.has_served(number(&maps, endpoint));
    }
    health.has_failed(number(&maps, 2));
    assert!(health.is_in_doubt(number(&maps, 2)));
    assert_eq!(picks(&mut maps, Protocol::Tcp, 2), [1, 0]);
    maps.kernel_mut().end_relay();
    assert_eq!(picks(&mut maps, Protocol::Tcp, 2), [1, 2], "nobody would take it");
    maps.kernel_mut().beat();
    health.has_served(number(&maps, 2));

    let before = number(&maps, 2);
    set(&mut maps, Protocol::Tcp, &[1]);
    maps.reclaim();
    set(&mut maps, Protocol::Tcp, &[1, 2]);
    let now = number(&maps, 2);
    assert!(now.id == before.id && now.incarnation != before.incarnation, "{before:?} {now:?}");
    // A result of a connection to the endpoint that has left.
    health.has_served(before);
    assert!(health.is_in_doubt(now) && !health.is_in_doubt(before));
}

#[test]
fn datagrams_prove_nothing_and_need_no_proof() {
    let mut maps = maps();
    set(&mut maps, Protocol::Udp, &[1, 2]);
    assert_eq!(picks(&mut maps, Protocol::Udp, 2), [1, 2]);
}
