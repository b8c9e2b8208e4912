//! Ending sockets of other processes (`SOCK_DESTROY` of sock_diag(7)), in the network namespaces that they are in.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_socket_maps::protocol;
use sluice_sys::bpf;

use crate::attached::own_namespace;
use crate::census::Translated;
use crate::rights::is_administrator;

/// What became of sockets that were to be ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndedSockets {
    /// They are ended, or had been closed before.
    pub ended: usize,
    /// They are not, as the kernel refuses: it takes CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY.
    pub refused: usize,
    /// They are not, as their network namespace was not found: no process that is seen from here is in it, and it has no
    /// name.
    pub unreached: usize,
    /// They are not, as the kernel does not find them by their addresses and interfaces, which may have changed meanwhile or be
    /// those of others too: the next time it may.
    pub missed: usize,
}

impl EndedSockets {
    /// Why some are not, for people: with what helps.
    pub fn trouble(&self) -> Option<String> {
        let Self { ended: _, refused, unreached, missed } = *self;
        let mut troubles = Vec::new();
        if unreached > 0 {
            troubles.push(format!(
                "{unreached} are in network namespaces in which no process is that is seen from here (a pod needs the \
                 node's /run/netns, or where its container runtime has them)"
            ));
        }
        if refused > 0 {
            troubles.push(format!(
                "the kernel ends {refused} of them not (it takes CAP_NET_ADMIN, CAP_SYS_ADMIN and a kernel with \
                 CONFIG_INET_DIAG_DESTROY)"
            ));
        }
        if missed > 0 {
            troubles.push(format!("the kernel does not find {missed} of them by their addresses"));
        }
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }
}

/// What came of requests.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) ended: EndedSockets,
    /// Those that the kernel did not find, which are not in `ended`.
    pub(crate) absent: HashSet<Connection>,
}

/// What a socket has done when it connected, so that doing it again is another one: its cookie, and when that was.
pub(crate) type Connection = (u64, u64);

/// Whose connected UDP sockets this process can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endable {
    /// Those of its own network namespace: the kernel has `CONFIG_INET_DIAG_DESTROY`.
    pub of_node: bool,
    /// Those of others: it may also enter these.
    pub of_pods: bool,
}

impl Endable {
    /// Tries it on a socket of its own.
    pub fn probe() -> Self {
        let of_node = end_own().is_ok();
        Self { of_node, of_pods: of_node && is_administrator() }
    }
}

fn end_own() -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    // To itself: nothing is sent.
    let local = socket.local_addr()?;
    socket.connect(local)?;
    let (namespace, cookie) =
        (bpf::netns_cookie(socket.as_fd())?, rustix::net::sockopt::socket_cookie(&socket)?);
    end(
        &diag()?,
        &Translated {
            namespace,
            cookie,
            protocol: protocol::UDP,
            is_v6: local.is_ipv6(),
            local,
            device: 0,
            service: local,
            endpoint: local,
            id: 0,
            incarnation: 0,
            since_ns: 0,
        },
    )
}

/// Ends in each of the wanted namespaces what `sockets` says of it. They are found by the processes in them, or by their names
/// in one of these directories.
pub(crate) fn in_namespaces(
    wanted: &BTreeSet<u64>,
    directories: &[PathBuf],
    mut sockets: impl FnMut(u64) -> Vec<Translated> + Send,
) -> io::Result<Done> {
    let (mut done, mut left) = (Done::default(), wanted.clone());
    // To be in one's own takes no rights.
    let own = own_namespace()?;
    if left.remove(&own) {
        end_all(&sockets(own), &mut done)?;
    }
    if left.is_empty() {
        return Ok(done);
    }
    // A thread of its own, as it moves from one namespace to the next.
    let done = std::thread::scope(|scope| {
        scope
            .spawn(move || -> io::Result<Done> {
                let mut seen = HashSet::new();
                // One at a time: there may be more of them than descriptors.
                for link in links(directories)? {
                    if left.is_empty() {
                        break;
                    }
                    // Processes and namespaces end at any time; one that is gone has no sockets.
                    let Ok(known) = fs::metadata(&link) else { continue };
                    if !seen.insert(known.ino()) {
                        continue;
                    }
                    let Ok(cookie) = File::open(&link).and_then(|namespace| enter(&namespace)) else {
                        continue;
                    };
                    if left.remove(&cookie) {
                        end_all(&sockets(cookie), &mut done)?;
                    }
                }
                Ok(done)
            })
            .join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Where every network namespace is that a process is in, or that has a name; many are there more than once.
fn links(directories: &[PathBuf]) -> io::Result<impl Iterator<Item = PathBuf>> {
    let path = |entry: io::Result<fs::DirEntry>| Some(entry.ok()?.path());
    let of_process = |path: PathBuf| {
        let is_process = path.file_name()?.as_encoded_bytes().first()?.is_ascii_digit();
        is_process.then(|| path.join("ns/net"))
    };
    // Nothing may have a name.
    let named = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    Ok(fs::read_dir("/proc")?.filter_map(path).filter_map(of_process).chain(named.filter_map(path)))
}

/// Moves this thread there; which one that is.
pub(crate) fn enter(namespace: &File) -> io::Result<u64> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    bpf::netns_cookie(socket.as_fd())
}

fn end_all(sockets: &[Translated], done: &mut Done) -> io::Result<()> {
    let diag = diag()?;
    for socket in sockets {
        match end(&diag, socket) {
            Ok(()) => done.ended.ended += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                done.absent.insert(socket.connection());
            }
            Err(_) => done.ended.refused += 1,
        }
    }
    Ok(())
}

fn diag() -> io::Result<OwnedFd> {
    let (flags, protocol) = (SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
    Ok(socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?)
}

/// Ends a socket. The cookie sees to it that it is this one, and none that got its addresses since.
fn end(diag: &OwnedFd, socket: &Translated) -> io::Result<()> {
    send(diag, &request(socket), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (length, _) = recv(diag, answer.as_mut_slice(), RecvFlags::empty())?;
    // A header of 16 bytes, and the error, 0 for none.
    let Some([a, b, c, d]) = answer.get(16..20).filter(|_| length >= 20) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    match i32::from_ne_bytes([*a, *b, *c, *d]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(socket: &Translated) -> Vec<u8> {
    /// `SOCK_DESTROY`.
    const DESTROY: u16 = 21;
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    const FLAGS: u16 = 1 | 4;
    const LENGTH: u32 = 16 + 56;
    let family = if socket.is_v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(DESTROY.to_ne_bytes());
    bytes.extend(FLAGS.to_ne_bytes());
    // Sequence and sender: the kernel fills in who sends.
    bytes.extend([0; 8]);
    bytes.extend([family.as_raw().to_ne_bytes()[0], socket.protocol, 0, 0]);
    // All states.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(socket.local.port().to_be_bytes());
    bytes.extend(socket.endpoint.port().to_be_bytes());
    for ip in [socket.local.ip(), socket.endpoint.ip()] {
        bytes.extend(address(ip, socket.is_v6));
    }
    // The kernel finds a socket that is bound to an interface by that one only.
    bytes.extend(socket.device.to_ne_bytes());
    bytes.extend(socket.cookie.to_ne_bytes());
    bytes
}

/// As a socket of this family has it, in 16 bytes.
fn address(ip: IpAddr, is_v6: bool) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) if is_v6 => ip.to_ipv6_mapped().octets(),
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
    }
}
