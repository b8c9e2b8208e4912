//! Telling a client that nobody listens at its endpoint: an ICMP message from the service address (port unreachable),
//! as the kernel would send it for a port of its own. Needs CAP_NET_RAW; without it the client is told nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::flow_table::FlowKey;
use crate::transparent::{Marks, make_transparent};

/// How many of them a worker sends in a second, like the kernel's `net.ipv4.icmp_msgs_per_sec` of all. Each answers a
/// datagram, so that nobody gets more than it asked for.
const PER_SECOND: u32 = 1_000;

/// Bytes before what is quoted of the datagram: type, code, checksum, and four that are unused.
const ICMP: usize = 8;
const UDP: usize = 8;

/// Sends refusals, not too many.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    second: Option<Instant>,
    sent: u32,
    has_complained: bool,
}

impl Refusals {
    /// Tells a flow's client. Whether it could be told.
    pub(super) fn send(&mut self, key: FlowKey, marks: Marks, now: Instant) -> bool {
        if !self.may_send(now) {
            return false;
        }
        let sent = send(key, marks);
        if let Err(error) = &sent
            && !std::mem::replace(&mut self.has_complained, true)
        {
            tracing::warn!(
                %error,
                "UDP clients are not told when their endpoint refuses, but wait: give the agent CAP_NET_RAW (said once)"
            );
        }
        sent.is_ok()
    }

    fn may_send(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            (self.second, self.sent) = (Some(now), 0);
        }
        self.sent += 1;
        self.sent <= PER_SECOND
    }
}

fn send(key: FlowKey, marks: Marks) -> io::Result<()> {
    let service = key.destination;
    let protocol = if service.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket =
        Socket::new(Domain::for_address(service), Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    make_transparent(&socket, service.ip())?;
    socket.set_mark(marks.downstream)?;
    socket.bind(&SocketAddr::new(service.ip(), 0).into())?;
    // With the scope of a link-local address.
    let mut client = key.client;
    client.set_port(0);
    socket.send_to(&message(key), &client.into())?;
    Ok(())
}

/// The message (RFC 792, RFC 4443), with the headers of a datagram as the client may have sent it: by its addresses and
/// ports the client's kernel finds the socket. The kernel here adds the checksum of ICMPv6 (RFC 3542).
fn message(key: FlowKey) -> Vec<u8> {
    const HOPS: u8 = 64;
    let (udp, ipv6_udp) = (17, 17);
    let mut bytes = vec![0; ICMP];
    match (key.client.ip(), key.destination.ip()) {
        (IpAddr::V4(client), IpAddr::V4(service)) => {
            bytes[..2].copy_from_slice(&[3, 3]);
            let mut header = [0x45, 0, 0, 28, 0, 0, 0, 0, HOPS, udp, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&client.octets());
            header[16..20].copy_from_slice(&service.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            bytes.extend(header);
        }
        (client, service) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            bytes[..2].copy_from_slice(&[1, 4]);
            bytes.extend([0x60, 0, 0, 0, 0, 8, ipv6_udp, HOPS]);
            bytes.extend(octets(client));
            bytes.extend(octets(service));
        }
    }
    let mut header = [0; UDP];
    header[..2].copy_from_slice(&key.client.port().to_be_bytes());
    header[2..4].copy_from_slice(&key.destination.port().to_be_bytes());
    header[5] = 8;
    bytes.extend(header);
    if key.destination.is_ipv4() {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum);
    }
    bytes
}

/// The Internet's checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: &str, destination: &str) -> FlowKey {
        FlowKey { client: client.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn the_message_quotes_the_clients_datagram_and_its_checksums_are_right() {
        let bytes = message(key("10.1.0.2:40000", "10.96.0.10:53"));
        assert_eq!((bytes.len(), &bytes[..2]), (36, &[3, 3][..]));
        assert_eq!((checksum(&bytes), checksum(&bytes[8..28])), ([0, 0], [0, 0]));
        assert_eq!(bytes[20..28], [10, 1, 0, 2, 10, 96, 0, 10]);
        assert_eq!(bytes[28..32], [0x9c, 0x40, 0, 53]);
        let bytes = message(key("[fd00::2]:40000", "[fd96::a]:53"));
        assert_eq!((bytes.len(), &bytes[..2], &bytes[12..16]), (56, &[1, 4][..], &[0, 8, 17, 64][..]));
        assert_eq!(bytes[48..52], [0x9c, 0x40, 0, 53]);
    }

    #[test]
    fn not_more_are_sent_in_a_second_than_may_be() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        assert_eq!((0..5_000).filter(|_| refusals.may_send(now)).count(), 1_000);
        assert!(!refusals.may_send(now + Duration::from_millis(999)));
        assert!(refusals.may_send(now + Duration::from_secs(1)));
    }
}
