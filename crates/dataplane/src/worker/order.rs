//! The order of work in a worker: small exchanges, datagrams and new connections come before bulk transfers,
//! and events before deadlines. Measured in turns of the loop.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::listen;

use super::by_hand::{ANY, World, await_delivery};
use super::*;
use crate::connection::{ConnectionState, PART};
use crate::tcp::relay::ACCEPT_BATCH;
use crate::tcp::relaying::TURN_BUDGET;
use crate::{tcp, udp};

/// Whether a byte has arrived.
fn receives(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 1,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    }
}

/// Checks that at most so much bulk was moved before: the line advances by a few sessions per turn of the
/// loop, and a session may fill a pipe once more when its budget is nearly used up.
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
        // No turn waits for an event.
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

/// A slice that only the number of turns limits.
const LONG: Duration = Duration::from_secs(3_600);

#[test]
fn a_line_of_bulk_does_not_move_when_it_is_late_and_by_no_more_turns_than_are_given_when_it_is_not() {
    let mut world = World::new();
    let _bulk = world.bulk();
    let before = world.moved();
    world.worker.tcp.run_ready(Instant::now(), usize::MAX, &mut world.worker.core);
    assert!(world.worker.tcp.has_ready(), "bulk waits for its turn all the time");
    assert_eq!(world.moved(), before);
    world.worker.tcp.run_ready(Instant::now() + LONG, SLICE_TURNS, &mut world.worker.core);
    let moved = world.moved() - before;
    assert!((1..=(SLICE_TURNS * 3 * TURN_BUDGET) as u64).contains(&moved), "{moved}");
}

#[test]
fn when_it_is_late_one_listener_is_seen_to_and_the_others_come_first_the_next_time() {
    const LISTENERS: usize = 3;
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let address = endpoint.local_addr().unwrap();
    let frontends: Vec<SocketAddr> =
        (0..LISTENERS).map(|n| world.serve_tcp(&format!("web-{n}"), address)).collect();
    let _clients: Vec<TcpStream> = frontends.iter().map(|at| TcpStream::connect(at).unwrap()).collect();
    let (mut events, mut seen) = (Events::with_capacity(EVENTS), 0);
    while seen < LISTENERS {
        world.worker.poll.poll(&mut events, Some(LONG)).unwrap();
        for event in &events {
            let Some(Source::Listener(id)) = Source::of(event.token()) else { panic!("there is no session") };
            world.worker.tcp.on_listener(id);
            seen += 1;
        }
    }
    let accepted = [(); LISTENERS + 1].map(|()| {
        world.worker.tcp.run_listeners(Instant::now(), &mut world.worker.core);
        world.worker.tcp.sessions()
    });
    assert_eq!(accepted, [1, 2, 3, 3]);
}

#[test]
fn of_deadlines_that_are_due_one_is_seen_to_when_it_is_late_and_all_but_so_many_when_it_is_not() {
    let mut world = World::new();
    let due = world.worker.core.now;
    (0..SLICE_DEADLINES + 5).for_each(|_| _ = world.worker.core.timers.set(due, TimerOwner::AcceptRetry));
    let left = [Duration::ZERO, Duration::ZERO, LONG, LONG].map(|slice| {
        world.worker.run_timers(slice);
        world.worker.core.timers.len()
    });
    assert_eq!(left, [SLICE_DEADLINES + 4, SLICE_DEADLINES + 3, 3, 0]);
}

#[test]
fn a_session_begins_when_it_is_accepted_however_long_the_turn_has_lasted() {
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let frontend = world.serve_tcp("web", endpoint.local_addr().unwrap());
    let begin = Instant::now();
    let _client = TcpStream::connect(frontend).unwrap();
    world.worker.poll.poll(&mut Events::with_capacity(EVENTS), Some(LONG)).unwrap();
    world.worker.core.now = begin - LONG;
    world.worker.tcp.close_all_listeners(&mut world.worker.core);
    let sessions = world.worker.look(Place::default()).connections;
    assert!(sessions.len() == 1 && sessions[0].began >= begin, "{sessions:?}");
}

/// However long a turn of the loop takes: events that arrived meanwhile are handled before a timeout counts.
#[test]
fn an_endpoint_that_has_answered_while_the_loop_was_elsewhere_is_not_taken_for_a_silent_one() {
    let mut world = World::new();
    let endpoints = [(); 2].map(|()| TcpListener::bind(ANY).unwrap());
    let [slow, other] = endpoints.each_ref().map(|endpoint| endpoint.local_addr().unwrap());
    // Its queue has room for one connection, and is full.
    listen(&endpoints[0], 0).unwrap();
    let _filler = TcpStream::connect(slow).unwrap();
    let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
    let frontend = world.serve_tcp_by(socket, "web", &[slow, other]);
    let _clients = [(); 2].map(|()| TcpStream::connect(frontend).unwrap());
    world.turn();
    assert_eq!(world.stats().tcp_established, 1, "each endpoint has one of them, and one answers");

    endpoints[0].accept().unwrap();
    // The kernel retransmits the SYN later than an endpoint's time to answer: after a second
    // (`TCP_TIMEOUT_INIT`), and after two more.
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    let mut asked = [PollFd::new(&endpoints[0], PollFlags::IN)];
    assert_eq!(poll(&mut asked, Some(&limit)), Ok(1), "the kernel has not asked again");
    endpoints[0].accept().unwrap();
    assert_eq!(world.worker.core.timers.wait(Instant::now()), Some(Duration::ZERO), "the deadline is over");
    world.turn_at_once();
    let stats = world.stats();
    assert_eq!((stats.tcp_retries, stats.tcp_established), (0, 2));
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
    // Several at a time, of which the worker is notified once.
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

/// Closing a socket takes some microseconds, during which all others on the worker wait.
#[test]
fn of_many_flows_that_are_to_be_ended_few_are_in_a_turn_and_what_was_told_after_it_waits() {
    const FLOWS: usize = 700;
    let mut world = World::new();
    let endpoint = UdpSocket::bind(ANY).unwrap();
    let frontend = world.serve_udp("dns", endpoint.local_addr().unwrap());
    let clients: Vec<UdpSocket> = (0..FLOWS)
        .map(|opened| {
            let client = UdpSocket::bind(ANY).unwrap();
            client.send_to(b"?", frontend).unwrap();
            while world.worker.udp.flows() <= opened {
                world.turn_at_once();
            }
            client
        })
        .collect();
    let (done, is_done) = mpsc::channel();
    let (answer, is_answered) = mpsc::channel();
    let here = clients[0].local_addr().unwrap().ip();
    world.commands.send(Command::EndFlows([here].into(), done)).unwrap();
    world.commands.send(Command::Answer(answer)).unwrap();
    let mut left = FLOWS;
    while is_done.try_recv().is_err() {
        assert!(is_answered.try_recv().is_err(), "what came first is not done");
        world.turn_at_once();
        let ended = left - world.worker.udp.flows();
        assert!(ended <= 2 * udp::relay::ENDED, "{ended} of {left} flows in a turn");
        left -= ended;
    }
    assert_eq!((world.worker.udp.flows(), is_answered.try_recv()), (0, Ok(())));
}

/// A node has this memory for each open connection.
#[test]
fn what_a_session_and_a_flow_take() {
    const { assert!(size_of::<tcp::session::Session>() <= 384) };
    const { assert!(udp::relay::LINK_SIZE <= 224) };
}
