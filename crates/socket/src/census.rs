//! Which sockets are translated, of all network namespaces, and ending some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use sluice_socket_maps::{Meta, meta_flags, protocol};
use sluice_sys::bpf::{self, Mapping};

use crate::destroy::{self, Connection, Done, Endable, Ended};

/// Bytes of what the program writes of a socket: `struct translated` of layout.h.
const RECORD: usize = 96;

/// Where the flags are in `struct meta`, in halves of a word.
const FLAGS: usize = offset_of!(Meta, flags) / size_of::<u32>();

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
    /// The index of the interface that it is bound to (`SO_BINDTODEVICE`), in its namespace; 0 is none.
    pub device: u32,
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
    pub(crate) meta: Mapping,
}

impl Census {
    /// All translated sockets. Those that come and go meanwhile may be there or not.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn list(&self) -> io::Result<Vec<Translated>> {
        list(self.program.as_fd(), self.conns.as_fd())
    }

    /// Has UDP sockets be decided about when they connect, for whose clients these can be ended later. Others go by the
    /// rules, and their flows by the relay, which ends them.
    pub fn set_endable(&self, endable: Endable) {
        let node = if endable.of_node { meta_flags::NODE_UDP } else { 0 };
        let pods = if endable.of_pods { meta_flags::PODS_UDP } else { 0 };
        if let Some(flags) = self.meta.halves().get(FLAGS) {
            flags.store(node | pods, Ordering::Relaxed);
        }
    }

    /// Ends connected UDP sockets that are stale, as their endpoint or their Service is gone: who uses one has an error
    /// at once (`ECONNABORTED`; to send, `EDESTADDRREQ`), rather than silence for ever. Connections of TCP are left alone, as kube-proxy leaves
    /// them: the endpoint may still serve them, and if not the client will be told.
    ///
    /// What the maps said until now is seen: a socket that is being connected by it is waited for. Where there is a
    /// stale socket this takes a look at every process, to find its network namespace; and it waits in any case, so it
    /// belongs on a thread that has nothing else to do.
    ///
    /// # Errors
    /// Those of [`Census::list`]; sockets that could not be ended are counted.
    pub fn end_datagram_sockets(&self, is_stale: impl FnMut(&Translated) -> bool) -> io::Result<Ended> {
        end_listed(self.program.as_fd(), self.conns.as_fd(), is_stale)
    }
}

fn list(program: BorrowedFd<'_>, conns: BorrowedFd<'_>) -> io::Result<Vec<Translated>> {
    let link = bpf::iterate_storage(program, conns)?;
    let written = bpf::read_iterator(link.as_fd())?;
    Ok(written.as_chunks().0.iter().map(Translated::read).collect())
}

/// Like [`Census::end_datagram_sockets`], of a map.
pub(crate) fn end_listed(
    program: BorrowedFd<'_>,
    conns: BorrowedFd<'_>,
    mut is_stale: impl FnMut(&Translated) -> bool,
) -> io::Result<Ended> {
    // Where the kernel has no barrier, one that is being connected is left for the next time.
    let _ = bpf::membarrier();
    let mut ending: BTreeMap<u64, Vec<Translated>> = BTreeMap::new();
    for socket in list(program, conns)? {
        if socket.protocol == protocol::UDP && is_stale(&socket) {
            ending.entry(socket.namespace).or_default().push(socket);
        }
    }
    if ending.is_empty() {
        return Ok(Ended::default());
    }
    let wanted: BTreeSet<u64> = ending.keys().copied().collect();
    let Done { mut ended, absent } =
        destroy::in_namespaces(&wanted, |namespace| ending.remove(&namespace).unwrap_or_default())?;
    ended.unreached = ending.values().map(Vec::len).sum();
    if !absent.is_empty() {
        // What was closed meanwhile is not listed any more.
        let is_absent = |socket: &Translated| absent.contains(&socket.connection());
        ended.missed = list(program, conns)?.into_iter().filter(is_absent).count();
        ended.ended += absent.len().saturating_sub(ended.missed);
    }
    Ok(ended)
}

impl Translated {
    pub(crate) fn connection(&self) -> Connection {
        (self.cookie, self.since_ns)
    }

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
        let [protocol, family] = short(90);
        Self {
            namespace: word(0),
            cookie: word(8),
            protocol,
            is_v6: u16::from(family) == rustix::net::AddressFamily::INET6.as_raw(),
            local: SocketAddr::new(ip(72), u16::from_ne_bytes(short(88))),
            device: half(92),
            service: SocketAddr::new(ip(16), u16::from_be_bytes(short(32))),
            endpoint: SocketAddr::new(ip(36), u16::from_be_bytes(short(52))),
            id: half(56),
            incarnation: half(60),
            since_ns: word(64),
        }
    }
}
