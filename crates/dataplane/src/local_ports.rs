//! The ports that this node's kernel chooses from for sockets that connect (`net.ipv4.ip_local_port_range`).
//! The node's processes need them as well as we do.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use sluice_sys::local_port;
use socket2::{Domain, Socket, Type};

/// For IPv6 too, whatever its name.
const SETTING: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The kernel's default.
const DEFAULT: RangeInclusive<u16> = 32_768..=60_999;

/// The range, and whether a socket can be told to have one port of it chosen.
#[derive(Debug, Clone)]
pub(crate) struct LocalPorts {
    range: RangeInclusive<u16>,
    can_ask: bool,
}

impl LocalPorts {
    /// Those of the calling thread's network namespace. Asked once: if the setting is changed later, clients
    /// with a port in one range and not in the other are treated as on an older kernel, or get another port;
    /// that costs them nothing else.
    pub(crate) fn of_this_node() -> Self {
        match std::fs::read_to_string(SETTING).ok().as_deref().and_then(parse) {
            Some(range) => Self { can_ask: is_known_to_the_kernel(), range },
            None => Self { can_ask: false, range: DEFAULT },
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.range.len()
    }

    /// Whether the kernel may choose this port.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// Whether the kernel can be asked to choose this very port at connect(2). A port that is bound instead is
    /// lost to all others who let the kernel choose, towards any destination, until the last socket with it is
    /// gone, TIME_WAIT included.
    pub(crate) fn can_ask_for(&self, port: u16) -> bool {
        self.can_ask && self.range.contains(&port)
    }
}

#[cfg(test)]
impl LocalPorts {
    /// Those of some other node.
    pub(crate) fn with_range(range: RangeInclusive<u16>) -> Self {
        Self { range, can_ask: true }
    }
}

/// Two numbers with white space between them.
fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some(first..=last)
}

/// Linux 6.3 and later.
fn is_known_to_the_kernel() -> bool {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Socket::new(Domain::for_address(any), Type::STREAM.cloexec(), None)
        .is_ok_and(|socket| local_port::choose_from(&socket, DEFAULT).is_ok())
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
    fn only_ports_of_the_range_can_be_asked_for_and_only_where_the_kernel_can() {
        let ports = LocalPorts::with_range(40_000..=40_001);
        let asked = [39_999, 40_000, 40_001, 40_002].map(|port| ports.can_ask_for(port));
        assert_eq!(asked, [false, true, true, false]);
        assert!(!LocalPorts { can_ask: false, ..ports }.can_ask_for(40_000));
    }
}
