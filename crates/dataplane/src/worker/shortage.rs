//! What a worker does if a resource runs out or a socket fails.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

use super::by_hand::{ANY, PATIENCE, World};
use super::*;
use crate::tcp;
use crate::tcp::exhausted::Path;
use crate::tcp::relay::{ACCEPT_BATCH, ACCEPT_RETRY};
use crate::tcp::socket::Search;

#[test]
fn what_the_kernel_drops_as_a_listeners_queue_is_full_is_counted() {
    const DROPPED: usize = 10;
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
    rustix::net::listen(&socket, ACCEPT_BATCH.try_into().unwrap()).unwrap();
    let frontend = world.serve_tcp_by(socket, "web", &[endpoint.local_addr().unwrap()]);
    // The kernel takes one more than the backlog.
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
    // More, if a client has retransmitted meanwhile.
    assert!(stats.tcp_dropped_queue >= DROPPED as u64, "{}", stats.tcp_dropped_queue);
}

#[test]
fn a_listener_that_does_not_work_any_more_is_tried_again_and_not_all_the_time() {
    let mut world = World::new();
    let endpoint = TcpListener::bind(ANY).unwrap();
    let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
    let twin = socket.try_clone().unwrap();
    world.serve_tcp_by(socket, "web", &[endpoint.local_addr().unwrap()]);
    let begin = Instant::now();
    // A listener that was shut down: accept(2) always fails, whatever the cause.
    SockRef::from(&twin).shutdown(Shutdown::Both).unwrap();
    (0..100).for_each(|_| world.turn_at_once());
    let (failed, elapsed) = (world.stats().accept_failed, begin.elapsed());
    let retries = elapsed.as_millis() / ACCEPT_RETRY.as_millis();
    assert!((1..=1 + retries).contains(&failed.into()), "{failed} times in {elapsed:?}");
    // A deadline, if it is not over yet, wakes the loop, and then the listener gets a turn.
    assert!(world.worker.tcp.has_ready() || world.worker.core.timers.len() == 1);
    (0..2).for_each(|_| world.turn());
    assert!(world.stats().accept_failed > failed);
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
    // Longer than the test takes.
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
    // Until no byte moves any more, because nobody reads.
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
