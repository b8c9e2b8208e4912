//! UDP through the proxy, from real clients to real servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sluice_dataplane::Config;
use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World, wait};

/// A client, connected: it receives only what comes from the address that it sends to.
fn client(world: &World) -> UdpSocket {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.connect(world.frontend).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram and returns the answer.
fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 65_536];
    client.send(question).unwrap();
    let length = client.recv(&mut answer).unwrap();
    answer.truncate(length);
    answer
}

/// Backends that answer with their own number.
fn numbered(count: u8) -> Vec<Backend> {
    (0..count).map(|number| Backend::udp(move |_| vec![number])).collect()
}

fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.address).collect()
}

#[test]
fn fifty_thousand_exchanges_lose_nothing() {
    const CLIENTS: u64 = 8;
    const EACH: u64 = 6_250;
    let backends: Vec<Backend> = (0..4).map(|_| Backend::udp(<[u8]>::to_vec)).collect();
    let world = World::new(Protocol::Udp, &addresses(&backends));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let client = client(&world);
            scope.spawn(move || {
                for n in 0..EACH {
                    let question = (number * EACH + n).to_be_bytes();
                    assert_eq!(ask(&client, &question), question);
                }
            });
        }
    });
    let total = CLIENTS * EACH;
    // Counted once it is sent: a client may be faster than that.
    wait::until("every answer is counted", || world.proxy.stats().udp_datagrams_returned == total);
    let stats = world.proxy.stats();
    assert_eq!((stats.udp_datagrams_in, stats.udp_datagrams_forwarded), (total, total));
    assert_eq!((stats.udp_dropped_full, stats.udp_dropped_error, stats.udp_unroutable), (0, 0, 0));
    assert_eq!(stats.udp_flows_opened, CLIENTS);
}

#[test]
fn clients_are_spread_exactly_evenly_and_each_stays_with_its_endpoint() {
    let backends = numbered(5);
    let world = World::new(Protocol::Udp, &addresses(&backends));
    let mut clients_of = BTreeMap::new();
    // All at once: a port that is used again within the idle time is the same client to anybody.
    let clients: Vec<UdpSocket> = (0..100).map(|_| client(&world)).collect();
    for client in &clients {
        let endpoint = ask(client, b"?");
        assert!((0..5).all(|_| ask(client, b"?") == endpoint));
        *clients_of.entry(endpoint).or_insert(0) += 1;
    }
    assert_eq!(clients_of.into_values().collect::<Vec<_>>(), [20; 5]);
}

#[test]
fn datagrams_of_every_size_pass_whole() {
    let backend = Backend::udp(<[u8]>::to_vec);
    let world = World::new(Protocol::Udp, &[backend.address]);
    let client = client(&world);
    let mut random = SmallRng::seed_from_u64(1);
    for size in [0, 1, 511, 512, 1_472, 1_473, 2_000, 9_000, 60_000, 65_506, 65_507] {
        let mut question = vec![0; size];
        random.fill(&mut question[..]);
        assert!(ask(&client, &question) == question, "{size} bytes");
    }
    assert_eq!(world.proxy.stats().udp_dropped_error, 0);
}

#[test]
fn ipv6_is_served_like_ipv4() {
    let ip = IpAddr::from(Ipv6Addr::LOCALHOST);
    let backend = Backend::udp_at(ip, <[u8]>::to_vec);
    let frontend = (ip, sluice_tests::free_port(ip)).into();
    let world = World::at(frontend, Protocol::Udp, &[backend.address], World::CONFIG);
    let client = UdpSocket::bind((ip, 0)).unwrap();
    client.connect(world.frontend).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // The largest datagram of IPv6.
    for question in [vec![6; 3], vec![6; 65_527]] {
        assert!(ask(&client, &question) == question);
    }
}

#[test]
fn flows_of_a_removed_endpoint_move_at_once_and_others_stay() {
    let backends = numbered(2);
    let mut world = World::new(Protocol::Udp, &addresses(&backends));
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(&world)).collect();
    let before: Vec<Vec<u8>> = clients.iter().map(|client| ask(client, b"?")).collect();
    assert!(before.contains(&vec![0]) && before.contains(&vec![1]));

    world.set_endpoints(&[backends[1].address]);
    assert!(clients.iter().all(|client| ask(client, b"?") == [1]));
    assert_eq!(world.proxy.stats().udp_flows_ended, 5);

    // Back again: those that moved stay where they are.
    world.set_endpoints(&addresses(&backends));
    assert!(clients.iter().all(|client| ask(client, b"?") == [1]));
}

