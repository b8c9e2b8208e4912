//! Endpoints that refuse, are silent, or go: what their clients see of it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{World, wait};
use socket2::{Domain, Socket, Type};

use super::client::{connect, reset};

#[test]
fn a_dead_endpoint_is_retried_elsewhere_before_the_client_notices() {
    let alive = Backend::echo();
    let dead = Backend::echo().address;
    let world = World::new(Protocol::Tcp, &[dead, alive.address]);
    for _ in 0..100 {
        let mut stream = connect(&world);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(alive.served(), 100);
    assert!(world.proxy.stats().tcp_retries > 0);
}

/// A listener whose queue is full: connecting to it gets no answer at all.
fn silent_endpoint() -> (Socket, Vec<Socket>, SocketAddr) {
    let address = SocketAddr::from((sluice_tests::loopback_address(), 0));
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    loop {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        match filler.connect_timeout(&address.into(), Duration::from_millis(300)) {
            Ok(()) => fillers.push(filler),
            Err(_) => return (listener, fillers, address),
        }
        assert!(fillers.len() < 100, "a queue of length 0 does not fill");
    }
}

#[test]
fn an_endpoint_that_does_not_answer_is_given_up_and_the_next_one_serves() {
    let (_listener, _fillers, silent) = silent_endpoint();
    let alive = Backend::echo();
    let world = World::new(Protocol::Tcp, &[silent, alive.address]);
    for _ in 0..4 {
        let mut stream = connect(&world);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(alive.served(), 4);
}

#[test]
fn a_client_that_dies_mid_connect_leaves_nothing_behind() {
    let (_listener, _fillers, silent) = silent_endpoint();
    let world = World::new(Protocol::Tcp, &[silent]);
    let stream = connect(&world);
    wait::until("the session is connecting", || world.proxy.stats().tcp_active == 1);
    reset(stream);
    wait::until("the session has ended", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_client_gone, 1);
}

#[test]
fn when_every_endpoint_refuses_the_client_is_reset() {
    let dead = [Backend::echo().address, Backend::echo().address];
    let world = World::new(Protocol::Tcp, &dead);
    let mut stream = connect(&world);
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_all_endpoints_failed, 1);
}

#[test]
fn an_endpoint_whose_queue_is_full_for_long_serves_the_client_in_the_end() {
    let (listener, fillers, slow) = silent_endpoint();
    let world = World::new(Protocol::Tcp, &[slow]);
    let begun = Instant::now();
    let mut stream = connect(&world);
    // Longer than any relay's connect timeout: the kernel goes on sending the SYN.
    wait::until("much time has passed", || begun.elapsed() > Duration::from_secs(4));
    for _ in &fillers {
        drop(listener.accept().unwrap());
    }
    let (accepted, _) = listener.accept().unwrap();
    accepted.send(b"at last").unwrap();
    let mut got = [0; 7];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"at last");
    assert_eq!(world.proxy.stats().tcp_retries, 0);
}

#[test]
fn a_client_waiting_for_a_silent_endpoint_gets_the_one_that_comes_instead() {
    let (_listener, _fillers, silent) = silent_endpoint();
    let mut world = World::new(Protocol::Tcp, &[silent]);
    let mut stream = connect(&world);
    wait::until("the session is connecting", || world.proxy.stats().tcp_active == 1);
    let alive = Backend::echo();
    world.set_endpoints(&[alive.address]);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(alive.served(), 1);
}

#[test]
fn a_hundred_open_connections_outlive_their_endpoint_s_removal() {
    let (old, new) = (Backend::echo(), Backend::echo());
    let mut world = World::new(Protocol::Tcp, &[old.address]);
    let mut streams: Vec<TcpStream> = (0..100).map(|_| connect(&world)).collect();
    let exchange = |stream: &mut TcpStream| -> io::Result<()> {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    streams.iter_mut().for_each(|stream| exchange(stream).unwrap());
    world.set_endpoints(&[new.address]);
    exchange(&mut connect(&world)).unwrap();
    assert_eq!((old.served(), new.served()), (100, 1));
    streams.iter_mut().for_each(|stream| exchange(stream).unwrap());

    world.delete_service();
    streams.iter_mut().for_each(|stream| exchange(stream).unwrap());
}

#[test]
fn a_service_whose_endpoints_all_refuse_costs_few_attempts() {
    let dead: Vec<_> = (0..200).map(|_| Backend::echo().address).collect();
    let world = World::new(Protocol::Tcp, &dead);
    for _ in 0..10 {
        let error = connect(&world).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let stats = world.proxy.stats();
    assert_eq!(stats.tcp_all_endpoints_failed, 10);
    assert!(stats.tcp_retries <= 3 * 10, "{}", stats.tcp_retries);
}
