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

/// The clients of a set that keep their endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetClients {
    /// By what they are found.
    pub number: u32,
    /// Whether the programs lead processes in the node's network there.
    pub of_node: bool,
    /// Whether they lead all others there.
    pub of_pods: bool,
}

/// Some of those that are known.
#[derive(Debug, Default)]
pub struct KeptPart {
    /// Who they are.
    pub keys: Vec<AffinityKey>,
    /// From where on there may be more; none where these are the last.
    pub next: Option<u32>,
}

/// The clients that the programs know. Called by workers, which must not wait: what is about one client is one system call.
pub trait KeptClients: Debug + Send + Sync {
    /// How many there may be.
    fn room(&self) -> usize;

    /// Has a client be led to an endpoint, as of now.
    ///
    /// # Errors
    /// The map is full, or the kernel is out of memory: what was known of the client may still be.
    fn keep(&self, key: AffinityKey, number: SocketNumber) -> io::Result<()>;

    /// Forgets a client; whether it was known.
    ///
    /// # Errors
    /// The kernel refuses.
    fn forget(&self, key: AffinityKey) -> io::Result<bool>;

    /// How long ago a client that is known has last connected.
    fn idle(&self, key: AffinityKey) -> Option<Duration>;

    /// Some of those that are known: from the beginning, or from where an earlier part has ended. Whoever is known all the time is
    /// in a part; there may be a few more in one than asked for.
    ///
    /// # Errors
    /// The kernel does not say.
    fn part(&self, from: Option<u32>, most: usize) -> io::Result<KeptPart>;

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
