//! Who comes first in a worker: small exchanges, datagrams and new connections before bulk, by counts of the loop's turns. A worker without
//! a thread, turned by hand, so that nothing happens in between.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;

use rustix::io::Errno;
use sluice_sys::tcp::unacknowledged_bytes;
use sluice_table::{Writer, WriterConfig};
use socket2::{Domain, SockRef, Socket, Type};

use super::*;
use crate::connection::{ConnectionState, PART};
use crate::tcp::exhausted::Path;
use crate::tcp::relay::ACCEPT_BATCH;
use crate::tcp::relaying::TURN_BUDGET;
use crate::tcp::socket::Search;
use crate::{tcp, test_table, udp};

const BULK: usize = 100;

/// What each bulk endpoint has to send: several turns of it. The kernel doubles it for its own book-keeping.
const TO_SEND: usize = 4 * TURN_BUDGET;

/// How often things are tried that need the kernel to get on.
const PATIENCE: usize = 10_000;

const ANY: &str = "127.0.0.1:0";

struct World {
    worker: Worker,
    events: Events,
    writer: Writer,
    commands: Sender<Command>,
}

impl World {
    fn new() -> Self {
        Self::with_pipes(1_000)
    }

    /// One that may hold so many pipes.
    fn with_pipes(pipes: usize) -> Self {
        let config = Config {
            workers: 1,
            descriptors: 4_096,
            client_share: 100,
            udp_idle: Config::UDP_IDLE,
            half_closed_idle: Config::HALF_CLOSED_IDLE,
            connection_log: None,
            service_times: true,
            marks: None,
        };
        let writer = Writer::new(WriterConfig::new("here"));
        let (commands, receiver) = mpsc::channel();
        let descriptors = Descriptors::new(config.descriptors);
        let shared = Shared {
            reader: writer.table().reader(),
            stats: Arc::default(),
            pipes: descriptors.part(2 * pipes, 0),
            descriptors,
            local_ports: LocalPorts::of_this_node(),
            log: None,
        };
        let worker = Worker::new(&config, Poll::new().unwrap(), shared, receiver).unwrap();
        Self { worker, events: Events::with_capacity(EVENTS), writer, commands }
    }

    fn turn(&mut self) {
        assert!(self.worker.turn(&mut self.events).is_continue());
    }

    /// The same where there may be no event to wait for.
    fn turn_at_once(&mut self) {
        self.worker.has_commands = true;
        self.turn();
    }

    /// A TCP Service with this endpoint; returns its address.
    fn serve_tcp(&mut self, name: &str, endpoint: SocketAddr) -> SocketAddr {
        let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
        self.serve_tcp_by(socket, name, &[endpoint])
    }

    fn serve_tcp_by(&mut self, socket: TcpListener, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
        let frontend = socket.local_addr().unwrap();
        test_table::add_service(&mut self.writer, name, frontend, Protocol::Tcp, endpoints);
        self.worker.tcp.listen(socket, Door::Bound, &mut self.worker.core).unwrap();
        frontend
    }

    /// The same with UDP.
    fn serve_udp(&mut self, name: &str, endpoint: SocketAddr) -> SocketAddr {
        let socket = udp::socket::listen(ANY.parse().unwrap(), None).unwrap();
        let frontend = socket.local_addr().unwrap();
        test_table::add_service(&mut self.writer, name, frontend, Protocol::Udp, &[endpoint]);
        self.worker.udp.listen(socket, Door::Bound, &mut self.worker.core).unwrap();
        frontend
    }

