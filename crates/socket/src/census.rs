//! Which sockets are translated, of all network namespaces, and ending those whose endpoint is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use sluice_socket_maps::protocol;
use sluice_sys::bpf::{self, Mapping};

use crate::destroy::{self, Ended};

/// Bytes of what the program writes of a socket: `struct translated` of layout.h.
const RECORD: usize = 96;

/// A socket that is translated: one of TCP, or a connected one of UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// Its network namespace (`SO_NETNS_COOKIE`).
    pub namespace: u64,
    /// Its own number (`SO_COOKIE`).
    pub cookie: u64,
    /// One of [`protocol`].
    pub protocol: u8,
    /// Whether it is one of IPv6, whatever its addresses are.
    pub is_v6: bool,
    /// Its own address.
    pub local: SocketAddr,
    /// Where it has connected to.
    pub service: SocketAddr,
    /// Where it is connected to.
    pub endpoint: SocketAddr,
    /// The endpoint's id.
    pub id: u32,
    /// What the id meant when it connected.
    pub incarnation: u32,
    /// When that was, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
}

/// Looks at sockets; independent of whoever writes the maps, and on any thread.
#[derive(Debug)]
pub struct Census {
    pub(crate) program: OwnedFd,
    pub(crate) conns: OwnedFd,
    pub(crate) endpoints: Mapping,
}

impl Census {
    /// All translated sockets. Those that come and go meanwhile may be there or not.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn list(&self) -> io::Result<Vec<Translated>> {
        let link = bpf::iterate_storage(self.program.as_fd(), self.conns.as_fd())?;
        let written = bpf::read_iterator(link.as_fd())?;
        Ok(written.as_chunks().0.iter().map(Translated::read).collect())
    }

    /// Ends connected UDP sockets whose endpoint is gone, as its id means something else by now: who uses one has an
    /// error at once (`ECONNABORTED`), rather than silence for ever. Connections of TCP are left alone, as kube-proxy
    /// leaves them: the endpoint may still serve them, and if not the client will be told.
    ///
    /// Takes a look at every process, to find network namespaces, if there is such a socket.
    ///
    /// # Errors
    /// Those of [`Census::list`]; sockets that could not be ended are counted.
    pub fn end_datagram_sockets(&self) -> io::Result<Ended> {
        let mut ending: BTreeMap<u64, Vec<Translated>> = BTreeMap::new();
        for socket in self.list()? {
            if socket.protocol == protocol::UDP && self.incarnation(socket.id) != Some(socket.incarnation) {
                ending.entry(socket.namespace).or_default().push(socket);
            }
        }
        if ending.is_empty() {
            return Ok(Ended::default());
        }
        let wanted: BTreeSet<u64> = ending.keys().copied().collect();
        destroy::in_namespaces(&wanted, |namespace| ending.remove(&namespace).unwrap_or_default()).map(
            |done| {
                let unreached: usize = ending.values().map(Vec::len).sum();
                Ended { failed: done.failed + unreached, ..done }
            },
        )
    }

    /// What an id means now; the third word has it.
    fn incarnation(&self, id: u32) -> Option<u32> {
        let halves = self.endpoints.halves();
        halves.get(id as usize * 16 + 5).map(|half| half.load(Ordering::Acquire))
    }
}

impl Translated {
    fn read(record: &[u8; RECORD]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&record[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let half =
            |at: usize| u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let short = |at: usize| [record[at], record[at + 1]];
        let ip = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&record[at..at + 16]);
            IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
        };
        let [protocol, _] = short(90);
        Self {
            namespace: word(0),
            cookie: word(8),
            protocol,
            is_v6: half(92) == u32::from(rustix::net::AddressFamily::INET6.as_raw()),
            local: SocketAddr::new(ip(72), u16::from_ne_bytes(short(88))),
            service: SocketAddr::new(ip(16), u16::from_be_bytes(short(32))),
            endpoint: SocketAddr::new(ip(36), u16::from_be_bytes(short(52))),
            id: half(56),
            incarnation: half(60),
            since_ns: word(64),
        }
    }
}
