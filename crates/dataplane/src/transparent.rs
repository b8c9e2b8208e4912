//! Transparent sockets (`IP_TRANSPARENT`, ip(7)): sockets with addresses that are not local to this machine,
//! for packets that TPROXY delivers.
//!
//! Such a socket has a mark. By it, the capture's rules tell our packets, and the replies to them, from
//! packets that are to be captured.

use std::io;
use std::net::{IpAddr, SocketAddr};

use sluice_table::SourceAddress;
use socket2::Socket;

/// The marks (`SO_MARK`, socket(7)) of transparent sockets. Setting one needs CAP_NET_ADMIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The mark of sockets towards clients; their local addresses are Service addresses.
    pub downstream: u32,
    /// The mark of sockets towards endpoints, whether or not they have a client's address as their local
    /// address.
    pub upstream: u32,
}

/// The local side of a connection to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    /// The client whose address the endpoint is to see; `None` for this node's address.
    pub(crate) client: Option<SocketAddr>,
    /// The socket's mark.
    pub(crate) mark: Option<u32>,
}

impl Local {
    /// The local side towards an endpoint, by the rule for the source address. Without marks nothing is
    /// captured, so replies to an address other than the node's would not come back.
    pub(crate) fn new(marks: Option<Marks>, client: SocketAddr, source: SourceAddress) -> Self {
        let is_usable = source == SourceAddress::Client && is_known_elsewhere(client.ip());
        Self { client: marks.and(is_usable.then_some(client)), mark: marks.map(|marks| marks.upstream) }
    }

    /// Sets the mark on a socket that is not bound yet.
    pub(crate) fn prepare(self, socket: &Socket) -> io::Result<()> {
        match self.mark {
            Some(mark) => socket.set_mark(mark),
            None => Ok(()),
        }
    }
}

/// Whether an endpoint could send answers to an address. It cannot if a process of the node is bound to
/// loopback, or if the address is IPv6 link-local: that is valid only on the client's own link, where no
/// endpoint is (RFC 4291, 2.5.6).
fn is_known_elsewhere(ip: IpAddr) -> bool {
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !ip.is_loopback() && !is_link_local
}

/// Allows a socket to be bound to an address that is not local to this machine, and to receive packets that
/// TPROXY delivers.
pub(crate) fn make_transparent(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_address_is_kept_where_the_rule_says_so_and_replies_come_back() {
        let marks = Some(Marks { downstream: 1, upstream: 2 });
        let pod: SocketAddr = "10.244.0.5:40000".parse().unwrap();
        let loopback: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        let kept = Local { client: Some(pod), mark: Some(2) };
        let nodes = Local { client: None, mark: Some(2) };
        assert_eq!(Local::new(marks, pod, SourceAddress::Client), kept);
        assert_eq!(Local::new(marks, pod, SourceAddress::Node), nodes);
        assert_eq!(Local::new(marks, loopback, SourceAddress::Client), nodes);
        let link_local: SocketAddr = "[fe80::5%2]:40000".parse().unwrap();
        assert_eq!(Local::new(marks, link_local, SourceAddress::Client), nodes);
        let bind_mode = Local { client: None, mark: None };
        assert_eq!(Local::new(None, pod, SourceAddress::Client), bind_mode);
    }
}
