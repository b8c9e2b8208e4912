//! Endpoints that change while sockets connect.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::net::connect_unspec;
use sluice_socket_maps::{Endpoint, Kernel, endpoint_flags};

use crate::node::{Node, desc, endpoint, endpoint_ip, fill, serve, service};

/// How often endpoints change at least, and how often is connected, for some ten seconds: more with `SLUICE_SWAP_PICKS`.
const ROUNDS: u64 = 50;
const PICKS: u64 = 10_000_000;

/// Endpoints in a version of the set.
const COUNT: u32 = 3;

/// Any pick of what is not to be used any more fails: there, endpoints are of the other family, which is left
/// untranslated, and no packet can reach a Service's address.
#[test]
fn nobody_picks_what_was_taken_out_before_a_barrier() {
    let picks = std::env::var("SLUICE_SWAP_PICKS").map_or(PICKS, |picks| picks.parse().unwrap());
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(true, 1, 53);
    let at: Vec<SocketAddr> = (1..=3).map(|number| (endpoint_ip(true, number), 53).into()).collect();
    let poison = Endpoint { flags: endpoint_flags::V4, ..endpoint(at[0]) };
    serve(&mut kernel, 1, to, &at);
    fill(&mut kernel, 2, &at);

    let (done, picked) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = std::thread::scope(|scope| {
        let clients = [40_000, 40_001].map(|port| {
            let (node, done, picked) = (&node, &done, &picked);
            scope.spawn(move || {
                node.host.run(|| {
                    // A port of its own, which the kernel does not have to look for each time.
                    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
                    while !done.load(Ordering::Relaxed) {
                        // One that is connected keeps its endpoint.
                        connect_unspec(&socket).unwrap();
                        socket.connect(to).expect("what was picked is in use");
                        picked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            })
        });
        let mut rounds = 0;
        let mut old = 10;
        while (rounds < ROUNDS || picked.load(Ordering::Relaxed) < picks)
            && !clients.iter().any(|client| client.is_finished())
        {
            let new = 30 - old;
            kernel.write_endpoints(new, &[at[0], at[1], at[2]].map(endpoint));
            kernel.write_slots(new, &[new, new + 1, new + 2]);
            kernel.publish(1, desc(new, 3, u16::try_from(rounds % 3).unwrap()));
            kernel.barrier().unwrap();
            kernel.write_slots(old, &[500; COUNT as usize]);
            kernel.write_endpoints(old, &[poison; COUNT as usize]);
            old = new;
            rounds += 1;
        }
        done.store(true, Ordering::Relaxed);
        rounds
    });
    assert!(rounds >= ROUNDS);
    assert_eq!(kernel.account(500).connections, 0);
    println!("{} picks, {rounds} changes", picked.into_inner());
}
