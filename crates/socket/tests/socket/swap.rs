//! Endpoints that change while sockets connect.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::net::connect_unspec;
use sluice_socket::Attached;
use sluice_socket_maps::{Endpoint, Kernel, endpoint_flags};

use crate::node::{Node, desc, endpoint, endpoint_ip, serve, service};

/// How often endpoints change at least, and how often is connected, for some ten seconds: more with `SLUICE_SWAP_PICKS`.
const ROUNDS: u64 = 50;
const PICKS: u64 = 10_000_000;

/// How often the set's word changes in a round, between two versions that are both whole: so often that some client reads it
/// between two writes, if there are two. Odd, so that the new version is the last.
const FLIPS: u32 = 100_001;

/// An id that no version of the set has.
const POISON: u32 = 500;
/// All slots and ids that are poisoned when no version has them: those of both versions and around.
const AROUND: Range<u32> = 1..40;

/// A version of the set. Its slots and ids have the same numbers.
#[derive(Clone, Copy)]
struct Version {
    base: u32,
    count: u16,
}

/// They have no address, no slot and not even the count in common. The first one's base with the other's count leads past
/// its end, to poison. The opposite mixture shows nothing, but whichever half of the word were written or read first, one
/// of the two changes would make the former.
const VERSIONS: [Version; 2] = [Version { base: 10, count: 3 }, Version { base: 20, count: 5 }];

impl Version {
    fn ids(self) -> Range<u32> {
        self.base..self.base + u32::from(self.count)
    }

    fn endpoints(self) -> Vec<SocketAddr> {
        let port = |id| 5_300 + u16::try_from(id).unwrap();
        self.ids().map(|id| (endpoint_ip(true, 1), port(id)).into()).collect()
    }

    fn publish(self, kernel: &mut Attached, rotation: u16) {
        kernel.publish(1, desc(self.base, self.count, rotation));
    }

    fn write(self, kernel: &mut Attached) {
        let endpoints: Vec<Endpoint> = self.endpoints().into_iter().map(endpoint).collect();
        kernel.write_endpoints(self.base, &endpoints);
        kernel.write_slots(self.base, &self.ids().collect::<Vec<_>>());
    }

    /// Whoever picks one of these connects to no endpoint.
    fn poison(self, kernel: &mut Attached) {
        poison(kernel, self.ids());
    }

    /// How many picks each of its endpoints has had.
    fn picks(self, kernel: &Attached) -> Vec<u64> {
        self.ids().map(|id| kernel.account(id).connections.into()).collect()
    }
}

/// Endpoints there are of the other family, which is left untranslated.
fn poison(kernel: &mut Attached, numbers: Range<u32>) {
    let nothing = Endpoint { flags: endpoint_flags::V4, ..endpoint((endpoint_ip(true, 1), 1).into()) };
    kernel.write_slots(numbers.start, &vec![POISON; numbers.len()]);
    kernel.write_endpoints(numbers.start, &vec![nothing; numbers.len()]);
}

/// Any pick of what is not in the set fails, as no packet can reach a Service's address.
#[test]
fn nobody_picks_what_was_taken_out_before_a_barrier_or_half_of_a_version() {
    let picks = std::env::var("SLUICE_SWAP_PICKS").map_or(PICKS, |picks| picks.parse().unwrap());
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(true, 1, 53);
    poison(&mut kernel, AROUND);
    poison(&mut kernel, POISON..POISON + 1);
    let [first, second] = VERSIONS;
    serve(&mut kernel, 1, to, &first.endpoints());

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
        let (mut old, mut new) = (first, second);
        let mut picks_before = new.picks(&kernel);
        while (rounds < ROUNDS || picked.load(Ordering::Relaxed) < picks)
            && !clients.iter().any(|client| client.is_finished())
        {
            assert_eq!(new.picks(&kernel), picks_before, "nobody had them since they were taken out");
            new.write(&mut kernel);
            for flip in 0..FLIPS {
                let version = if flip % 2 == 0 { new } else { old };
                version.publish(&mut kernel, u16::try_from(flip % 3).unwrap());
            }
            kernel.barrier().unwrap();
            old.poison(&mut kernel);
            picks_before = old.picks(&kernel);
            (old, new) = (new, old);
            rounds += 1;
        }
        done.store(true, Ordering::Relaxed);
        rounds
    });
    assert!(rounds >= ROUNDS);
    let of_each = VERSIONS.map(|version| version.picks(&kernel));
    let all: u64 = of_each.iter().flatten().sum();
    // Each of the numbers is one of 32 bits, and may have begun again.
    let of_32_bits = |number: u64| number % (1 << 32);
    assert_eq!(of_32_bits(all), of_32_bits(picked.load(Ordering::Relaxed)));
    assert_eq!(kernel.account(POISON).connections, 0);
    assert!(of_each.iter().flatten().all(|picks| *picks > 0), "{of_each:?}");
    println!("{} picks, {rounds} changes: {of_each:?}", picked.into_inner());
}