#[test]
fn a_client_moves_on_when_its_endpoint_refuses() {
    let alive = Backend::udp(|_| vec![1]);
    let dead = Backend::udp(|_| vec![0]).address;
    let world = World::new(Protocol::Udp, &[dead, alive.address]);
    for _ in 0..10 {
        let client = client(&world);
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // The first datagram may be lost to the dead endpoint: nobody can know before.
        wait::until("the client is answered", || {
            // Where the agent may tell it, it is refused before.
            client.send(b"?").is_ok() && client.recv(&mut [0]).is_ok()
        });
    }
    assert!(world.proxy.stats().udp_flows_ended > 0);
}

#[test]
fn a_client_is_refused_where_its_endpoint_refuses_if_the_agent_may_send_icmp() {
    use socket2::{Domain, Protocol as Ip, Socket, Type};

    if let Err(error) = Socket::new(Domain::IPV4, Type::RAW, Some(Ip::ICMPV4)) {
        assert!(!rustix::process::geteuid().is_root(), "{error}");
        sluice_sys::skipped(format_args!("needs CAP_NET_RAW ({error})"));
        return;
    }
    for ip in [IpAddr::from(sluice_tests::loopback_address()), Ipv6Addr::LOCALHOST.into()] {
        let frontend = (ip, sluice_tests::free_port(ip)).into();
        let dead = Backend::udp_at(ip, <[u8]>::to_vec).address;
        let world = World::at(frontend, Protocol::Udp, &[dead], World::CONFIG);
        let client = UdpSocket::bind((ip, 0)).unwrap();
        client.connect(world.frontend).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send(b"?").unwrap();
        assert_eq!(client.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{ip}");
        wait::until("it is counted", || world.proxy.stats().udp_refusals == 1);
    }
}

/// How many sockets of this network namespace are connected to an address.
fn sockets_towards(ip: Ipv4Addr, port: u16) -> usize {
    let peer = format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets()));
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    table.lines().filter(|line| line.split_whitespace().nth(2) == Some(&peer)).count()
}

/// Clients with a socket for each question, as resolvers have them, and an endpoint that lets a third of all wait: as five
/// thousand questions a second are that are answered after two seconds, if there are fewer of both.
#[test]
fn slow_answers_under_churn_find_their_clients_and_nothing_is_left_of_their_flows() {
    const WAITING: usize = 600;
    const ROUNDS: usize = 3;
    let ip = sluice_tests::loopback_address();
    let endpoint = UdpSocket::bind((ip, 0)).unwrap();
    endpoint.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = endpoint.local_addr().unwrap();
    let sockets = || sockets_towards(ip, address.port());
    // Room for the flows of one round, however they fall to the workers, and not for those of both.
    let config =
        Config { workers: 2, descriptors: 7 * WAITING, udp_idle: Duration::from_secs(4), ..World::CONFIG };
    let world = World::with_config(Protocol::Udp, &[address], config);
    for round in 0..2 {
        let (mut clients, mut questions) = (Vec::new(), std::collections::VecDeque::new());
        for n in 0..ROUNDS * WAITING {
            let client = client(&world);
            client.send(&n.to_be_bytes()).unwrap();
            clients.push(client);
            let mut question = [0; 8];
            let (_, from) = endpoint.recv_from(&mut question).unwrap();
            questions.push_back((question, from));
            // The oldest is answered once so many have been asked since.
            if questions.len() > WAITING {
                let (question, from) = questions.pop_front().unwrap();
                endpoint.send_to(&question, from).unwrap();
            }
        }
        assert!(sockets() >= WAITING, "those that wait have their sockets");
        for (question, from) in questions {
            endpoint.send_to(&question, from).unwrap();
        }
        for (n, client) in clients.iter().enumerate() {
            let mut answer = [0; 8];
            assert_eq!(client.recv(&mut answer).unwrap(), 8, "round {round}, question {n}");
            assert_eq!(answer, n.to_be_bytes());
        }
        wait::until("nothing is left of any flow", || {
            let stats = world.proxy.stats();
            (stats.udp_flows_active, stats.deadlines, sockets()) == (0, 0, 0)
        });
    }
    let stats = world.proxy.stats();
    let asked = (2 * ROUNDS * WAITING) as u64;
    assert_eq!((stats.udp_flows_opened, stats.udp_datagrams_returned), (asked, asked), "{stats:?}");
    assert_eq!((stats.udp_over_limit, stats.udp_unroutable, stats.udp_dropped_error), (0, 0, 0), "{stats:?}");
}

