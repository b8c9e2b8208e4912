//! What tells flows apart. Pure.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who talks to which service address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    /// Where the client sends from, and where replies go.
    pub(crate) client: SocketAddr,
    /// Where the client sends to, and where replies must seem to come from.
    pub(crate) destination: SocketAddr,
}

/// Three words into the hasher. Not folded into fewer beforehand: clients choose their addresses and
/// ports, and must not be able to choose them so that all land in one place.
impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let bits = |ip| match ip {
            IpAddr::V4(ip) => u128::from(Ipv4Addr::to_bits(ip)),
            IpAddr::V6(ip) => Ipv6Addr::to_bits(ip),
        };
        state.write_u128(bits(self.client.ip()));
        state.write_u128(bits(self.destination.ip()));
        state.write_u32(u32::from(self.client.port()) << 16 | u32::from(self.destination.port()));
    }
}
