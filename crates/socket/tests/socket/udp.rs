//! UDP: where datagrams go, and whom answers come from.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use sluice_socket_maps::{Kernel, protocol, verdict};
use sluice_testbed::lab::Namespace;
use socket2::{Domain, SockRef, Socket, Type};

use crate::node::{Node, both, desc, endpoint, endpoint_ip, key, mapped, serve, service};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn bind(namespace: &Namespace, at: SocketAddr) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A socket that talks to an address of this family.
pub(crate) fn client(namespace: &Namespace, to: SocketAddr) -> UdpSocket {
    bind(namespace, if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap())
}

/// A Service's address in each form that a socket may name it by.
fn addresses() -> [SocketAddr; 3] {
    [service(false, 1, 53), service(true, 1, 53), mapped(service(false, 1, 53))]
}

/// Whether packets to an address are IPv6.
fn is_v6(to: SocketAddr) -> bool {
    matches!(to.ip().to_canonical(), IpAddr::V6(_))
}

/// Endpoints, and where they are.
pub(crate) fn endpoints(namespace: &Namespace, v6: bool, count: u8) -> (Vec<UdpSocket>, Vec<SocketAddr>) {
    let sockets: Vec<_> =
        (1..=count).map(|number| bind(namespace, (endpoint_ip(v6, number), 0).into())).collect();
    let at = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    (sockets, at)
}

/// An endpoint takes one datagram and sends it back.
pub(crate) fn answer(endpoint: &UdpSocket) -> Vec<u8> {
    let mut datagram = [0; 64];
    let (length, from) = endpoint.recv_from(&mut datagram).unwrap();
    endpoint.send_to(&datagram[..length], from).unwrap();
    datagram[..length].to_vec()
}

pub(crate) fn received(client: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut datagram = [0; 64];
    let (length, from) = client.recv_from(&mut datagram).unwrap();
    (datagram[..length].to_vec(), from)
}

#[test]
fn connected_sockets_have_one_endpoint_and_translate_nothing_per_datagram() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let (endpoints, at) = endpoints(&node.host, v6, 2);
        let to = service(v6, 1, 53);
        serve(&mut kernel, set, to, &at);
        for (turn, to) in [to, mapped(to)].into_iter().enumerate() {
            let client = client(&node.host, to);
            node.host.run(|| client.connect(to)).unwrap();
            for _ in 0..20 {
                client.send(b"ask").unwrap();
                answer(&endpoints[turn]);
                assert_eq!(received(&client), (b"ask".to_vec(), to));
            }
            assert_eq!(client.peer_addr().unwrap(), to);
        }
        assert_eq!(kernel.cursor(set), 2, "one turn a socket");
    }
}

#[test]
fn a_socket_talks_to_several_services_and_each_answer_is_from_its_own() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        // More than a socket's flows, so that some are begun anew; their old endpoints still answer.
        let services: Vec<_> = (1..=6).map(|number| service(v6, number, 53)).collect();
        let endpoints: Vec<_> = services.iter().map(|_| endpoints(&node.host, v6, 1)).collect();
        for (set, (to, (_, at))) in (1..).zip(services.iter().zip(&endpoints)) {
            serve(&mut kernel, set, *to, at);
        }
        for map in [false, true] {
            let to = |at: usize| if map { mapped(services[at]) } else { services[at] };
            let client = client(&node.host, to(0));
            for round in 0..3 {
                for (number, (endpoints, _)) in endpoints.iter().enumerate() {
                    let ask = format!("{round} {number}").into_bytes();
                    client.send_to(&ask, to(number)).unwrap();
                    answer(&endpoints[0]);
                    assert_eq!(received(&client), (ask, to(number)));
                }
            }
        }
        let keys: Vec<_> = services.iter().map(|to| key(*to, protocol::UDP)).collect();
        kernel.remove_frontends(&keys).unwrap();
    }
}

#[test]
fn a_flow_keeps_its_endpoint_until_that_goes_and_hears_its_late_answers() {
    for to in addresses() {
        keeps_its_endpoint(to);
    }
}

fn keeps_its_endpoint(to: SocketAddr) {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (endpoints, at) = endpoints(&node.host, is_v6(to), 2);
    serve(&mut kernel, 1, to, &at);
    let client = client(&node.host, to);
    for _ in 0..5 {
        client.send_to(b"same", to).unwrap();
        answer(&endpoints[0]);
        assert_eq!(received(&client).1, to);
    }
    assert_eq!(kernel.cursor(1), 1);

    client.send_to(b"late", to).unwrap();
    // The first endpoint goes.
    kernel.publish(1, desc(11, 1, 0));
    let mut gone = endpoint(at[0]);
    gone.incarnation = 2;
    kernel.write_endpoints(10, &[gone]);
    client.send_to(b"moved", to).unwrap();
    assert_eq!(answer(&endpoints[1]), b"moved");
    assert_eq!(received(&client), (b"moved".to_vec(), to));
    assert_eq!(answer(&endpoints[0]), b"late");
    assert_eq!(received(&client), (b"late".to_vec(), to));
}

