//! Connections that are too many: of one client, of a Service, of all.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;

use sluice_dataplane::Config;
use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{World, wait};
use socket2::{Domain, Socket, Type};

use super::client::connect;

#[test]
fn a_client_that_leaks_connections_leaves_some_for_others() {
    const ATTEMPTS: usize = 40;
    let backend = Backend::echo();
    // Of which an eighth is UDP's: 28 sessions.
    let config = Config { workers: 1, descriptors: 64, client_share: Config::CLIENT_SHARE, ..World::CONFIG };
    let world = World::with_config(Protocol::Tcp, &[backend.address], config);
    let exchange = |mut stream: &TcpStream| -> io::Result<()> {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let streams: Vec<TcpStream> = (0..ATTEMPTS).map(|_| connect(&world)).collect();
    let served = streams.iter().filter(|stream| exchange(stream).is_ok()).count();
    assert!((20..=22).contains(&served), "three quarters of 28 are its share, not {served}");
    assert_eq!(world.proxy.stats().tcp_over_share, (ATTEMPTS - served) as u64);

    let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    other.bind(&SocketAddr::from((sluice_tests::loopback_address(), 0)).into()).unwrap();
    other.connect(&world.frontend.into()).unwrap();
    exchange(&other.into()).unwrap();
    assert_eq!(
        streams.iter().filter(|stream| exchange(stream).is_ok()).count(),
        served,
        "the old is untouched"
    );
    assert_eq!(world.proxy.stats().tcp_over_limit, 0);
}

#[test]
fn over_the_limit_new_connections_are_reset_and_old_ones_go_on() {
    let backend = Backend::echo();
    // Two are for UDP, and two for the frontend.
    let world =
        World::with_config(Protocol::Tcp, &[backend.address], Config { descriptors: 24, ..World::CONFIG });
    let mut old: Vec<TcpStream> = (0..10).map(|_| connect(&world)).collect();
    for stream in &mut old {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let mut new = connect(&world);
    assert_eq!(new.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_over_limit, 1);
    for stream in &mut old {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    old.pop();
    wait::until("a place has become free", || {
        let mut stream = connect(&world);
        stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
    });
}

/// Annotation `sluice.dev/max-connections`.
#[test]
fn what_is_over_a_services_limit_is_reset_and_counted_and_the_others_go_on() {
    let alive = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[alive.address]);
    world.edit(|service| service.max_connections = NonZeroU32::new(2));
    let exchange = |stream: &mut TcpStream| {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    let mut open = [connect(&world), connect(&world)];
    open.iter_mut().for_each(exchange);
    let error = connect(&world).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_over_service_limit, 1);
    open.iter_mut().for_each(exchange);
    let [first, _second] = open;
    drop(first);
    wait::until("its session has ended", || world.proxy.stats().tcp_active == 1);
    exchange(&mut connect(&world));
}
