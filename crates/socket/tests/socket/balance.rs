//! That turns are exact over all CPUs, while endpoints change.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustix::net::connect_unspec;
use sluice_model::{Frontend, Protocol};
use sluice_socket::Attached;
use sluice_socket_maps::{Capacity, Maps, Port, PortKey};
use sluice_table::{AtSocket, SetName, SocketOutcomes};

use crate::node::{Node, endpoint_ip, service};

/// Endpoints that are there all the time.
const COUNT: u8 = 7;

/// What each of them is to get.
const EACH: u64 = 5_000;

/// None that is on loopback, as a socket that was connected there is left alone from then on.
fn at(number: u8) -> SocketAddr {
    (endpoint_ip(true, 1), 5_300 + u16::from(number)).into()
}

/// A Service with these endpoints.
fn port(number: u8, endpoints: impl IntoIterator<Item = u8>) -> (PortKey, Port) {
    let outcome = AtSocket::Balance(SetName::Cluster);
    let outcomes = SocketOutcomes { node: outcome, pod: outcome };
    let to = service(true, number, 53);
    let frontends = vec![(Frontend::new(to.ip(), to.port(), Protocol::Udp), outcomes)];
    let cluster = endpoints.into_iter().map(at).collect();
    (PortKey(number.into()), Port { frontends, cluster, ..Port::default() })
}

/// How many connects each endpoint of Service 1 got that is there all the time.
fn counts(maps: &Maps<Attached>) -> Vec<u64> {
    let wanted: Vec<SocketAddr> = (1..=COUNT).map(at).collect();
    let numbers = maps.numbers(PortKey(1), SetName::Cluster);
    let members = numbers.filter(|(address, _)| wanted.contains(address));
    members.map(|(_, number)| maps.kernel().account(number.id).connections.into()).collect()
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// How many threads connect: two on each CPU.
fn clients() -> usize {
    2 * cpus()
}

/// They connect until so many connects are made. `meanwhile` is told how many there are.
fn connect_from_everywhere(node: &Node, connects: u64, mut meanwhile: impl FnMut(u64)) {
    let cpus = cpus();
    let (taken, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let to = service(true, 1, 53);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients())
            .map(|number| {
                let (taken, node) = (&taken, node);
                scope.spawn(move || {
                    node.host.run(|| {
                        let mut cpu = CpuSet::new();
                        // A machine may not let us have each: then wherever the kernel puts us.
                        let _ =
                            cpu.set(number % cpus).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpu));
                        // A port of its own, which the kernel does not have to look for each time.
                        let port = u16::try_from(40_000 + number).unwrap();
                        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
                        while taken.fetch_add(1, Ordering::Relaxed) < connects {
                            // One that is connected keeps its endpoint.
                            connect_unspec(&socket).unwrap();
                            socket.connect(to).expect("it is translated");
                        }
                    });
                })
            })
            .collect();
        while !done.load(Ordering::Relaxed) {
            meanwhile(taken.load(Ordering::Relaxed));
            done.store(clients.iter().all(|client| client.is_finished()), Ordering::Relaxed);
        }
    });
}

#[test]
fn each_endpoint_gets_the_same_to_the_last_one_while_other_sets_change() {
    let node = Node::new();
    let mut maps = Maps::new(node.attach().unwrap());
    maps.apply([port(1, 1..=COUNT), port(2, 1..=3)]);
    let mut changes = 0_u8;
    connect_from_everywhere(&node, u64::from(COUNT) * EACH, |_| {
        changes = changes.wrapping_add(1);
        maps.apply([port(2, 1..=1 + changes % 9), port(3, 1..=changes % 2)]);
        maps.retry();
    });
    assert_eq!(counts(&maps), [EACH; COUNT as usize]);
    assert_eq!(maps.stats().waiting, 0);
}

/// While nobody connects, whoever was due is next after a change: an endpoint that comes and goes takes nothing from
/// one and gives nothing to another of the rest.
#[test]
fn a_set_that_changes_between_connects_goes_on_with_whoever_was_due() {
    let node = Node::new();
    let mut maps = Maps::new(node.attach().unwrap());
    maps.apply([port(1, 1..=COUNT)]);
    let to = service(true, 1, 53);
    let socket = node.host.run(|| UdpSocket::bind("[::]:0")).unwrap();
    let mut connects = 0_u64;
    for round in 0..200_u8 {
        // Above, below and among them in the order of turns; all of the rest stays.
        let more = [COUNT + 1 + round % 5].into_iter().filter(|_| round % 3 > 0);
        maps.apply([port(1, (1..=COUNT).chain(more))]);
        for _ in 0..round % 11 {
            node.host.run(|| socket.connect(to)).unwrap();
            connects += 1;
        }
    }
    let counts = counts(&maps);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 1 && connects > 900, "{counts:?} of {connects}");
}

/// How far from its share an endpoint may be there, of [`EACH`]: that much of a difference is what changes may make.
const TOLERANCE: u64 = EACH / 10;

/// Each version of a set is exact for itself. What is between two: the writer goes by a turn that it has read before,
/// and a client that has read the older version may take a turn after it. So a change costs an endpoint a turn, and
/// each client another one; none is lost. There are as many changes as that makes [`TOLERANCE`] of, over the whole time.
#[test]
fn a_set_that_changes_all_the_time_loses_no_turn_and_favours_nobody_by_more_than_its_changes() {
    let mut node = Node::new();
    // So much that no number is given twice: each has what it did.
    node.config.capacity = Capacity { slots: 1 << 16, endpoints: 1 << 14, ..node.config.capacity };
    let mut maps = Maps::new(node.attach().unwrap());
    maps.apply([port(1, 1..=COUNT)]);
    let (mut changes, connects) = (0, u64::from(COUNT) * EACH);
    let most = TOLERANCE / (1 + clients() as u64);
    connect_from_everywhere(&node, connects, |connected| {
        if changes < most && connected * most >= changes * connects {
            changes += 1;
            maps.apply([port(1, (1..=COUNT).chain((changes % 2 == 1).then_some(COUNT + 1)))]);
        }
    });
    let counts = counts(&maps);
    let all: u64 = (0..1 << 14).map(|id| u64::from(maps.kernel().account(id).connections)).sum();
    assert_eq!(all, connects);
    assert!(changes > 0);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= TOLERANCE, "{counts:?} after {changes} changes");
    println!("{counts:?} after {changes} changes by {} clients", clients());
}
