//! Lists translated sockets in all network namespaces, and ends some of them.

use std::io::{self, Read};
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use sluice_socket_maps::{Meta, meta_flags};
use sluice_sys::bpf::{self, Mapping};

use crate::destroy::{Connection, Endable, EndedSockets};
use crate::ending::end_listed;
use crate::layout;

/// The size of the program's record of a socket: `struct translated` of layout.h.
const RECORD: usize = size_of::<layout::Translated>();

/// Bytes to read at a time: as much as the kernel writes, and more than a record.
const PIECE: usize = 32 * 1024;

/// The index of the flags in `struct meta`, in halves of a word.
const FLAGS: usize = offset_of!(Meta, flags) / size_of::<u32>();

/// A translated socket: a TCP socket, or a connected UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// Its network namespace (`SO_NETNS_COOKIE`).
    pub namespace: u64,
    /// The socket's cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// One of [`sluice_socket_maps::protocol`].
    pub protocol: u8,
    /// Whether it is an IPv6 socket, whatever its addresses are.
    pub is_v6: bool,
    /// Its local address.
    pub local: SocketAddr,
    /// The index of the interface that it is bound to (`SO_BINDTODEVICE`) in its namespace, or 0.
    pub device: u32,
    /// The Service address that it has connected to.
    pub service: SocketAddr,
    /// The endpoint that it is connected to.
    pub endpoint: SocketAddr,
    /// The endpoint's id.
    pub id: u32,
    /// The id's incarnation when the socket connected.
    pub incarnation: u32,
    /// When it connected, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
}

/// The programs that list sockets.
#[derive(Debug)]
pub(crate) struct Listers {
    pub(crate) all: OwnedFd,
    /// Lists UDP sockets.
    pub(crate) datagrams: OwnedFd,
}

impl Listers {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { all: self.all.try_clone()?, datagrams: self.datagrams.try_clone()? })
    }
}

/// A view of translated sockets. Works on any thread, independently of the maps' writer.
#[derive(Debug)]
pub struct Census {
    pub(crate) listers: Listers,
    pub(crate) conns: OwnedFd,
    pub(crate) meta: Mapping,
    /// Directories with the names of network namespaces.
    pub(crate) directories: Vec<PathBuf>,
}

impl Census {
    /// Also finds network namespaces by their names in these directories, besides [`NAMED`](crate::NAMED) and
    /// the namespaces of processes.
    #[must_use]
    pub fn with_names_in(mut self, directories: &[PathBuf]) -> Self {
        self.directories.extend_from_slice(directories);
        self
    }

    /// All translated sockets. Those that come or go meanwhile may be missing or included.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn list(&self) -> io::Result<Vec<Translated>> {
        let mut all = Vec::new();
        each(self.listers.all.as_fd(), self.conns.as_fd(), |socket| {
            all.push(socket);
            Ok(())
        })?;
        Ok(all)
    }

    /// Restricts the translation of connecting UDP sockets to those that can be ended later. Others are
    /// captured by the nftables rules and relayed, and the relay ends their flows.
    pub fn set_endable(&self, endable: Endable) {
        let node = if endable.of_node { meta_flags::NODE_UDP } else { 0 };
        let pods = if endable.of_pods { meta_flags::PODS_UDP } else { 0 };
        set_flags(&self.meta, meta_flags::NODE_UDP | meta_flags::PODS_UDP, node | pods);
    }

    /// Ends connected UDP sockets that are stale because their endpoint or Service is gone: their users get an
    /// error at once (`ECONNABORTED`; `EDESTADDRREQ` on sending) instead of silence for ever. TCP connections
    /// are left alone, as in kube-proxy: the endpoint may still serve them, and if not, it tells the client.
    ///
    /// Waits for programs that may still use earlier contents of the maps. A socket whose program has chosen an
    /// endpoint is seen only once the kernel has connected it, for which its task has to run: so look once more
    /// later. If there is a stale socket, every process is looked at to find its network namespace. As it waits
    /// in any case, it belongs on a thread that has nothing else to do.
    ///
    /// # Errors
    /// The same as [`Census::list`]; sockets that could not be ended are counted.
    pub fn end_datagram_sockets(
        &self,
        is_stale: impl FnMut(&Translated) -> bool,
    ) -> io::Result<EndedSockets> {
        end_listed(self.listers.datagrams.as_fd(), self.conns.as_fd(), &self.directories, is_stale)
    }
}