#[test]
fn others_answers_keep_their_address() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, to) in (1..).zip(addresses()) {
        let (endpoints, at) = endpoints(&node.host, is_v6(to), 2);
        serve(&mut kernel, set, to, &at[..1]);
        let direct = if to.is_ipv6() { mapped(at[1]) } else { at[1] };
        let client = client(&node.host, to);
        client.send_to(b"service", to).unwrap();
        client.send_to(b"direct", direct).unwrap();
        answer(&endpoints[0]);
        answer(&endpoints[1]);
        let mut answers = [received(&client), received(&client)];
        answers.sort();
        assert_eq!(answers, [(b"direct".to_vec(), direct), (b"service".to_vec(), to)]);
    }
}

/// A limit: the answer does not say what it answers.
#[test]
fn what_an_endpoint_says_that_was_asked_directly_too_is_from_the_service() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (endpoints, at) = endpoints(&node.host, false, 1);
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at);
    let client = client(&node.host, to);
    for (asked, said) in [(at[0], at[0]), (to, to), (at[0], to)] {
        client.send_to(b"ask", asked).unwrap();
        answer(&endpoints[0]);
        assert_eq!(received(&client), (b"ask".to_vec(), said), "{asked}");
    }
}

#[test]
fn a_refusal_is_econnrefused_of_a_datagram_and_a_socket_may_connect() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let refused = service(v6, 1, 53);
        kernel.put_frontends(&[(key(refused, protocol::UDP), both(verdict::REFUSE))]).unwrap();
        for to in [refused, mapped(refused)] {
            let client = client(&node.pod, to);
            for blocking in [true, false] {
                client.set_nonblocking(!blocking).unwrap();
                let sent = client.send_to(b"ask", to).unwrap_err();
                assert_eq!(sent.kind(), io::ErrorKind::ConnectionRefused);
            }
            // Not by us: there is no way to a Service here.
            let connected = client.connect(to).unwrap_err();
            assert_eq!(connected.kind(), io::ErrorKind::NetworkUnreachable);
        }
    }
}

#[test]
fn a_socket_that_was_silent_for_long_is_given_the_endpoint_that_is_due() {
    const IDLE: Duration = Duration::from_millis(20);
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let (endpoints, at) = endpoints(&node.host, v6, 2);
        let to = service(v6, 1, 53);
        serve(&mut kernel, 1, to, &at);
        let client = client(&node.host, to);
        let ask = || client.send_to(b"ask", to).unwrap();
        kernel.set_flow_idle(Duration::from_secs(3600));
        for _ in 0..2 {
            ask();
            answer(&endpoints[0]);
            assert_eq!(received(&client), (b"ask".to_vec(), to));
            std::thread::sleep(IDLE * 2);
        }
        kernel.set_flow_idle(IDLE);
        ask();
        answer(&endpoints[1]);
        assert_eq!(received(&client), (b"ask".to_vec(), to));
        kernel.set_flow_idle(Duration::ZERO);
        std::thread::sleep(IDLE * 2);
        ask();
        answer(&endpoints[1]);
    }
}

#[test]
fn a_second_service_with_the_same_endpoint_is_the_relays_while_the_first_one_may_answer() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    kernel.set_flow_idle(Duration::from_millis(100));
    for v6 in [false, true] {
        let (endpoints, at) = endpoints(&node.host, v6, 1);
        let [first, second] = [1, 2].map(|number| service(v6, number, 53));
        serve(&mut kernel, 1, first, &at);
        serve(&mut kernel, 2, second, &at);
        let client = client(&node.host, first);
        client.send_to(b"ask", first).unwrap();
        client.send_to(b"ask", second).expect_err("no packet can reach it");
        answer(&endpoints[0]);
        assert_eq!(received(&client), (b"ask".to_vec(), first));
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.send_to(b"later", second).is_err() {
            assert!(Instant::now() < deadline, "the first one has been silent for long");
            std::thread::yield_now();
        }
        answer(&endpoints[0]);
        assert_eq!(received(&client), (b"later".to_vec(), second));
    }
}

#[test]
fn sockets_that_share_a_port_are_the_relays() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for to in addresses() {
        let (_endpoints, at) = endpoints(&node.host, is_v6(to), 1);
        serve(&mut kernel, 1, SocketAddr::new(to.ip().to_canonical(), to.port()), &at);
        for is_by_port in [true, false] {
            let share = |socket: SockRef<'_>| match is_by_port {
                true => socket.set_reuse_port(true).unwrap(),
                false => socket.set_reuse_address(true).unwrap(),
            };
            let client = client(&node.host, to);
            share((&client).into());
            client.send_to(b"ask", to).expect_err("no packet can reach it");
            client.connect(to).expect_err("nor can the socket");
            // One that gets its port only now.
            let unbound = node.host.run(|| Socket::new(Domain::for_address(to), Type::DGRAM, None)).unwrap();
            share((&unbound).into());
            unbound.connect(&to.into()).expect_err("nor can this one");
        }
        assert_eq!(kernel.cursor(1), 0);
    }
}
