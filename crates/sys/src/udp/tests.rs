//! Both batches over real sockets, on loopback, IPv4 and IPv6.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Domain;

use super::*;

mod joined;
mod recv;
mod send;

/// How long a test waits for what must happen before it fails.
const DEADLINE: Duration = Duration::from_secs(10);

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// An owned copy of a [`Datagram`], to outlive the batch.
#[derive(Debug, Clone, PartialEq)]
struct Received {
    payload: Vec<u8>,
    source: SocketAddr,
    original_destination: Option<SocketAddr>,
    truncated: bool,
}

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address).unwrap()
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn connected(from: &str, to: &UdpSocket) -> UdpSocket {
    let socket = socket(from);
    socket.connect(address(to)).unwrap();
    socket
}

/// A socket that keeps its port but receives nothing: it is connected to another one, so what is sent to it
/// is answered with port unreachable.
fn refusing(on: &str) -> UdpSocket {
    let peer = socket(on);
    connected(on, &peer)
}

/// A connected socket with a pending `ConnectionRefused`.
fn refused(loopback: &str) -> UdpSocket {
    let refusing = refusing(loopback);
    let sender = connected(loopback, &refusing);
    send_all(&sender, [&b"anyone?"[..]], None);
    wait_for(&sender, PollFlags::ERR);
    sender
}

fn wait_for(socket: impl AsFd, what: PollFlags) {
    let socket = socket.as_fd();
    let mut fds = [PollFd::new(&socket, what)];
    let timeout = Timespec::try_from(DEADLINE).unwrap();
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing within {DEADLINE:?}");
}

/// Receives until there are `count` datagrams.
fn receive(batch: &mut RecvBatch, socket: impl AsFd, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        wait_for(&socket, PollFlags::IN);
        match batch.recv(&socket) {
            Ok(received) => assert_eq!(received, batch.iter().count()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => panic!("{error}"),
        }
        all.extend(batch.iter().map(|datagram| Received {
            payload: datagram.payload.bytes().to_vec(),
            source: datagram.source,
            original_destination: datagram.original_destination,
            truncated: datagram.truncated,
        }));
    }
    all
}

/// Sends a batch in which nothing is expected to fail.
fn send_all<'a>(socket: impl AsFd, payloads: impl IntoIterator<Item = &'a [u8]>, to: Option<SocketAddr>) {
    let mut batch = SendBatch::new();
    for payload in payloads {
        batch.push(payload, to).unwrap();
    }
    let count = batch.len();
    let sent = batch.send(socket, |index, error| panic!("datagram {index}: {error}"));
    assert_eq!((sent.datagrams, sent.failed, sent.left), (count, 0, 0));
    assert!(batch.is_empty());
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..=250).cycle().skip(seed * 7 % 251).step_by(31).take(len).collect()
}

#[test]
fn sockets_are_told_to_let_datagrams_be_fragmented() {
    use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

    let v4 = socket(LOOPBACKS[0]);
    allow_fragmentation(&v4, Domain::IPV4).unwrap();
    assert_eq!(sockopt::ip_mtu_discover(&v4).unwrap(), Ipv4PathMtuDiscovery::DONT);
    let v6 = socket(LOOPBACKS[1]);
    allow_fragmentation(&v6, Domain::IPV6).unwrap();
    assert_eq!(sockopt::ipv6_mtu_discover(&v6).unwrap(), Ipv6PathMtuDiscovery::DONT);
}

#[test]
fn options_are_for_ip_sockets() {
    let (unix, _) = UnixDatagram::pair().unwrap();
    for domain in [Domain::IPV4, Domain::IPV6, Domain::UNIX] {
        assert!(allow_fragmentation(&unix, domain).is_err());
        assert!(receive_original_destination(&unix, domain).is_err());
    }
    assert!(receive_trains(&unix).is_err());
}

#[test]
fn batches_go_where_their_worker_goes() {
    fn sendable<T: Send>() {}
    sendable::<RecvBatch>();
    sendable::<SendBatch<'_>>();
}
