//! Connected UDP sockets that send with an address, or whose connection is not what it was when they were led on.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::connect_unspec;
use sluice_socket::{Endable, EndedSockets};
use sluice_socket_maps::Kernel;
use sluice_testbed::lab::Namespace;

use crate::node::{Node, mapped, serve, service};
use crate::udp::{answer, bind, client, endpoints, received};

/// Gives a network addresses, which packets reach it by from then on: of IPv6 that takes a moment.
pub(crate) fn add_addresses(namespace: &Namespace, addresses: &[IpAddr]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    for ip in addresses {
        let length = if ip.is_ipv4() { 32 } else { 128 };
        namespace.ip(&format!("addr add {ip}/{length} dev lo")).unwrap();
        while !namespace.ip(&format!("route get {ip}")).unwrap().starts_with("local") {
            assert!(Instant::now() < deadline, "{ip} is not ours");
            std::thread::yield_now();
        }
    }
}

/// A stand-in for the relay, which takes what is for a Service and is not led on.
fn relay(namespace: &Namespace, service: SocketAddr) -> UdpSocket {
    add_addresses(namespace, &[service.ip()]);
    bind(namespace, service)
}

fn ask(client: &UdpSocket, to: SocketAddr) {
    assert_eq!(client.send_to(b"ask", to).unwrap(), 3);
}

#[test]
fn what_is_sent_with_the_services_address_goes_to_the_endpoint_that_the_socket_is_connected_to() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let (endpoints, at) = endpoints(&node.host, v6, 2);
        let [to, other] = [1, 2].map(|number| service(v6, number, 53));
        serve(&mut kernel, set, to, &at);
        serve(&mut kernel, set + 2, other, &at[1..]);
        let relay = relay(&node.host, other);
        for (turn, map) in [false, true].into_iter().enumerate() {
            let family = |to| if map { mapped(to) } else { to };
            let client = client(&node.host, family(to));
            node.host.run(|| client.connect(family(to))).unwrap();
            for _ in 0..3 {
                ask(&client, family(to));
                answer(&endpoints[turn]);
                assert_eq!(received(&client), (b"ask".to_vec(), family(to)));
            }
            // The kernel would drop what an endpoint of another one says; and so it is with what the relay says.
            ask(&client, family(other));
            answer(&relay);
            client.send(b"on").unwrap();
            assert_eq!(answer(&endpoints[turn]), b"on");
            assert_eq!(received(&client), (b"on".to_vec(), family(to)), "nothing was before it");
        }
        assert_eq!((kernel.cursor(set), kernel.cursor(set + 2)), (2, 0), "one turn a socket");
    }
}

/// The kernel of a socket of IPv6 says the peer's address with each datagram to an IPv4 one.
#[test]
fn a_socket_that_the_relay_has_stays_with_it() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    census.set_endable(Endable { of_node: false, of_pods: false });
    for (set, v6) in [(1, false), (2, true)] {
        let (_endpoints, at) = endpoints(&node.host, v6, 1);
        let to = service(v6, 1, 53);
        serve(&mut kernel, set, to, &at);
        let relay = relay(&node.host, to);
        for to in [to, mapped(to)] {
            let client = client(&node.host, to);
            node.host.run(|| client.connect(to)).unwrap();
            client.send(b"plain").unwrap();
            assert_eq!(answer(&relay), b"plain");
            assert_eq!(received(&client), (b"plain".to_vec(), to));
            ask(&client, to);
            assert_eq!(answer(&relay), b"ask");
            assert_eq!(received(&client), (b"ask".to_vec(), to));
        }
        assert_eq!(kernel.cursor(set), 0);
    }
}

#[test]
fn where_connecting_once_more_fails_a_socket_is_led_on_as_before_and_ended_with_its_endpoint() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    add_addresses(&node.host, &[[192, 0, 2, 1].into()]);
    for (set, at) in [(1, "192.0.2.1:7"), (2, "[fd00::1]:7")] {
        let at: SocketAddr = at.parse().unwrap();
        let endpoint = bind(&node.host, at);
        let [to, other, nobodys] = [1, 2, 3].map(|number| service(at.is_ipv6(), number, 53));
        serve(&mut kernel, set, to, &[at]);
        serve(&mut kernel, set + 2, other, &[at]);
        for map in [false, true] {
            let family = |to| if map { mapped(to) } else { to };
            let client = client(&node.host, family(to));
            node.host.run(|| client.connect(family(to))).unwrap();
            // There is no relay here, and no way to anything that is not led.
            for elsewhere in [other, nobodys] {
                node.host.run(|| client.connect(family(elsewhere))).unwrap_err();
            }
            assert_eq!(client.peer_addr().unwrap(), family(to));
            client.send(b"still").unwrap();
            assert_eq!(answer(&endpoint), b"still");
            assert_eq!(received(&client), (b"still".to_vec(), family(to)));
            let port = client.local_addr().unwrap().port();
            let listed = census.list().unwrap();
            let mine: Vec<_> = listed.iter().filter(|socket| socket.local.port() == port).collect();
            assert_eq!(mine.iter().map(|one| (one.service, one.endpoint)).collect::<Vec<_>>(), [(to, at)]);
            let ended =
                node.host.run(|| census.end_datagram_sockets(|socket| socket.endpoint == at)).unwrap();
            assert_eq!(ended, EndedSockets { ended: 1, ..EndedSockets::default() });
            assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
    }
}

