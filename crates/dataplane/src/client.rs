//! Where a client is, through which kind of listener it came, and which addresses count as one client.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use sluice_table::{Client, Origin};

/// How clients reach a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerKind {
    /// The socket has the frontend's own address.
    Bound,
    /// The capture delivers packets to any frontend. It has one socket for each origin.
    Captured(Origin),
}

impl ListenerKind {
    /// The client at an address that connects to a frontend.
    ///
    /// At a bound socket a process of this node uses a loopback address, or the very address that it connects
    /// to. Any other address says nothing about where the client is.
    pub(crate) fn client(self, ip: IpAddr, frontend: IpAddr) -> Client {
        let origin = match self {
            Self::Bound if ip.is_loopback() || ip == frontend => Origin::Node,
            Self::Bound => Origin::Outside,
            Self::Captured(origin) => origin,
        };
        Client { ip, origin }
    }

    /// The client that an address counts as. `tells_pods`: whether the capture can tell this node's pods from
    /// other clients with IPv6 addresses. If it cannot, pods come through the same listener as clients
    /// outside the node.
    pub(crate) fn client_key(self, ip: IpAddr, tells_pods: bool) -> ClientKey {
        match (self, ip) {
            // All neighbours of the node have their link-local addresses in the same /64 network.
            (Self::Captured(Origin::Outside), IpAddr::V6(v6)) if tells_pods => {
                ClientKey::of(ip, !v6.is_unicast_link_local())
            }
            _ => ClientKey::Address(ip),
        }
    }

    /// Whether a client connected to the socket's own address, which is only meant for the capture.
    pub(crate) fn is_bypassed(self, own: SocketAddr, destination: SocketAddr) -> bool {
        self != Self::Bound && own == destination
    }
}

/// The unit that shares are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ClientKey {
    /// A single address.
    Address(IpAddr),
    /// An IPv6 /64 network, by its first address. A host that has one address of the network may use any of
    /// them (RFC 4862, RFC 8981): with a new address for each connection it would never reach its share.
    Network(Ipv6Addr),
}

/// Mask of the network part of an IPv6 address (RFC 4291, 2.5.1).
const NETWORK: u128 = !0 << 64;

impl ClientKey {
    /// The key of an address: the address itself, or its network if `with_network` is set and it is an IPv6
    /// address.
    pub(crate) fn of(ip: IpAddr, with_network: bool) -> Self {
        match ip {
            IpAddr::V6(ip) if with_network => Self::Network(Ipv6Addr::from_bits(ip.to_bits() & NETWORK)),
            _ => Self::Address(ip),
        }
    }

    pub(crate) fn is_network(self) -> bool {
        matches!(self, Self::Network(_))
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Network(first) => write!(f, "{first}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_the_node_are_told_from_others() {
        let origin =
            |client: &str| ListenerKind::Bound.client(client.parse().unwrap(), [10, 0, 0, 1].into()).origin;
        assert_eq!(origin("127.0.0.9"), Origin::Node);
        assert_eq!(origin("::1"), Origin::Node);
        assert_eq!(origin("10.0.0.1"), Origin::Node);
        assert_eq!(origin("10.0.0.2"), Origin::Outside);
    }

    #[test]
    fn the_capture_says_where_a_client_is() {
        let client =
            ListenerKind::Captured(Origin::LocalPod).client([127, 0, 0, 1].into(), [10, 0, 0, 1].into());
        assert_eq!(client.origin, Origin::LocalPod);
    }

    #[test]
    fn a_captured_connection_is_to_another_address_than_the_listeners() {
        let [own, frontend] = ["127.0.0.1:10265", "10.96.0.1:80"].map(|at| at.parse().unwrap());
        let kind = ListenerKind::Captured(Origin::Node);
        assert!(kind.is_bypassed(own, own) && !kind.is_bypassed(own, frontend));
        assert!(!ListenerKind::Bound.is_bypassed(own, own));
    }

    #[test]
    fn who_is_outside_counts_by_its_ipv6_network_and_everybody_else_by_its_address() {
        let client_key =
            |kind: ListenerKind, ip: &str| kind.client_key(ip.parse().unwrap(), true).to_string();
        let outside = ListenerKind::Captured(Origin::Outside);
        assert_eq!(client_key(outside, "2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(client_key(outside, "2001:db8:1:2::"), client_key(outside, "2001:db8:1:2:ffff::1"));
        assert_ne!(client_key(outside, "2001:db8:1:2::"), client_key(outside, "2001:db8:1:3::"));
        assert_eq!(client_key(outside, "192.0.2.1"), "192.0.2.1");
        assert_eq!(client_key(outside, "fe80::1"), "fe80::1");
        for kind in [
            ListenerKind::Captured(Origin::LocalPod),
            ListenerKind::Captured(Origin::Node),
            ListenerKind::Bound,
        ] {
            assert_eq!(client_key(kind, "2001:db8:1:2:3:4:5:6"), "2001:db8:1:2:3:4:5:6");
        }
    }

    #[test]
    fn each_address_counts_where_pods_may_be_among_those_outside() {
        let ip = "2001:db8:1:2::1".parse().unwrap();
        assert_eq!(ListenerKind::Captured(Origin::Outside).client_key(ip, false), ClientKey::Address(ip));
    }
}
