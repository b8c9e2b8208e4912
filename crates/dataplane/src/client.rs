//! Where a client is, and by which door it came in.

use std::net::{IpAddr, SocketAddr};

use sluice_table::{Client, Origin};

/// How clients get to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// The socket has the frontend's own address.
    Bound,
    /// The capture hands over what is sent to any frontend; it has a socket for each origin.
    Captured(Origin),
}

impl Door {
    /// The client at an address that connects to a frontend.
    ///
    /// At a bound socket a process of this node uses a loopback address, or the very address that it
    /// connects to; of all others the address tells nothing.
    pub(crate) fn client(self, ip: IpAddr, frontend: IpAddr) -> Client {
        let origin = match self {
            Self::Bound if ip.is_loopback() || ip == frontend => Origin::Node,
            Self::Bound => Origin::Outside,
            Self::Captured(origin) => origin,
        };
        Client { ip, origin }
    }

    /// Whether somebody connected to the socket itself, which only the capture may lead to.
    pub(crate) fn is_bypassed(self, own: SocketAddr, destination: SocketAddr) -> bool {
        self != Self::Bound && own == destination
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_the_node_are_told_from_others() {
        let origin = |client: &str| Door::Bound.client(client.parse().unwrap(), [10, 0, 0, 1].into()).origin;
        assert_eq!(origin("127.0.0.9"), Origin::Node);
        assert_eq!(origin("::1"), Origin::Node);
        assert_eq!(origin("10.0.0.1"), Origin::Node);
        assert_eq!(origin("10.0.0.2"), Origin::Outside);
    }

    #[test]
    fn the_capture_says_where_a_client_is() {
        let client = Door::Captured(Origin::LocalPod).client([127, 0, 0, 1].into(), [10, 0, 0, 1].into());
        assert_eq!(client.origin, Origin::LocalPod);
    }

    #[test]
    fn a_captured_connection_is_to_another_address_than_the_listeners() {
        let [own, frontend] = ["127.0.0.1:10265", "10.96.0.1:80"].map(|at| at.parse().unwrap());
        let door = Door::Captured(Origin::Node);
        assert!(door.is_bypassed(own, own) && !door.is_bypassed(own, frontend));
        assert!(!Door::Bound.is_bypassed(own, own));
    }
}
