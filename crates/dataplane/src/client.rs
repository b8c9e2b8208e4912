//! Where a client is.

use std::net::IpAddr;

use sluice_table::{Client, Origin};

/// The client at an address that connects to a frontend. A process of this node uses a loopback address,
/// or the very address that it connects to; of all others the address tells nothing.
pub(crate) fn client_at(ip: IpAddr, frontend: IpAddr) -> Client {
    let is_node = ip.is_loopback() || ip == frontend;
    Client { ip, origin: if is_node { Origin::Node } else { Origin::Outside } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_the_node_are_told_from_others() {
        let origin = |client: &str| client_at(client.parse().unwrap(), [10, 0, 0, 1].into()).origin;
        assert_eq!(origin("127.0.0.9"), Origin::Node);
        assert_eq!(origin("::1"), Origin::Node);
        assert_eq!(origin("10.0.0.1"), Origin::Node);
        assert_eq!(origin("10.0.0.2"), Origin::Outside);
    }
}