    /// A client, and what its endpoint has accepted.
    fn connect(&mut self, frontend: SocketAddr, endpoint: &TcpListener) -> [TcpStream; 2] {
        endpoint.set_nonblocking(true).unwrap();
        let client = TcpStream::connect(frontend).unwrap();
        // The client says nothing yet, and the endpoint is to know of it all the same.
        self.turn();
        let accepted = (0..PATIENCE).find_map(|_| {
            std::thread::yield_now();
            endpoint.accept().ok()
        });
        let (accepted, _) = accepted.expect("the connection is carried on within one turn");
        [client, accepted].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream
        })
    }

    /// Sessions that wait in line all the time: each endpoint has sent all that its socket takes.
    fn bulk(&mut self) -> Vec<[TcpStream; 2]> {
        let endpoint = TcpListener::bind(ANY).unwrap();
        let frontend = self.serve_tcp("bulk", endpoint.local_addr().unwrap());
        let mut sessions: Vec<[TcpStream; 2]> =
            (0..BULK).map(|_| self.connect(frontend, &endpoint)).collect();
        for [_, endpoint] in &mut sessions {
            SockRef::from(&*endpoint).set_send_buffer_size(TO_SEND).unwrap();
            while endpoint.write(&[0; 65_536]).is_ok() {}
        }
        // Each session is found to be bulk, and from then on waits in line.
        self.turn();
        sessions
    }

    /// Turns the loop until something is there; how many turns that took, and how many bytes TCP was moved meanwhile.
    fn turns_until(&mut self, mut is_there: impl FnMut() -> bool) -> (usize, u64) {
        let before = self.moved();
        for turns in 1..=PATIENCE {
            assert!(self.worker.tcp.has_ready(), "bulk waits for its turn all the time");
            self.turn();
            if is_there() {
                return (turns, self.moved() - before);
            }
        }
        panic!("it never came");
    }

    fn moved(&self) -> u64 {
        let stats = self.stats();
        stats.bytes_spliced + stats.bytes_copied
    }

    fn stats(&self) -> crate::Stats {
        crate::Stats::sum([&*self.worker.core.stats])
    }
}

/// Waits until what was sent has come to the other socket, which is then ready to be read.
fn await_delivery(socket: impl AsFd) {
    let is_delivered = || unacknowledged_bytes(socket.as_fd()).unwrap() == 0;
    let arrived = (0..PATIENCE * 100).any(|_| {
        std::thread::yield_now();
        is_delivered()
    });
    assert!(arrived, "what was sent arrives");
}

/// Whether a byte has come.
fn receives(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 1,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    }
}

/// Of a turn of the loop: the line moves by so many sessions, each of which may fill a pipe once more when it has nearly
/// used up its budget.
fn assert_is_first((turns, moved): (usize, u64)) {
    assert!(turns <= 2, "{turns} turns of the loop");
    assert!(
        moved <= (turns * SLICE_TURNS * 3 * TURN_BUDGET) as u64,
        "{moved} bytes of bulk in {turns} turns"
    );
}

#[test]
fn a_small_exchange_and_a_datagram_are_served_before_a_line_of_a_hundred_bulk_sessions() {
    let mut world = World::new();
    let small = TcpListener::bind(ANY).unwrap();
    let answers = UdpSocket::bind(ANY).unwrap();
    let small_at = world.serve_tcp("small", small.local_addr().unwrap());
    let dns_at = world.serve_udp("dns", answers.local_addr().unwrap());
    let [mut client, mut endpoint] = world.connect(small_at, &small);
    let resolver = UdpSocket::bind(ANY).unwrap();
    resolver.connect(dns_at).unwrap();
    for socket in [&resolver, &answers] {
        socket.set_nonblocking(true).unwrap();
    }
    let _bulk = world.bulk();

    for _ in 0..2 {
        client.write_all(b"?").unwrap();
        await_delivery(&client);
        assert_is_first(world.turns_until(|| receives(&endpoint)));
        endpoint.write_all(b"!").unwrap();
        await_delivery(&endpoint);
        assert_is_first(world.turns_until(|| receives(&client)));

        resolver.send(b"?").unwrap();
        await_delivery(&resolver);
        let mut from = None;
        assert_is_first(world.turns_until(|| {
            from = answers.recv_from(&mut [0; 8]).ok().map(|(_, from)| from);
            from.is_some()
        }));
        answers.send_to(b"!", from.unwrap()).unwrap();
        await_delivery(&answers);
        assert_is_first(world.turns_until(|| resolver.recv(&mut [0; 8]).is_ok()));
    }
}

