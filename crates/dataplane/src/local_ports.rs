//! Local ports of sockets towards endpoints.
//!
//! * The ports that this node's kernel chooses from for connecting sockets (`net.ipv4.ip_local_port_range`):
//!   the node's processes need them as much as we do.
//! * The port to use with a client's address ([`UpstreamPort`]). The client itself may talk to the same
//!   endpoint without the Service, from any of its own ports, and two conversations with the same two
//!   addresses and ports cannot be told apart.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use sluice_model::Protocol;
use sluice_sys::local_port;
use socket2::{Domain, Socket, Type};

/// It applies to IPv6 too, despite its name.
const SETTING: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The ephemeral ports of pods: the kernel's default range, which every new network namespace begins with,
/// whatever the node's setting.
///
/// None of our sockets with a client's address ever has one of these ports, so a packet to one of these ports
/// of a pod is a reply to that pod. The capture's rules may rely on this.
pub const EPHEMERAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// The first choice: ports that no kernel chooses by default and hardly any program binds.
const HIGH: RangeInclusive<u16> = 61_000..=u16::MAX;

/// More ports, for a client with thousands of conversations. Programs have some of them, which are then
/// skipped. Most well-known ports are below this range, and the nodePorts above it.
const LOW: RangeInclusive<u16> = 10_000..=29_999;

/// Ports below this one have a meaning in TCP too: only a privileged process can bind them, and endpoints may
/// require that (NFS's `secure`, rsh).
const UNPRIVILEGED: u16 = 1_024;

/// How many ports of each range are tried at most. A client that holds half of a range finds no free port in
/// it once in 256 searches.
const TRIES: u16 = 8;

/// How often [`last_choices`] repeats [`choices`]. A client that holds nine tenths of all ports finds none
/// once in 850 searches.
const LAST_ROUNDS: u8 = 4;

/// Which local port a connection to an endpoint gets if it has its client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpstreamPort {
    /// The client's port: the client chose it for a reason (NTP, IKE, SIP), and endpoints may look at it. If
    /// the client itself uses the port towards this endpoint as well, the two cannot be told apart.
    Keep,
    /// Its [`counterpart`] or one of [`choices`], and the client's port if those are in use. The client chose
    /// its port, but over TCP the choice means nothing. If the client itself has a connection from that port
    /// to this endpoint, before or after, our SYN would end that connection: the endpoint takes the SYN for a
    /// segment of it and acknowledges, and this node, which does not know the connection, answers with a
    /// reset.
    Avoid,
    /// Its [`counterpart`] or one of [`choices`]. The client's port was chosen by its kernel and means
    /// nothing, and the kernel may choose it again for the client's own connection to the same endpoint.
    Choose,
}

impl UpstreamPort {
    /// The rule for a client with this port.
    pub(crate) fn of_client(port: u16, protocol: Protocol) -> Self {
        if EPHEMERAL_PORTS.contains(&port) {
            Self::Choose
        } else if protocol == Protocol::Tcp && port >= UNPRIVILEGED {
            Self::Avoid
        } else {
            Self::Keep
        }
    }
}

/// The port to use instead of a client's; never the same port. Nearly all ports that the client's kernel
/// chooses from have different counterparts, so a client finds as many ports towards an endpoint as its own
/// kernel gives it towards the Service.
pub(crate) fn counterpart(port: u16) -> u16 {
    let (high, low) = (HIGH.len(), LOW.len());
    // Consecutive ports get consecutive numbers, so no two ports collide within a run as long as both ranges
    // together.
    let number = usize::from(port) % (high + low);
    let (start, offset) = if number < high { (HIGH.start(), number) } else { (LOW.start(), number - high) };
    start.saturating_add(u16::try_from(offset).unwrap_or(0))
}

/// Ports that a client's kernel does not choose for the client itself, in the order in which to try them.
/// Derived from `random`, of which every bit counts; no port is repeated.
pub(crate) fn choices(random: u64) -> impl Iterator<Item = u16> {
    [(HIGH, random), (LOW, random >> 32)].into_iter().flat_map(|(range, random)| {
        let count = range.len() as u64;
        // All steps together are shorter than the range, so no port is repeated.
        let (start, step) = (random & 0xffff, 1 + (random >> 16 & 0xffff) % (count / u64::from(TRIES)));
        (0..u64::from(TRIES)).map(move |tried| {
            let offset = (start + tried * step) % count;
            range.start().saturating_add(u16::try_from(offset).unwrap_or(0))
        })
    })
}

/// More choices for a client that holds most of the ports, if [`choices`] found none: a last attempt before
/// the search is reported as failed.
pub(crate) fn last_choices() -> impl Iterator<Item = u16> {
    (0..LAST_ROUNDS).flat_map(|_| choices(rand::random()))
}

/// The range, and whether the kernel can be asked to choose one given port of it.
#[derive(Debug, Clone)]
pub(crate) struct LocalPorts {
    range: RangeInclusive<u16>,
    can_ask: bool,
}

impl LocalPorts {
    /// The ports of the calling thread's network namespace, read once. If the setting is changed later,
    /// clients with a port in only one of the two ranges are treated as on an older kernel, or get another
    /// port; and clients' shares are still computed from the old number of ports.
    pub(crate) fn of_this_node() -> Self {
        match std::fs::read_to_string(SETTING).ok().as_deref().and_then(parse) {
            Some(range) => Self { can_ask: is_known_to_the_kernel(), range },
            None => Self { can_ask: false, range: EPHEMERAL_PORTS },
        }
    }