#[test]
fn many_clients_that_ask_at_once_each_get_their_own_answers_in_order() {
    const CLIENTS: u32 = 6;
    const BURST: u32 = 100;
    let backend = Backend::udp(<[u8]>::to_vec);
    let world = World::with_config(
        Protocol::Udp,
        &[backend.address],
        // All of one worker, so that they are mixed in each of its batches.
        Config { workers: 1, ..World::CONFIG },
    );
    let clients: Vec<UdpSocket> = (0..CLIENTS).map(|_| client(&world)).collect();
    // Of sizes that can and cannot go together.
    let question = |client: u32, n: u32| {
        let mut question = vec![0; [40, 40, 40, 7, 700][n as usize % 5]];
        question[..4].copy_from_slice(&(client * BURST + n).to_be_bytes());
        question
    };
    for _ in 0..20 {
        for n in 0..BURST {
            for (number, client) in (0..).zip(&clients) {
                client.send(&question(number, n)).unwrap();
            }
        }
        for (number, client) in (0..).zip(&clients) {
            for n in 0..BURST {
                let mut answer = [0; 1_000];
                let length = client.recv(&mut answer).unwrap();
                assert!(answer[..length] == question(number, n), "client {number}, datagram {n}");
            }
        }
    }
    let stats = world.proxy.stats();
    assert_eq!((stats.udp_dropped_full, stats.udp_dropped_error, stats.udp_flows_opened), (0, 0, 6));
}

#[test]
fn without_endpoints_datagrams_are_refused_and_with_one_again_answered() {
    let backend = Backend::udp(<[u8]>::to_vec);
    let mut world = World::new(Protocol::Udp, &[backend.address]);
    let client = client(&world);
    assert_eq!(ask(&client, b"?"), b"?");

    world.set_endpoints(&[]);
    client.send(b"?").unwrap();
    assert_eq!(client.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    wait::until("the flow has ended", || world.proxy.stats().udp_flows_active == 0);

    world.set_endpoints(&[backend.address]);
    assert_eq!(ask(&client, b"?"), b"?");
    world.delete_service();
    client.send(b"?").unwrap();
    assert_eq!(client.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn idle_flows_expire_and_used_ones_do_not() {
    let backend = Backend::udp(<[u8]>::to_vec);
    let config = Config { udp_idle: Duration::from_millis(700), ..World::CONFIG };
    let world = World::with_config(Protocol::Udp, &[backend.address], config);
    let (idle, used) = (client(&world), client(&world));
    ask(&idle, b"?");
    wait::until("the idle flow has expired", || {
        ask(&used, b"?");
        world.proxy.stats().udp_flows_expired == 1
    });
    assert_eq!(world.proxy.stats().udp_flows_active, 1);
    assert_eq!(world.proxy.stats().udp_flows_opened, 2, "the used flow is the first one still");
    wait::until("both have expired", || world.proxy.stats().udp_flows_active == 0);
    assert_eq!(ask(&idle, b"?"), b"?", "an expired flow is opened again");
}

#[test]
fn the_table_is_bounded_and_the_least_recently_used_make_room() {
    // One worker with 24 descriptors: two thirds of them for flows.
    const BOUND: u64 = 16;
    let backend = Backend::udp(<[u8]>::to_vec);
    let config = Config { workers: 1, descriptors: 24, ..World::CONFIG };
    let world = World::with_config(Protocol::Udp, &[backend.address], config);
    let favourite = client(&world);
    // All kept: a port that is used again while its flow lives is the same client to anybody.
    let clients: Vec<UdpSocket> = (0..100).map(|_| client(&world)).collect();
    for (n, client) in (0..).zip(&clients) {
        assert_eq!(ask(client, b"?"), b"?");
        assert_eq!(ask(&favourite, b"?"), b"?");
        let stats = world.proxy.stats();
        assert!(stats.udp_flows_active <= BOUND, "{stats:?}");
        let ended = stats.udp_flows_evicted + stats.udp_flows_over_share;
        assert_eq!(ended, (n + 2_u64).saturating_sub(BOUND));
    }
    assert_eq!(world.proxy.stats().udp_flows_opened, 101, "the one in use was never evicted");
}

#[test]
fn a_burst_from_one_client_arrives_in_order() {
    const BURST: u32 = 200;
    let backend = Backend::udp(<[u8]>::to_vec);
    let world = World::new(Protocol::Udp, &[backend.address]);
    let client = client(&world);
    socket2::SockRef::from(&client).set_recv_buffer_size(4 << 20).unwrap();
    let start = Instant::now();
    for round in 0..50 {
        for n in 0..BURST {
            client.send(&(round * BURST + n).to_be_bytes()).unwrap();
        }
        for n in 0..BURST {
            let mut answer = [0; 4];
            client.recv(&mut answer).unwrap();
            assert_eq!(u32::from_be_bytes(answer), round * BURST + n, "after {:?}", start.elapsed());
        }
    }
}
