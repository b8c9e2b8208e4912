use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use mio::Poll;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::listen;
use sluice_table::{Client, FrontendKey, Origin, Writer};
use socket2::SockRef;

use super::*;
use crate::descriptors::Descriptors;
use crate::tcp::connect::FIRST_TIMEOUT;
use crate::tcp::direction::BUFFER_SIZE;
use crate::tcp::orphans::Orphans;
use crate::tcp::pipe::PipePool;
use crate::token::Slots;
use crate::{test_core, test_table};

const ANY: &str = "127.0.0.1:0";

/// How often to retry steps that depend on the kernel's progress.
const PATIENCE: usize = 1_000_000;

/// A long time for a turn of the worker.
const HOUR: Duration = Duration::from_secs(3_600);

/// The parts of a worker that a session needs, and a Service with one endpoint.
struct World {
    core: Core,
    tools: Tools,
    frontend: SocketAddr,
    _writer: Writer,
    poll: Poll,
}

impl World {
    fn new(endpoint: &TcpListener) -> Self {
        // Nobody listens there: the test starts sessions itself.
        let frontend = SocketAddr::from(([127, 0, 0, 1], 80));
        let writer = test_table::writer(frontend, Protocol::Tcp, &[endpoint.local_addr().unwrap()]);
        let poll = Poll::new().unwrap();
        let core = test_core::core(&poll, &writer, 100);
        let tools =
            Tools { buffer: vec![0; BUFFER_SIZE].into(), pipes: PipePool::new(&Descriptors::new(100)) };
        Self { core, tools, frontend, _writer: writer, poll }
    }

    /// A client and its session, which is written to the connection log.
    fn accept(&mut self) -> (TcpStream, Session) {
        self.accept_at(Instant::now())
    }

    /// The same, as if it had been accepted at `now`.
    fn accept_at(&mut self, now: Instant) -> (TcpStream, Session) {
        let listener = TcpListener::bind(ANY).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, address) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let downstream = Peer::accepted(mio::net::TcpStream::from_std(accepted));
        let key = FrontendKey::new(self.frontend.ip(), self.frontend.port(), Protocol::Tcp);
        let from = Client { ip: address.ip(), origin: Origin::Outside };
        let selection = self.core.reader.lookup(key).unwrap().select(from, now).unwrap();
        let trace = Some(Box::new(Trace { frontend: self.frontend, connect: None }));
        let permit = self.core.descriptors.take(2).unwrap();
        let id = Slots::default().insert_with(|_| ());
        let of = (address, ClientKey::Address(address.ip()));
        (client, Session::new(id, downstream, of, selection, trace, permit, now))
    }

    fn context(&mut self) -> Context<'_> {
        Context { core: &mut self.core, tools: &mut self.tools }
    }
}

/// An endpoint whose queue has room for one connection, and that connection.
fn silent() -> (TcpListener, TcpStream) {
    let endpoint = TcpListener::bind(ANY).unwrap();
    listen(&endpoint, 0).unwrap();
    let filler = TcpStream::connect(endpoint.local_addr().unwrap()).unwrap();
    assert_eq!(poll(&mut [PollFd::new(&endpoint, PollFlags::IN)], None), Ok(1), "it is in the queue");
    (endpoint, filler)
}

fn relaying(session: &mut Session) -> &mut Relaying {
    let State::Relaying(relaying) = &mut session.state else { panic!("its endpoint has answered") };
    relaying
}

fn is_half_closed(session: &Session) -> bool {
    let State::Relaying(relaying) = &session.state else { panic!("its endpoint has answered") };
    relaying.is_half_closed(&session.downstream)
}

/// Whether keepalive is on: for the client's socket and the endpoint's.
fn keepalive(session: &mut Session) -> [bool; 2] {
    let upstream = SockRef::from(&relaying(session).upstream.stream).keepalive().unwrap();
    [SockRef::from(&session.downstream.stream).keepalive().unwrap(), upstream]
}

#[test]
fn a_session_that_has_lasted_half_a_minute_has_keepalive_on_both_sockets_and_a_younger_one_on_neither() {
    for closed in [None, Some(Side::Downstream), Some(Side::Upstream)] {
        let endpoint = TcpListener::bind(ANY).unwrap();
        let mut world = World::new(&endpoint);
        let (client, mut session) = world.accept();
        assert_eq!(session.begin(&mut world.context()), Step::Wait);
        let (accepted, _) = endpoint.accept().unwrap();
        if let Some(side) = closed {
            let end = if side == Side::Downstream { &client } else { &accepted };
            end.shutdown(Shutdown::Write).unwrap();
            let is_known = (0..PATIENCE).any(|_| {
                std::thread::yield_now();
                session.downstream.readable = true;
                relaying(&mut session).upstream.readable = true;
                assert_eq!(session.turn(&mut world.context()), Step::Wait);
                is_half_closed(&session)
            });
            assert!(is_known, "{closed:?}");
        }
        assert_eq!(session.deadline.unwrap().at(), session.began + SETTLED, "{closed:?}");

        for (age, has_it) in [(SETTLED * 2 / 3, false), (SETTLED, true)] {
            session.began = Instant::now() - age;
            assert_eq!(session.on_timer(&mut world.context()), Step::Wait);
            assert_eq!(keepalive(&mut session), [has_it; 2], "after {age:?}, {closed:?}");
            let until = closed.map(|_| relaying(&mut session).last_moved + world.core.half_closed_idle);
            let next = if has_it { until } else { Some(session.began + SETTLED) };
            assert_eq!(session.deadline.map(TimerId::at), next, "after {age:?}, {closed:?}");
        }
    }
}

