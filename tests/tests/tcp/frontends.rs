//! Where Services are served, and by whom in turn.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World, wait};

use super::client::connect;

#[test]
fn ten_thousand_short_connections_are_exactly_even_and_without_an_error() {
    const CLIENTS: usize = 4;
    const EACH: usize = 2_500;
    let backends: Vec<Backend> = (0..5).map(|_| Backend::echo()).collect();
    let world = World::new(Protocol::Tcp, &backends.iter().map(|b| b.address).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for n in 0..EACH as u64 {
                    let mut stream = connect(&world);
                    stream.write_all(&n.to_be_bytes()).unwrap();
                    let mut answer = [0; 8];
                    stream.read_exact(&mut answer).unwrap();
                    assert_eq!(u64::from_be_bytes(answer), n);
                }
            });
        }
    });
    let served: Vec<usize> = backends.iter().map(Backend::served).collect();
    assert_eq!(served, [CLIENTS * EACH / 5; 5]);
    let stats = world.proxy.stats();
    assert_eq!((stats.tcp_retries, stats.tcp_unroutable, stats.tcp_all_endpoints_failed), (0, 0, 0));
    wait::until("every session has ended", || world.proxy.stats().tcp_active == 0);
}

#[test]
fn ipv6_is_served_like_ipv4() {
    let ip = IpAddr::from(Ipv6Addr::LOCALHOST);
    let backend = Backend::accepting_at(ip, |mut stream| stream.write_all(b"6").unwrap());
    let frontend = (ip, sluice_tests::free_port(ip)).into();
    let world = World::at(frontend, Protocol::Tcp, &[backend.address], World::CONFIG);
    let mut answer = String::new();
    connect(&world).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "6");
}

#[test]
fn without_endpoints_connections_are_refused_and_with_one_again_served() {
    let backend = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[backend.address]);
    connect(&world);
    for _ in 0..20 {
        world.set_endpoints(&[]);
        let error = TcpStream::connect(world.frontend).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        world.set_endpoints(&[backend.address]);
        let mut stream = connect(&world);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    world.delete_service();
    assert_eq!(TcpStream::connect(world.frontend).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_frontend_that_goes_away_answers_those_who_have_connected() {
    const ROUNDS: usize = 30;
    const CLIENTS: usize = 8;
    let backend = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[backend.address]);
    let frontend = world.frontend;
    for round in 0..ROUNDS {
        let answered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    loop {
                        let mut stream = match TcpStream::connect(frontend) {
                            Ok(stream) => stream,
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "round {round}");
                                return;
                            }
                        };
                        let exchange = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
                        assert!(exchange.is_ok(), "round {round}: {exchange:?}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            wait::until("clients are at it", || answered.load(Ordering::Relaxed) > 10 * CLIENTS);
            world.delete_service();
        });
        world.edit(|_| {});
    }
}

#[test]
fn a_taken_port_stops_nobody_else_and_is_served_once_it_is_free() {
    let backend = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[]);
    let taken = TcpListener::bind(world.frontend).unwrap();
    world.set_endpoints(&[backend.address]);
    drop(taken);
    wait::until("the frontend is served", || {
        world.proxy.tick();
        TcpStream::connect(world.frontend).is_ok()
    });
}

#[test]
fn two_services_that_are_each_other_s_endpoints_do_not_go_round_in_circles() {
    let mut world = World::new(Protocol::Tcp, &[]);
    let other = world.add_service("other", &[world.frontend]);
    world.set_endpoints(&[other]);
    for frontend in [world.frontend, other] {
        let mut stream = TcpStream::connect(frontend).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(world.proxy.stats().endpoint_loops, 2);
    assert_eq!(world.proxy.stats().tcp_accepted, 2);
}
