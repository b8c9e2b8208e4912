//! Sockets that were bound to an address before they connect or send, and datagrams that say what they are from.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use sluice_testbed::lab::Namespace;
use socket2::{Domain, MsgHdr, SockRef, Socket, Type};

use crate::connected_udp::add_addresses;
use crate::node::{Node, mapped, serve, service};
use crate::udp::bind;

const PATIENCE: Duration = Duration::from_secs(20);

/// Who listens at one address, over both protocols.
struct Place {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Place {
    fn new(namespace: &Namespace, at: SocketAddr) -> Self {
        let tcp = namespace.run(|| TcpListener::bind(at)).unwrap();
        let udp = bind(namespace, at);
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { tcp, udp }
    }
}

/// Which of two places something comes to.
fn comes_to(places: &[Place; 2], comes: impl Fn(&Place) -> bool) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(at) = places.iter().position(&comes) {
            return at;
        }
        assert!(Instant::now() < deadline, "it comes to neither");
        std::thread::yield_now();
    }
}

/// Where what a socket says to an address comes to that is bound here: over TCP, by one of UDP that connects, and by one
/// that does not.
fn reached(namespace: &Namespace, from: SocketAddr, to: SocketAddr, places: &[Place; 2]) -> [usize; 3] {
    let _tcp = namespace.run(|| {
        let domain = if from.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        socket
    });
    let tcp = comes_to(places, |place| place.tcp.accept().is_ok());
    let connected = bind(namespace, from);
    namespace.run(|| connected.connect(to)).unwrap();
    connected.send(b"connected").unwrap();
    let connected = comes_to(places, |place| place.udp.recv(&mut [0; 16]).is_ok());
    let unconnected = bind(namespace, from);
    unconnected.send_to(b"unconnected", to).unwrap();
    [tcp, connected, comes_to(places, |place| place.udp.recv(&mut [0; 16]).is_ok())]
}

#[test]
fn of_the_nodes_own_sockets_those_that_are_bound_to_an_address_are_the_relays_and_of_pods_none() {
    const LED: usize = 0;
    const RELAYED: usize = 1;
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, own, endpoint) in [(1, "192.0.2.8", "192.0.2.9"), (2, "fd00::8", "fd00::9")] {
        let [own, endpoint]: [IpAddr; 2] = [own, endpoint].map(|ip| ip.parse().unwrap());
        let (to, at) = (service(own.is_ipv6(), 1, 53), SocketAddr::new(endpoint, 7));
        serve(&mut kernel, set, to, &[at]);
        for (namespace, if_bound) in [(&node.host, RELAYED), (&node.pod, LED)] {
            add_addresses(namespace, &[own, endpoint, to.ip()]);
            let places = [at, to].map(|at| Place::new(namespace, at));
            let any = if own.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            let any: SocketAddr = any.parse().unwrap();
            let bound = SocketAddr::new(own, 0);
            let all = [
                (bound, to, if_bound),
                (mapped(bound), mapped(to), if_bound),
                (any, to, LED),
                (mapped(any), mapped(to), LED),
                ("[::]:0".parse().unwrap(), mapped(to), LED),
            ];
            for (from, to, wanted) in all {
                assert_eq!(reached(namespace, from, to, &places), [wanted; 3], "{from} to {to}");
            }
        }
    }
}

/// `IP_PKTINFO` and `IPV6_PKTINFO` as sendmsg(2) takes them, for what is from an address.
fn packet_info(from: IpAddr) -> Vec<u8> {
    let (level, kind, info) = match from {
        IpAddr::V4(ip) => (0i32, 8i32, [[0; 4], ip.octets(), [0; 4]].concat()),
        IpAddr::V6(ip) => (41, 50, [&ip.octets()[..], &[0; 4]].concat()),
    };
    let header = [&(16 + info.len()).to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes()].concat();
    let mut message = [header, info].concat();
    message.resize(message.len().next_multiple_of(8), 0);
    message
}

fn send_from(socket: &UdpSocket, from: IpAddr, to: SocketAddr) {
    let (to, control, data) = (to.into(), packet_info(from), [IoSlice::new(b"from there")]);
    let message = MsgHdr::new().with_addr(&to).with_buffers(&data).with_control(&control);
    assert_eq!(SockRef::from(socket).sendmsg(&message, 0).unwrap(), 10);
}

#[test]
fn a_datagram_that_says_what_it_is_from_is_as_one_of_a_socket_that_is_bound_there_but_for_a_flow_that_there_is()
 {
    const LED: usize = 0;
    const RELAYED: usize = 1;
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, own, endpoint) in [(1, "192.0.2.8", "192.0.2.9"), (2, "fd00::8", "fd00::9")] {
        let [own, endpoint]: [IpAddr; 2] = [own, endpoint].map(|ip| ip.parse().unwrap());
        let (to, at) = (service(own.is_ipv6(), 1, 53), SocketAddr::new(endpoint, 7));
        serve(&mut kernel, set, to, &[at]);
        for (namespace, otherwise) in [(&node.host, RELAYED), (&node.pod, LED)] {
            add_addresses(namespace, &[own, endpoint, to.ip()]);
            let places = [at, to].map(|at| Place::new(namespace, at));
            let comes_to = || comes_to(&places, |place| place.udp.recv(&mut [0; 16]).is_ok());
            let any = if own.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            for (any, to, from) in [(any, to, own), ("[::]:0", mapped(to), mapped_ip(own))] {
                let socket = bind(namespace, any.parse().unwrap());
                send_from(&socket, from, to);
                assert_eq!(comes_to(), otherwise, "{from} to {to}");
                // It sends from the address that it has just had.
                socket.send_to(b"as it is", to).unwrap();
                assert_eq!(comes_to(), LED);
                send_from(&socket, from, to);
                assert_eq!(comes_to(), LED, "it goes on");
            }
        }
    }
}

fn mapped_ip(ip: IpAddr) -> IpAddr {
    mapped(SocketAddr::new(ip, 0)).ip()
}