#[test]
fn a_silent_endpoint_has_its_time_from_when_it_is_asked_however_long_the_turn_has_lasted() {
    let (endpoint, _filler) = silent();
    let mut world = World::new(&endpoint);
    let (_client, mut session) = world.accept();
    let begin = Instant::now();
    world.core.now = begin - HOUR;
    assert_eq!(session.begin(&mut world.context()), Step::Wait);
    assert!(matches!(session.state, State::Connecting(_)));
    assert!(session.deadline.unwrap().at() >= begin + FIRST_TIMEOUT);
}

#[test]
fn after_all_patience_no_endpoint_is_asked_however_long_the_turn_has_lasted() {
    let endpoint = TcpListener::bind(ANY).unwrap();
    let mut world = World::new(&endpoint);
    world.core.now = Instant::now() - HOUR;
    let (_client, mut session) = world.accept_at(world.core.now);
    assert_eq!(session.begin(&mut world.context()), Step::End(End::NoEndpoint));
}

#[test]
fn how_long_a_connect_took_and_when_it_was_is_told_by_the_clock_however_long_the_turn_has_lasted() {
    let (endpoint, _filler) = silent();
    let mut world = World::new(&endpoint);
    let (_client, mut session) = world.accept();
    assert_eq!(session.begin(&mut world.context()), Step::Wait);
    let State::Connecting(Connecting { current: Some((peer, _)), .. }) = &mut session.state else {
        panic!("it is silent")
    };
    // What the kernel does with the next SYN, if there is room by then.
    let answering = TcpListener::bind(ANY).unwrap();
    let answered = TcpStream::connect(answering.local_addr().unwrap()).unwrap();
    answered.set_nonblocking(true).unwrap();
    *peer = Peer::connected(mio::net::TcpStream::from_std(answered));

    let now = Instant::now();
    session.began = now - HOUR;
    world.core.now = session.began;
    assert_eq!(session.check_connect(&mut world.context()), Step::Wait);
    assert!(relaying(&mut session).last_moved >= now);
    assert!(session.trace.unwrap().connect.unwrap() >= HOUR);
}

/// The reader does not read, and there is little more than its kernel takes.
#[test]
fn where_there_are_many_orphans_a_session_goes_on_until_its_last_bytes_have_arrived() {
    for (orphans, goes_on) in [(0, false), (1 << 20, true)] {
        let endpoint = TcpListener::bind(ANY).unwrap();
        let mut world = World::new(&endpoint);
        world.core.orphans = Orphans::seen(orphans);
        let (mut client, mut session) = world.accept();
        SockRef::from(&client).set_recv_buffer_size(1).unwrap();
        assert_eq!(session.begin(&mut world.context()), Step::Wait);
        let (mut accepted, _) = endpoint.accept().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        accepted.write_all(&[0; 60_000]).unwrap();
        drop(accepted);
        let mut turn = |world: &mut World| {
            std::thread::yield_now();
            session.downstream.readable = true;
            relaying(&mut session).upstream.readable = true;
            let step = session.turn(&mut world.context());
            (step, relaying(&mut session).is_delivering())
        };
        let ended = (Step::End(End::Closed), false);
        let is_passed_on = |seen: &(Step, bool)| *seen == ended || seen.1;
        let seen = (0..PATIENCE).map(|_| turn(&mut world)).find(is_passed_on);
        assert_eq!(seen == Some(ended), !goes_on, "{seen:?}");
        if goes_on {
            client.read_to_end(&mut Vec::new()).unwrap();
            assert!((0..PATIENCE).any(|_| turn(&mut world).0 == ended.0));
        }
    }
}

