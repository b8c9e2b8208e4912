//! The key of a flow. Pure.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A client's address and the Service address that it sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    /// The client's address and port: the source of its datagrams, the destination of replies.
    pub(crate) client: SocketAddr,
    /// The destination of the client's datagrams, the source of replies.
    pub(crate) destination: SocketAddr,
}

/// Feeds three words to the hasher. They are not folded into fewer before, because clients choose their
/// addresses and ports and must not be able to provoke collisions.
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
