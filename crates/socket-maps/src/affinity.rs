//! Clients that keep their endpoints: which sets have such clients, and what is known of them.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use sluice_table::SocketNumber;

use crate::layout::AffinityKey;

/// [`Set::affinity`](crate::Set::affinity), taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SetAffinity {
    /// By what the set's clients are found: another one each time that a set begins to have such clients, so that nobody is
    /// taken for a client of before. 0: there are none.
    pub number: u32,
    /// After how long without a new connection a client is forgotten, in milliseconds.
    pub timeout_ms: u32,
}

impl SetAffinity {
    /// As it is in the map.
    pub fn pack(self) -> u64 {
        u64::from(self.number) << 32 | u64::from(self.timeout_ms)
    }

    /// From how it is in the map.
    pub fn unpack(word: u64) -> Self {
        let [n3, n2, n1, n0, t3, t2, t1, t0] = word.to_be_bytes();
        Self {
            number: u32::from_be_bytes([n3, n2, n1, n0]),
            timeout_ms: u32::from_be_bytes([t3, t2, t1, t0]),
        }
    }
}

impl AffinityKey {
    /// A client of the set that has this number for its clients.
    pub fn new(client: IpAddr, number: u32) -> Self {
        let mapped = match client {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { addr: mapped.octets(), number }
    }

    /// Whose it is.
    pub fn client(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.addr)).to_canonical()
    }
}

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Who it is.
    pub key: AffinityKey,
    /// Its endpoint.
    pub number: SocketNumber,
    /// How long ago it last connected.
    pub idle: Duration,
}

/// The clients that the programs know. Called by workers, which must not wait: each is a system call or two.
pub trait KeptClients: Debug + Send + Sync {
    /// Has a client be led to an endpoint, as of now.
    ///
    /// # Errors
    /// The map is full, or the kernel is out of memory: what was known of the client may still be.
    fn keep(&self, key: AffinityKey, number: SocketNumber) -> io::Result<()>;

    /// Forgets a client, which may not be known.
    ///
    /// # Errors
    /// The kernel refuses.
    fn forget(&self, key: AffinityKey) -> io::Result<()>;

    /// How long ago a client that is known has last connected.
    fn idle(&self, key: AffinityKey) -> Option<Duration>;

    /// All that are known.
    ///
    /// # Errors
    /// The kernel does not say.
    fn all(&self) -> io::Result<Vec<Kept>>;
}

/// The same, shared.
pub type SharedClients = Arc<dyn KeptClients>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let affinity = SetAffinity { number: 0x0102_0304, timeout_ms: 86_400_000 };
        assert_eq!(SetAffinity::unpack(affinity.pack()), affinity);
        assert_eq!(SetAffinity::default().pack(), 0);
        for client in ["10.0.0.1", "fd00::1"] {
            let client: IpAddr = client.parse().unwrap();
            assert_eq!(AffinityKey::new(client, 7).client(), client);
        }
    }
}