    /// Number of ports in the range.
    pub(crate) fn count(&self) -> usize {
        self.range.len()
    }

    /// Whether the kernel may choose this port.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// Whether the kernel can be asked to choose this port at connect(2). If the port is bound instead, the
    /// kernel does not give it to any other socket that lets the kernel choose, towards any destination,
    /// until the last socket with it is gone, including TIME_WAIT.
    pub(crate) fn can_ask_for(&self, port: u16) -> bool {
        self.can_ask && self.range.contains(&port)
    }
}

#[cfg(test)]
impl LocalPorts {
    /// The ports of another node.
    pub(crate) fn with_range(range: RangeInclusive<u16>) -> Self {
        Self { range, can_ask: true }
    }
}

/// Parses two numbers separated by white space.
fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some(first..=last)
}

/// Whether the kernel supports the option: Linux 6.3 and later.
fn is_known_to_the_kernel() -> bool {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Socket::new(Domain::for_address(any), Type::STREAM.cloexec(), None)
        .is_ok_and(|socket| local_port::choose_from(&socket, EPHEMERAL_PORTS).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_read_as_the_kernel_writes_it() {
        assert_eq!(parse("32768\t60999\n"), Some(32_768..=60_999));
        for text in ["", "1", "2 1", "a b", "1 65536"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert!(LocalPorts::of_this_node().count() > 0);
    }

    #[test]
    fn a_port_that_a_clients_kernel_chose_is_not_kept_and_one_that_means_something_is() {
        let of_client = |port| [Protocol::Udp, Protocol::Tcp].map(|it| UpstreamPort::of_client(port, it));
        for port in [32_768, 45_000, 60_999] {
            assert_eq!(of_client(port), [UpstreamPort::Choose; 2], "{port}");
        }
        for port in [53, 123, 500, 1_023] {
            assert_eq!(of_client(port), [UpstreamPort::Keep; 2], "{port}");
        }
        for port in [1_024, 5_060, 20_000, 32_767, 61_000, 65_535] {
            assert_eq!(of_client(port), [UpstreamPort::Keep, UpstreamPort::Avoid], "{port}");
        }
    }

    /// Includes clients whose kernels choose from more than the default range.
    #[test]
    fn no_port_is_its_own_counterpart_and_no_more_than_three_have_the_same() {
        let mut shared = std::collections::BTreeMap::<u16, u32>::new();
        for port in 0..=u16::MAX {
            assert_ne!(counterpart(port), port);
            *shared.entry(counterpart(port)).or_default() += 1;
        }
        assert_eq!(shared.len(), HIGH.len() + LOW.len());
        assert!(shared.values().all(|ports| *ports <= 3));
    }

    #[test]
    fn a_clients_ports_have_counterparts_that_no_pods_kernel_chooses_and_few_of_them_share_one() {
        let counterparts: Vec<u16> = EPHEMERAL_PORTS.map(counterpart).collect();
        assert!(counterparts.iter().all(|port| HIGH.contains(port) || LOW.contains(port)));
        let distinct: std::collections::BTreeSet<_> = counterparts.iter().collect();
        assert_eq!(distinct.len(), HIGH.len() + LOW.len());
        for port in [0, 1, u16::MAX] {
            assert!(!EPHEMERAL_PORTS.contains(&counterpart(port)));
        }
    }

    #[test]
    fn the_choice_is_among_ports_that_no_pods_kernel_chooses_and_is_never_the_same_twice() {
        let mut first = std::collections::BTreeSet::new();
        for random in (0..10_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).chain([u64::MAX]) {
            let ports: Vec<u16> = choices(random).collect();
            assert!(ports.iter().all(|port| !EPHEMERAL_PORTS.contains(port)), "{ports:?}");
            assert!(ports[..8].iter().all(|port| HIGH.contains(port)), "{ports:?}");
            assert!(ports[8..].iter().all(|port| LOW.contains(port)), "{ports:?}");
            let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
            assert_eq!(distinct.len(), 16, "{ports:?}");
            first.insert(ports[0]);
        }
        assert!(first.len() > HIGH.len() / 2, "{} different ones to begin with", first.len());
    }

    #[test]
    fn who_has_most_ports_is_offered_many_more_and_none_that_a_pods_kernel_chooses() {
        let ports: Vec<u16> = last_choices().collect();
        assert!(ports.iter().all(|port| HIGH.contains(port) || LOW.contains(port)), "{ports:?}");
        assert_eq!(ports.len(), 64);
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert!(distinct.len() > 48, "{ports:?}");
    }

    #[test]
    fn only_ports_of_the_range_can_be_asked_for_and_only_where_the_kernel_can() {
        let ports = LocalPorts::with_range(40_000..=40_001);
        let asked = [39_999, 40_000, 40_001, 40_002].map(|port| ports.can_ask_for(port));
        assert_eq!(asked, [false, true, true, false]);
        assert!(!LocalPorts { can_ask: false, ..ports }.can_ask_for(40_000));
    }
}
