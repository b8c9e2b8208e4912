//! Session affinity in the maps: which sets have clients that keep their endpoints, and the clients
//! themselves.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use sluice_table::SocketNumber;

use crate::layout::AffinityKey;

/// [`Set::affinity`](crate::Set::affinity), unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SetAffinity {
    /// Identifies the set's clients. A set gets a new number each time that affinity begins, so that no
    /// earlier client is taken for a current one. 0: no affinity.
    pub number: u32,
    /// How long a client may make no new connection before it is forgotten, in milliseconds.
    pub timeout_ms: u32,
}

impl SetAffinity {
    /// The word in the map.
    pub fn pack(self) -> u64 {
        u64::from(self.number) << 32 | u64::from(self.timeout_ms)
    }

    /// The inverse of [`Self::pack`].
    pub fn unpack(word: u64) -> Self {
        let [n3, n2, n1, n0, t3, t2, t1, t0] = word.to_be_bytes();
        Self {
            number: u32::from_be_bytes([n3, n2, n1, n0]),
            timeout_ms: u32::from_be_bytes([t3, t2, t1, t0]),
        }
    }
}

impl AffinityKey {
    /// The key of a client of the set with this [`SetAffinity::number`].
    pub fn new(client: IpAddr, number: u32) -> Self {
        let mapped = match client {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { addr: mapped.octets(), number }
    }

    /// The client's address.
    pub fn client(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.addr)).to_canonical()
    }
}

/// A client with its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The client's key.
    pub key: AffinityKey,
    /// Its endpoint.
    pub number: SocketNumber,
    /// How long ago it last connected.
    pub idle: Duration,
}

/// The clients of a set that keep their endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetClients {
    /// The [`SetAffinity::number`] of the set.
    pub number: u32,
    /// Whether the programs translate processes in the node's network to this set.
    pub of_node: bool,
    /// Whether they translate all other clients to it.
    pub of_pods: bool,
}

/// A part of the clients.
#[derive(Debug, Default)]
pub struct KeptPart {
    /// Their keys.
    pub keys: Vec<AffinityKey>,
    /// Where the next part begins; `None` if this is the last one.
    pub next: Option<u32>,
}

/// The clients in the map of the programs. Workers call this, so it must not block: each call about one
/// client is one system call.
pub trait KeptClients: Debug + Send + Sync {
    /// The maximum number of clients.
    fn room(&self) -> usize;

    /// From now on, the programs translate this client to this endpoint.
    ///
    /// # Errors
    /// The map is full, or the kernel has no memory: an earlier entry of the client may remain.
    fn keep(&self, key: AffinityKey, number: SocketNumber) -> io::Result<()>;

    /// Forgets a client. Returns whether it was there.
    ///
    /// # Errors
    /// Those of the kernel.
    fn forget(&self, key: AffinityKey) -> io::Result<bool>;

    /// How long ago a client in the map last connected.
    fn idle(&self, key: AffinityKey) -> Option<Duration>;

    /// A part of the clients: from the beginning, or from where an earlier part has ended. A client that is
    /// there all the time is in one of the parts. A part may be slightly longer than `most`.
    ///
    /// # Errors
    /// The map cannot be read.
    fn part(&self, from: Option<u32>, most: usize) -> io::Result<KeptPart>;

    /// All clients.
    ///
    /// # Errors
    /// The map cannot be read.
    fn all(&self) -> io::Result<Vec<Kept>>;
}

/// Shared [`KeptClients`].
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
