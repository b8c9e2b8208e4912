//! Telling a client that nobody listens at its endpoint, or that there is no room for its flow: an ICMP message from the
//! service address (port unreachable), as the kernel would send it for a port of its own. Needs CAP_NET_RAW; without it the
//! client is told nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sluice_model::mend_of_shortage;
use socket2::{Domain, Protocol, Socket, Type};

use super::flow_table::FlowKey;
use crate::client::ClientKey;
use crate::transparent::{Marks, make_transparent};

/// How many of them a worker sends in a second, like the kernel's `net.ipv4.icmp_msgs_per_sec` of all. Each answers a
/// datagram, so that nobody gets more than it asked for.
const PER_SECOND: u32 = 1_000;

/// And how many to one client, so that none takes them from all others. The kernel gives one a second to each
/// (`net.ipv4.icmp_ratelimit`), which resolvers that ask for many at a time then wait for.
const PER_CLIENT: u32 = 100;

/// Bytes before what is quoted of the datagram: type, code, checksum, and four that are unused.
const ICMP: usize = 8;
const UDP: usize = 8;

/// Sends refusals, not too many.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    rate: Rate,
    /// Errors that have been told of: each once, as there are few.
    told: Vec<(Step, Option<i32>)>,
}

impl Refusals {
    /// Tells the client of a flow, or of one that is not to be. Whether it could be told. Without marks nothing is captured,
    /// and the service address is this node's own.
    pub(super) fn send(
        &mut self,
        key: FlowKey,
        client: ClientKey,
        marks: Option<Marks>,
        now: Instant,
    ) -> bool {
        // Which of its addresses the client has used is not known.
        if key.destination.ip().is_unspecified() || !self.rate.take(client, now) {
            return false;
        }
        let sent = send(key, marks);
        if let Err((step, error)) = &sent {
            self.complain(*step, error, marks);
        }
        sent.is_ok()
    }

    fn complain(&mut self, step: Step, error: &io::Error, marks: Option<Marks>) {
        let what = (step, error.raw_os_error());
        if self.told.contains(&what) {
            return;
        }
        self.told.push(what);
        let mend = mend(step, error);
        if step == Step::Open && marks.is_none() {
            // A plain relay is often meant to have no privileges.
            tracing::debug!(%error, "UDP clients are not told when they are refused, but wait: {mend}");
            return;
        }
        tracing::warn!("a UDP client is not told that it is refused, but waits: {error}: {mend} (said once)");
    }
}

/// How many have been sent in the second that runs: of all, and to each client.
#[derive(Debug, Default)]
struct Rate {
    began: Option<Instant>,
    sent: u32,
    /// No more than were sent.
    to: HashMap<ClientKey, u32, foldhash::fast::RandomState>,
}

impl Rate {
    /// Takes one for a client, if there is one left for it.
    fn take(&mut self, client: ClientKey, now: Instant) -> bool {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            (self.began, self.sent) = (Some(now), 0);
            self.to.clear();
        }
        if self.sent >= PER_SECOND {
            return false;
        }
        let to_client = self.to.entry(client).or_default();
        if *to_client >= PER_CLIENT {
            return false;
        }
        *to_client += 1;
        self.sent += 1;
        true
    }
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A raw socket.
    Open,
    /// Its mark and address.
    Prepare,
    Send,
}

/// What a person can do about an error.
fn mend(step: Step, error: &io::Error) -> &'static str {
    match (step, error.raw_os_error().map(Errno::from_raw_os_error)) {
        (Step::Open, Some(Errno::PERM | Errno::ACCESS)) => "give the agent CAP_NET_RAW",
        (Step::Prepare, Some(Errno::PERM | Errno::ACCESS)) => "give the agent CAP_NET_ADMIN",
        (Step::Send, Some(Errno::PERM | Errno::ACCESS)) => {
            "a firewall of this node drops ICMP messages that leave it"
        }
        (Step::Send, Some(Errno::NETUNREACH | Errno::HOSTUNREACH)) => "this node has no route to the client",
        _ => mend_of_shortage(error).unwrap_or("see raw(7) and ip(7) for the error"),
    }
}

fn send(key: FlowKey, marks: Option<Marks>) -> Result<(), (Step, io::Error)> {
    let service = key.destination;
    let at = |step| move |error| (step, error);
    let protocol = if service.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = Socket::new(Domain::for_address(service), Type::RAW.nonblocking().cloexec(), Some(protocol))
        .map_err(at(Step::Open))?;
    if let Some(marks) = marks {
        make_transparent(&socket, service.ip()).map_err(at(Step::Prepare))?;
        socket.set_mark(marks.downstream).map_err(at(Step::Prepare))?;
    }
    socket.bind(&SocketAddr::new(service.ip(), 0).into()).map_err(at(Step::Prepare))?;
    // With the scope of a link-local address.
    let mut client = key.client;
    client.set_port(0);
    socket.send_to(&message(key), &client.into()).map_err(at(Step::Send)).map(drop)
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
        let mut rate = Rate::default();
        let now = Instant::now();
        let client = |n: u32| ClientKey::Address((0x0af4_0000 + n).to_be_bytes().into());
        assert_eq!((0..5_000).filter(|&n| rate.take(client(n), now)).count(), 1_000);
        assert!(!rate.take(client(0), now + Duration::from_millis(999)));
        assert_eq!(rate.to.len(), 1_000, "no more are remembered than were told");
        assert!(rate.take(client(0), now + Duration::from_secs(1)));
        assert_eq!(rate.to.len(), 1);
    }

    #[test]
    fn a_client_that_asks_again_and_again_leaves_refusals_to_others() {
        let mut rate = Rate::default();
        let now = Instant::now();
        let [greedy, other] = ["10.244.0.1", "10.244.0.2"].map(|ip| ClientKey::Address(ip.parse().unwrap()));
        assert_eq!((0..5_000).filter(|_| rate.take(greedy, now)).count(), 100);
        assert!(rate.take(other, now));
        assert!(rate.take(greedy, now + Duration::from_secs(1)));
    }

    #[test]
    fn each_step_that_fails_has_its_own_remedy() {
        let mend = |step, errno: Errno| mend(step, &errno.into());
        assert!(mend(Step::Open, Errno::PERM).contains("CAP_NET_RAW"));
        assert!(mend(Step::Prepare, Errno::PERM).contains("CAP_NET_ADMIN"));
        assert!(mend(Step::Send, Errno::PERM).contains("firewall"));
        for step in [Step::Open, Step::Prepare, Step::Send] {
            assert!(mend(step, Errno::MFILE).contains("open files"));
            assert!(!mend(step, Errno::INVAL).contains("CAP_"));
        }
    }

    #[test]
    fn each_error_is_told_of_once() {
        let mut refusals = Refusals::default();
        for _ in 0..3 {
            for errno in [Errno::PERM, Errno::MFILE] {
                refusals.complain(Step::Open, &errno.into(), None);
            }
        }
        assert_eq!(refusals.told.len(), 2);
    }
}