#[test]
fn new_connections_are_accepted_a_batch_in_each_turn_before_a_line_of_a_hundred_bulk_sessions() {
    const BURST: usize = 3 * ACCEPT_BATCH + 1;
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let frontend = world.serve_tcp("web", endpoint.local_addr().unwrap());
    let _bulk = world.bulk();
    let accepted = |world: &World| world.stats().tcp_accepted;
    let before = accepted(&world);
    let _clients: Vec<TcpStream> = (0..BURST).map(|_| TcpStream::connect(frontend).unwrap()).collect();
    for turn in 1..=BURST.div_ceil(ACCEPT_BATCH) {
        assert!(world.worker.tcp.has_ready(), "bulk waits for its turn all the time");
        world.turn();
        assert_eq!(accepted(&world) - before, BURST.min(turn * ACCEPT_BATCH) as u64, "turn {turn}");
    }
}

#[test]
fn what_the_kernel_drops_as_a_listeners_queue_is_full_is_counted() {
    const DROPPED: usize = 10;
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
    rustix::net::listen(&socket, ACCEPT_BATCH.try_into().unwrap()).unwrap();
    let frontend = world.serve_tcp_by(socket, "web", &[endpoint.local_addr().unwrap()]);
    // The kernel takes one more than it was told.
    let _clients: Vec<Socket> = (0..=ACCEPT_BATCH + DROPPED)
        .map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            let connecting = client.connect(&frontend.into()).unwrap_err();
            assert_eq!(connecting.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
            client
        })
        .collect();
    world.turn();
    let stats = world.stats();
    assert_eq!(stats.tcp_accepted, ACCEPT_BATCH as u64);
    // More where a client has asked again meanwhile.
    assert!(stats.tcp_dropped_queue >= DROPPED as u64, "{}", stats.tcp_dropped_queue);
}

#[test]
fn of_ten_thousand_deadlines_that_are_due_some_are_seen_to_in_a_turn_and_events_come_between() {
    const DUE: usize = 10_000;
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let frontend = world.serve_tcp("web", endpoint.local_addr().unwrap());
    let [mut client, accepted] = world.connect(frontend, &endpoint);
    let due = world.worker.core.now;
    (0..DUE).for_each(|_| _ = world.worker.core.timers.set(due, TimerOwner::AcceptRetry));
    client.write_all(b"?").unwrap();
    await_delivery(&client);
    let mut left = world.worker.core.timers.len();
    for turn in 1.. {
        // None of them waits for an event.
        world.turn();
        let now_left = world.worker.core.timers.len();
        assert!(
            now_left < left && left - now_left <= SLICE_DEADLINES,
            "{left}, then {now_left}, in turn {turn}"
        );
        left = now_left;
        if receives(&accepted) {
            assert!(turn <= 2, "{turn} turns of the loop");
            break;
        }
    }
    while world.worker.core.timers.wait(world.worker.core.now) == Some(Duration::ZERO) {
        world.turn();
    }
    assert_eq!(world.worker.core.timers.len(), 1, "the session's own");
}

#[test]
fn towards_an_endpoint_without_a_port_left_nothing_is_tried_for_a_while() {
    let mut world = World::new();
    let endpoints = [(); 2].map(|()| TcpListener::bind(ANY).unwrap());
    let [first, second] = endpoints.each_ref().map(|endpoint| {
        endpoint.set_nonblocking(true).unwrap();
        endpoint.local_addr().unwrap()
    });
    let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
    let frontend = world.serve_tcp_by(socket, "web", &[first, second]);
    // For longer than this takes.
    let until = world.worker.core.now + Duration::from_secs(3_600);
    let use_up = |world: &mut World, endpoint| {
        let path = Path { from: None, endpoint };
        assert!(world.worker.core.exhausted.found_none(path, Search::Thorough, until));
    };
    use_up(&mut world, first);
    let _clients: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(frontend).unwrap()).collect();
    world.turn();
    assert_eq!(
        endpoints.each_ref().map(|endpoint| endpoint.incoming().map_while(Result::ok).count()),
        [0, 4]
    );

    use_up(&mut world, second);
    let mut client = TcpStream::connect(frontend).unwrap();
    world.turn();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let stats = world.stats();
    assert_eq!((stats.tcp_over_limit, stats.tcp_all_endpoints_failed), (1, 0));
}

