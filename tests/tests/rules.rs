//! Rules of Services that show in who answers: a few of each kind, with real connections. All cases of all
//! rules are in `crates/table`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World};
use socket2::{Domain, Socket, Type};

/// Backends that send their number and keep the connection until the client ends it.
fn numbered(count: u8) -> Vec<Backend> {
    let serve = |number| {
        Backend::tcp(move |mut stream| {
            stream.write_all(&[number])?;
            stream.read(&mut [0]).map(drop)
        })
    };
    (0..count).map(serve).collect()
}

fn world(backends: &[Backend]) -> World {
    World::new(Protocol::Tcp, &backends.iter().map(|backend| backend.address).collect::<Vec<_>>())
}

/// Connects from an address of choice; returns the connection and who answers.
fn connect_from(client: Ipv4Addr, world: &World) -> std::io::Result<(TcpStream, u8)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((client, 0)).into())?;
    socket.connect(&world.frontend.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut number = [0];
    stream.read_exact(&mut number)?;
    Ok((stream, number[0]))
}

/// Client number `n`.
fn client(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, n)
}

fn set_balance(world: &mut World, balance: &str) {
    world.edit(|service| {
        service.annotations.insert("balance".into(), balance.into());
    });
}

#[test]
fn with_session_affinity_a_client_keeps_its_endpoint_until_it_is_gone() {
    let backends = numbered(3);
    let mut world = world(&backends);
    world.edit(|service| service.affinity = Some(Duration::from_secs(60)));
    let first: Vec<u8> = (1..=3).map(|n| connect_from(client(n), &world).unwrap().1).collect();
    assert_eq!(first, [0, 1, 2], "new clients take turns");
    for _ in 0..10 {
        let again: Vec<u8> = (1..=3).map(|n| connect_from(client(n), &world).unwrap().1).collect();
        assert_eq!(again, first);
    }
    world.set_endpoints(&[backends[0].address, backends[1].address]);
    assert_eq!(connect_from(client(1), &world).unwrap().1, 0);
    assert_ne!(connect_from(client(3), &world).unwrap().1, 2);
}

#[test]
fn least_connections_fills_up_who_has_fewer() {
    let backends = numbered(3);
    let mut world = world(&backends);
    set_balance(&mut world, "least-connections");
    let mut open: Vec<(TcpStream, u8)> = (0..9).map(|_| connect_from(client(1), &world).unwrap()).collect();
    let count = |open: &[(TcpStream, u8)]| {
        open.iter().fold([0; 3], |mut counts, (_, number)| {
            counts[usize::from(*number)] += 1;
            counts
        })
    };
    assert_eq!(count(&open), [3, 3, 3]);
    open.retain(|(_, number)| *number != 1);
    sluice_tests::wait::until("the sessions have ended", || world.proxy.stats().tcp_active == 6);
    let next: Vec<u8> = (0..3)
        .map(|_| connect_from(client(1), &world).unwrap())
        .map(|(stream, number)| {
            open.push((stream, number));
            number
        })
        .collect();
    assert_eq!(next, [1, 1, 1]);
    assert_eq!(count(&open), [3, 3, 3]);
}

#[test]
fn with_source_hash_few_clients_move_when_an_endpoint_goes() {
    let backends = numbered(5);
    let mut world = world(&backends);
    set_balance(&mut world, "source-hash");
    let answers = |world: &World| -> BTreeMap<u8, u8> {
        (1..=200).map(|n| (n, connect_from(client(n), world).unwrap().1)).collect()
    };
    let before = answers(&world);
    assert_eq!(answers(&world), before);
    world.set_endpoints(&backends[..4].iter().map(|backend| backend.address).collect::<Vec<_>>());
    let moved = answers(&world).into_iter().filter(|(n, endpoint)| before[n] != *endpoint && before[n] != 4);
    // Of those whose endpoint stayed: at most a tenth.
    let moved = moved.count();
    assert!(moved <= 20, "{moved} of 200 clients moved without need");
}

#[test]
fn source_ranges_guard_the_load_balancer_s_address() {
    let backends = numbered(1);
    let mut world = world(&backends);
    let address = IpAddr::from(sluice_tests::loopback_address());
    let inside = "127.0.1.1/32".parse().unwrap();
    world.edit(|service| {
        service.load_balancer_ips = vec![address];
        service.source_ranges = Some(vec![inside]);
    });
    let balancer = SocketAddr::new(address, world.frontend.port());
    let cluster_ip = std::mem::replace(&mut world.frontend, balancer);
    assert_eq!(connect_from(client(1), &world).unwrap().1, 0);
    // Bind mode cannot stay silent, as the rule has it: the connection is reset.
    assert_eq!(connect_from(client(2), &world).unwrap_err().kind(), ErrorKind::ConnectionReset);
    world.frontend = cluster_ip;
    assert_eq!(connect_from(client(2), &world).unwrap().1, 0);
}