/// Sets these flags of all programs. Other flags, which another thread may be changing, stay as they are.
pub(crate) fn set_flags(meta: &Mapping, which: u32, to: u32) {
    if let Some(flags) = meta.halves().get(FLAGS) {
        // It cannot fail, because the closure always returns a value.
        let _ =
            flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(all & !which | to & which));
    }
}

/// Runs a program that lists sockets, and passes each socket on.
pub(crate) fn each(
    program: BorrowedFd<'_>,
    conns: BorrowedFd<'_>,
    take: impl FnMut(Translated) -> io::Result<()>,
) -> io::Result<()> {
    let link = bpf::iterate_storage(program, conns)?;
    read(bpf::run_iterator(link.as_fd())?, take)
}

fn read(mut source: impl Read, mut take: impl FnMut(Translated) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    // A record may continue in the next piece.
    let mut rest = 0;
    loop {
        let filled = match source.read(&mut piece[rest..]) {
            Ok(0) => return Ok(()),
            Ok(length) => rest + length,
            // The program wrote nothing for many sockets: it continues from there.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let (records, begun) = piece[..filled].as_chunks();
        rest = begun.len();
        records.iter().try_for_each(|record| take(Translated::read(record)))?;
        piece.copy_within(filled - rest..filled, 0);
    }
}

impl Translated {
    /// A UDP socket, in which only these fields matter.
    #[cfg(test)]
    pub(crate) fn for_tests(namespace: u64, cookie: u64) -> Self {
        let at = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 1));
        Self {
            namespace,
            cookie,
            protocol: sluice_socket_maps::protocol::UDP,
            is_v6: false,
            local: at,
            device: 0,
            service: at,
            endpoint: at,
            id: 0,
            incarnation: 0,
            since_ns: 0,
        }
    }

    pub(crate) fn connection(&self) -> Connection {
        (self.cookie, self.since_ns)
    }

    fn read(record: &[u8; RECORD]) -> Self {
        use layout::{Address, Translated as Of};

        const SERVICE: usize = offset_of!(Of, conn.service);
        const ENDPOINT: usize = offset_of!(Of, conn.endpoint);
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
        let address = |at: usize| {
            let port = u16::from_be_bytes(short(at + offset_of!(Address, port)));
            SocketAddr::new(ip(at + offset_of!(Address, ip)), port)
        };
        let local_port = u16::from_ne_bytes(short(offset_of!(Of, local_port)));
        Self {
            namespace: word(offset_of!(Of, namespace)),
            cookie: word(offset_of!(Of, cookie)),
            protocol: record[offset_of!(Of, protocol)],
            is_v6: u16::from(record[offset_of!(Of, family)]) == rustix::net::AddressFamily::INET6.as_raw(),
            local: SocketAddr::new(ip(offset_of!(Of, local)), local_port),
            device: half(offset_of!(Of, device)),
            service: address(SERVICE),
            endpoint: address(ENDPOINT),
            id: half(offset_of!(Of, conn.id)),
            incarnation: half(offset_of!(Of, conn.incarnation)),
            since_ns: word(offset_of!(Of, conn.since_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a few bytes at a time, and now and then an error that is to be ignored.
    struct Halting<'a>(&'a [u8], usize);

    impl Read for Halting<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let length = self.0.len().min(to.len()).min(70);
            let (given, left) = self.0.split_at(length);
            to[..length].copy_from_slice(given);
            self.0 = left;
            Ok(length)
        }
    }

    #[test]
    fn records_are_read_in_whatever_pieces_they_come() {
        let records: Vec<u8> = (0..1000u64)
            .flat_map(|cookie| [7, cookie].into_iter().chain([0; 10]))
            .flat_map(u64::to_ne_bytes)
            .collect();
        assert_eq!(records.len(), 1000 * RECORD);
        let mut cookies = Vec::new();
        read(Halting(&records, 0), |socket| {
            assert_eq!(socket.namespace, 7);
            cookies.push(socket.cookie);
            Ok(())
        })
        .unwrap();
        assert_eq!(cookies, (0..1000).collect::<Vec<_>>());
    }
}