#[test]
fn slow_readers_hold_no_more_pipes_than_there_may_be_and_pipes_that_nobody_uses_are_closed() {
    const PIPES: usize = 2;
    let mut world = World::with_pipes(PIPES);
    let endpoint = TcpListener::bind(ANY).unwrap();
    let frontend = world.serve_tcp("web", endpoint.local_addr().unwrap());
    let mut sessions: Vec<[TcpStream; 2]> =
        (0..3 * PIPES).map(|_| world.connect(frontend, &endpoint)).collect();
    let mut sent = 0;
    // Until nothing moves any more: nobody reads.
    loop {
        let before = sent;
        for [_, endpoint] in &mut sessions {
            sent += std::iter::from_fn(|| endpoint.write(&[0; 65_536]).ok()).sum::<usize>();
        }
        if sent == before && !world.worker.tcp.has_ready() {
            break;
        }
        world.turn_at_once();
    }
    let stats = world.stats();
    assert_eq!(stats.pipes_active, PIPES as u64);
    assert!(stats.pipe_fallbacks > 0);

    let mut received = 0;
    for _ in 0..PATIENCE {
        if received == sent {
            break;
        }
        for [client, _] in &mut sessions {
            received += std::iter::from_fn(|| client.read(&mut [0; 65_536]).ok()).sum::<usize>();
        }
        world.turn_at_once();
    }
    let stats = world.stats();
    assert_eq!((received, stats.pipes_active), (sent, PIPES as u64));
    for pipes in [PIPES, 0] {
        let sets = |owner: &_| *owner == TimerOwner::UnusedPipes;
        let long_after = world.worker.core.now + Duration::from_secs(3_600);
        let due = std::iter::from_fn(|| world.worker.core.timers.pop_due(long_after)).filter(sets);
        assert_eq!(due.count(), 1, "there is a deadline for it");
        world.worker.tcp.close_unused_pipes();
        world.turn_at_once();
        assert_eq!(world.stats().pipes_active, pipes as u64);
    }
}

#[test]
fn a_walk_over_connections_takes_one_part_in_a_turn_and_ends_with_whoever_asks() {
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let frontend = world.serve_tcp("web", endpoint.local_addr().unwrap());
    let sessions: Vec<[TcpStream; 2]> = (0..PART + 44).map(|_| world.connect(frontend, &endpoint)).collect();
    let (answer, parts) = mpsc::channel();
    let ask = |world: &World, place| {
        let answer = answer.clone();
        let answer = Box::new(move |part| answer.send(part).unwrap());
        world.commands.send(Command::Look(Look { place, answer })).unwrap();
    };
    // Several at a time, of which the worker is told once.
    (0..3).for_each(|_| ask(&world, Place::default()));
    world.worker.has_commands = true;
    for turn in 1..=3 {
        world.turn();
        let part = parts.try_recv().unwrap();
        assert_eq!(part.connections.len(), PART, "turn {turn}");
        assert!(parts.try_recv().is_err(), "a second one in turn {turn}");
    }
    world.turn();
    assert!(!world.worker.has_commands, "nobody asks any more");

    let (mut seen, mut next) = (Vec::new(), Some(Place::default()));
    while let Some(place) = next {
        ask(&world, place);
        world.worker.has_commands = true;
        world.turn();
        let part = parts.try_recv().unwrap();
        next = part.next;
        seen.extend(part.connections);
    }
    let mut clients: Vec<SocketAddr> =
        sessions.iter().map(|[client, _]| client.local_addr().unwrap()).collect();
    seen.sort_by_key(|connection| connection.client);
    clients.sort();
    assert!(seen.iter().map(|connection| connection.client).eq(clients));
    for connection in seen {
        assert_eq!(connection.service_port.to_string(), "default/web");
        assert_eq!(connection.state, ConnectionState::Open);
        assert_eq!((connection.frontend, connection.endpoint), (Some(frontend), endpoint.local_addr().ok()));
    }
}

/// Each byte of it is there as often as a node has open connections.
#[test]
fn what_a_session_and_a_flow_take() {
    const { assert!(size_of::<tcp::session::Session>() <= 384) };
    const { assert!(udp::relay::LINK_SIZE <= 224) };
}