#[test]
fn a_socket_keeps_its_endpoint_when_it_connects_to_its_service_once_more_and_to_another_one_it_is_the_relays()
{
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let (endpoints, at) = endpoints(&node.pod, v6, 2);
        let [to, other] = [1, 2].map(|number| service(v6, number, 53));
        serve(&mut kernel, set, to, &at);
        serve(&mut kernel, set + 2, other, &at[1..]);
        let relay = relay(&node.pod, other);
        for (turn, map) in [false, true].into_iter().enumerate() {
            let family = |to| if map { mapped(to) } else { to };
            let client = client(&node.pod, family(to));
            for _ in 0..3 {
                node.pod.run(|| client.connect(family(to))).unwrap();
                client.send(b"led").unwrap();
                assert_eq!(answer(&endpoints[turn]), b"led");
                assert_eq!(received(&client), (b"led".to_vec(), family(to)));
            }
            node.pod.run(|| client.connect(family(other))).unwrap();
            client.send(b"relay").unwrap();
            assert_eq!(answer(&relay), b"relay");
            assert_eq!(received(&client), (b"relay".to_vec(), family(other)));
            let port = client.local_addr().unwrap().port();
            assert!(!census.list().unwrap().iter().any(|socket| socket.local.port() == port));
        }
        assert_eq!((kernel.cursor(set), kernel.cursor(set + 2)), (2, 0));
    }
}

#[test]
fn a_socket_that_was_connected_by_itself_is_the_relays_when_it_connects_once_more() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    add_addresses(&node.pod, &[[192, 0, 2, 1].into()]);
    for (set, at) in [(1, "192.0.2.1:7"), (2, "[fd00::1]:7")] {
        let at: SocketAddr = at.parse().unwrap();
        let endpoint = bind(&node.pod, at);
        let [to, other] = [1, 2].map(|number| service(at.is_ipv6(), number, 53));
        serve(&mut kernel, set, to, &[at]);
        serve(&mut kernel, set + 2, other, &[at]);
        let relay = relay(&node.pod, to);
        for map in [false, true] {
            let family = |to| if map { mapped(to) } else { to };
            let client = client(&node.pod, family(at));
            node.pod.run(|| client.connect(family(at))).unwrap();
            node.pod.run(|| client.connect(family(to))).unwrap();
            client.send(b"relay").unwrap();
            assert_eq!(answer(&relay), b"relay");
            assert_eq!(received(&client), (b"relay".to_vec(), family(to)));
            let port = client.local_addr().unwrap().port();
            assert!(!census.list().unwrap().iter().any(|socket| socket.local.port() == port));
            for to in [to, other] {
                // One that has let go is led on.
                connect_unspec(&client).unwrap();
                node.pod.run(|| client.connect(family(to))).unwrap();
                client.send(b"led").unwrap();
                assert_eq!(answer(&endpoint), b"led");
                assert_eq!(received(&client), (b"led".to_vec(), family(to)));
            }
        }
    }
}

#[test]
fn a_socket_that_has_let_go_hears_the_endpoint_by_its_own_address() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let (endpoints, at) = endpoints(&node.host, v6, 1);
        let to = service(v6, 1, 53);
        serve(&mut kernel, set, to, &at);
        for map in [false, true] {
            let family = |to| if map { mapped(to) } else { to };
            let client = client(&node.host, family(to));
            node.host.run(|| client.connect(family(to))).unwrap();
            client.send(b"led").unwrap();
            answer(&endpoints[0]);
            assert_eq!(received(&client), (b"led".to_vec(), family(to)));
            connect_unspec(&client).unwrap();
            ask(&client, family(at[0]));
            answer(&endpoints[0]);
            assert_eq!(received(&client), (b"ask".to_vec(), family(at[0])));
        }
    }
}
