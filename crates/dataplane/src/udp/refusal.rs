//! Tells a client that its endpoint's port is closed, or that there is no room for its flow: sends an ICMP
//! port unreachable message from the Service address, as the kernel would for a closed port of its own. Needs
//! CAP_NET_RAW; without it, the client is not told.

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

/// The maximum number of messages per second and worker, like the kernel's total
/// `net.ipv4.icmp_msgs_per_sec`. Each answers a datagram, so they do not amplify traffic.
const PER_SECOND: u32 = 1_000;

/// The maximum number per second to one client, so that it does not take all of them. The kernel sends one
/// per second to each client (`net.ipv4.icmp_ratelimit`), which delays resolvers that send many queries at a
/// time.
const PER_CLIENT: u32 = 100;

/// The length of the header before the quoted datagram: type, code, checksum, and four unused bytes.
const ICMP: usize = 8;
const UDP: usize = 8;

/// Sends rate-limited refusals.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    rate: Rate,
    /// Errors that were logged: each is logged once, because there are few.
    told: Vec<(Step, Option<i32>)>,
}

impl Refusals {
    /// Tells the client of a flow, or of a flow that was not opened. Returns whether the message was sent.
    /// Without marks nothing is captured, and the Service address is one of this node's own.
    pub(super) fn send(
        &mut self,
        key: FlowKey,
        client: ClientKey,
        marks: Option<Marks>,
        now: Instant,
    ) -> bool {
        // It is unknown which of the node's addresses the client used.
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
            // Relays in bind mode often run without privileges on purpose.
            tracing::debug!(%error, "UDP clients are not told when they are refused, but wait: {mend}");
            return;
        }
        tracing::warn!("a UDP client is not told that it is refused, but waits: {error}: {mend} (said once)");
    }
}

/// The number of messages sent in the current second: in total, and to each client.
#[derive(Debug, Default)]
struct Rate {
    began: Option<Instant>,
    sent: u32,
    /// At most as many entries as messages sent.
    to: HashMap<ClientKey, u32, foldhash::fast::RandomState>,
}

impl Rate {
    /// Takes one message for a client. Returns whether one was left.
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

/// The step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Opening a raw socket.
    Open,
    /// Setting its mark and address.
    Prepare,
    Send,
}

/// What to do about an error.
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
    // Keeps the scope id of a link-local address.
    let mut client = key.client;
    client.set_port(0);
    socket.send_to(&message(key), &client.into()).map_err(at(Step::Send)).map(drop)
}

/// The ICMP message (RFC 792, RFC 4443). It quotes the headers of a datagram as the client may have sent it,
/// because the client's kernel finds the socket by the addresses and ports. For ICMPv6, this node's kernel
/// adds the checksum (RFC 3542).
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

/// The Internet checksum (RFC 1071) of an even number of bytes.
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