#[test]
fn the_first_piece_of_an_answer_is_acknowledged_where_more_may_wait_for_that() {
    let endpoint = TcpListener::bind(ANY).unwrap();
    let mut world = World::new(&endpoint);
    let (mut client, mut session) = world.accept();
    client.write_all(b"question").unwrap();
    assert_eq!(session.begin(&mut world.context()), Step::Wait);
    let is_prompt =
        |session: &mut Session| SockRef::from(&relaying(session).upstream.stream).tcp_quickack().unwrap();
    let (mut accepted, _) = endpoint.accept().unwrap();
    accepted.read_exact(&mut [0; 8]).unwrap();
    assert!(!is_prompt(&mut session), "the handshake went with the question");
    accepted.write_all(b"an").unwrap();
    let is_there = (0..PATIENCE).any(|_| {
        std::thread::yield_now();
        relaying(&mut session).upstream.readable = true;
        assert_eq!(session.turn(&mut world.context()), Step::Wait);
        relaying(&mut session).received == 2
    });
    assert!(is_there && is_prompt(&mut session));
}

/// A session whose first side has sent `bytes` bytes, a FIN and then a reset. The other side has read
/// nothing, and has sent something itself if `owes`.
fn outlived(world: &mut World, endpoint: &TcpListener, bytes: usize, owes: bool) -> (TcpStream, Session) {
    let (client, mut session) = world.accept();
    assert_eq!(session.begin(&mut world.context()), Step::Wait);
    let (mut accepted, _) = endpoint.accept().unwrap();
    // The reader's buffers are small.
    SockRef::from(&client).set_recv_buffer_size(1).unwrap();
    SockRef::from(&session.downstream.stream).set_send_buffer_size(1).unwrap();
    SockRef::from(&relaying(&mut session).upstream.stream).set_recv_buffer_size(1 << 20).unwrap();
    accepted.write_all(&vec![7; bytes]).unwrap();
    accepted.shutdown(Shutdown::Write).unwrap();
    let is_known = (0..PATIENCE).any(|_| {
        std::thread::yield_now();
        let upstream = &mut relaying(&mut session).upstream;
        // All bytes have arrived, followed by the end.
        let mut seen = vec![0; 2 * bytes.max(1)];
        upstream.stream.peek(&mut seen).is_ok_and(|seen| seen == bytes)
    });
    assert!(is_known);
    if owes {
        (&client).write_all(b"late").unwrap();
        assert!((0..PATIENCE).any(|_| {
            std::thread::yield_now();
            session.downstream.has_unread()
        }));
    }
    SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
    drop(accepted);
    let mut events = mio::Events::with_capacity(8);
    let mut poll = Poll::new().unwrap();
    let upstream = &mut relaying(&mut session).upstream;
    upstream.unwatch(world.poll.registry());
    upstream.watch_all(poll.registry(), mio::Token(0)).unwrap();
    while !upstream.has_failed() {
        poll.poll(&mut events, None).unwrap();
        events.iter().for_each(|event| upstream.note(event));
    }
    upstream.unwatch(poll.registry());
    (client, session)
}

/// Runs the next turn of a session, this much later.
fn turn_after(session: &mut Session, world: &mut World, after: Duration) -> Step {
    world.core.now += after;
    session.turn(&mut world.context())
}

#[test]
fn who_reads_nothing_of_what_a_failed_side_has_sent_is_waited_for_as_long_as_it_has_sent_nothing_itself() {
    const MUCH: usize = 1 << 17;
    for (owes, end) in [(false, None), (true, Some(End::EndpointReset))] {
        let endpoint = TcpListener::bind(ANY).unwrap();
        let mut world = World::new(&endpoint);
        let (_client, mut session) = outlived(&mut world, &endpoint, MUCH, owes);
        assert_eq!(turn_after(&mut session, &mut world, Duration::ZERO), Step::Wait);
        assert_eq!(session.look().state, ConnectionState::EndpointClosed);
        // It may still acknowledge what its kernel takes.
        let step = (0..4).map(|_| turn_after(&mut session, &mut world, Duration::from_secs(30))).last();
        assert_eq!(step, Some(end.map_or(Step::Wait, Step::End)), "owes: {owes}");
        if end.is_none() {
            let idle = world.core.half_closed_idle;
            assert_eq!(turn_after(&mut session, &mut world, idle), Step::End(End::HalfClosed));
        }
    }
}

#[test]
fn a_waiting_session_whose_closed_side_is_found_gone_by_keepalive_is_closed_and_not_reset() {
    for (silent, owes, end) in [
        (Duration::ZERO, false, End::EndpointReset),
        (socket::KEEPALIVE_IDLE, false, End::Closed),
        (socket::KEEPALIVE_IDLE, true, End::EndpointReset),
    ] {
        let endpoint = TcpListener::bind(ANY).unwrap();
        let mut world = World::new(&endpoint);
        let (_client, mut session) = outlived(&mut world, &endpoint, 0, owes);
        let relaying = relaying(&mut session);
        relaying.last_moved = world.core.now - silent;
        let mut step = Step::Wait;
        let is_over = (0..PATIENCE).any(|_| {
            std::thread::yield_now();
            step = session.turn(&mut world.context());
            step != Step::Wait
        });
        assert_eq!((is_over, step), (true, Step::End(end)), "after {silent:?}, owes: {owes}");
    }
}
