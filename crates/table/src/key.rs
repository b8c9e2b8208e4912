//! The packed key of the table: an address, a port and a protocol in 24 bytes, hashed in one go.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use sluice_model::{Frontend, Protocol};

/// A [`Frontend`] in the form that look-ups use.
///
/// IPv4 addresses are v4-mapped. Hashing feeds a single word: the address, with port and protocol XORed into
/// its upper part, which is the same for all addresses of a service range. Comparing compares every bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontendKey {
    address: u128,
    port_and_protocol: u32,
}

impl FrontendKey {
    /// The key of an address, a port and a protocol.
    pub fn new(ip: IpAddr, port: u16, protocol: Protocol) -> Self {
        let address = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let protocol = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
        };
        Self { address: address.to_bits(), port_and_protocol: u32::from(port) << 1 | protocol }
    }
}

impl From<Frontend> for FrontendKey {
    fn from(frontend: Frontend) -> Self {
        Self::new(frontend.address.ip(), frontend.address.port(), frontend.protocol)
    }
}

impl Hash for FrontendKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.address ^ u128::from(self.port_and_protocol) << 96);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_where_frontends_do() {
        let key = |ip: &str, port, protocol| FrontendKey::new(ip.parse().unwrap(), port, protocol);
        let keys = [
            key("10.0.0.1", 80, Protocol::Tcp),
            key("10.0.0.1", 80, Protocol::Udp),
            key("10.0.0.1", 81, Protocol::Tcp),
            key("10.0.0.2", 80, Protocol::Tcp),
            key("fd00::1", 80, Protocol::Tcp),
        ];
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert_eq!(a == b, i == j, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_v4_mapped_address_is_the_v4_address() {
        assert_eq!(
            FrontendKey::new("::ffff:10.0.0.1".parse().unwrap(), 80, Protocol::Tcp),
            FrontendKey::new("10.0.0.1".parse().unwrap(), 80, Protocol::Tcp),
        );
    }
}
