//! Transparent sockets: ones with addresses that are not this machine's (`IP_TRANSPARENT`, ip(7)), for
//! packets that TPROXY hands over.
//!
//! Such a socket carries a mark: by it the rules of the capture know packets that are ours from packets
//! that are to be captured, and the replies to them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use sluice_table::SourceAddress;
use socket2::Socket;

/// The marks (`SO_MARK`, socket(7)) of transparent sockets. Setting one needs CAP_NET_ADMIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Of sockets towards clients, with service addresses as their own.
    pub downstream: u32,
    /// Of sockets towards endpoints, whether or not with a client's address as their own.
    pub upstream: u32,
}

/// What the local side of a connection to an endpoint is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    /// Whose address the endpoint is to see; none for this node's.
    pub(crate) client: Option<SocketAddr>,
    /// The socket's mark.
    pub(crate) mark: Option<u32>,
}

impl Local {
    /// The local side towards an endpoint, by the rule for the source address. Without marks nothing is
    /// captured, so that replies to another address than the node's would not come back.
    pub(crate) fn new(marks: Option<Marks>, client: SocketAddr, source: SourceAddress) -> Self {
        let is_usable = source == SourceAddress::Client && is_known_elsewhere(client.ip());
        Self { client: marks.and(is_usable.then_some(client)), mark: marks.map(|marks| marks.upstream) }
    }

    /// The mark, on a socket that is not bound yet.
    pub(crate) fn prepare(self, socket: &Socket) -> io::Result<()> {
        match self.mark {
            Some(mark) => socket.set_mark(mark),
            None => Ok(()),
        }
    }
}

/// Whether others could answer to an address: not to that of a process of the node that is bound to loopback, and to
/// an IPv6 link-local one on the client's own link only, where no endpoint is (RFC 4291, 2.5.6).
fn is_known_elsewhere(ip: IpAddr) -> bool {
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !ip.is_loopback() && !is_link_local
}

/// Lets a socket be bound to an address that is not this machine's, and receive what TPROXY hands it.
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
