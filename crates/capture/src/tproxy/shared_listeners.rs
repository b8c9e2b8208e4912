//! Listeners of other processes at the same addresses and ports as this agent's.
//!
//! Two agents share these while one takes over from the other: the kernel spreads new connections and datagrams
//! over the sockets of both (`SO_REUSEPORT`). An agent that hangs never closes its own, and connections that the
//! kernel gives to them are lost. The kernel can destroy a TCP listener of another process, and with
//! `tcp_migrate_req` it moves the waiting connections to ours. It does not do that for UDP: a socket that is
//! bound to a port keeps it (`udp_abort`). So an agent beside one that hangs uses other ports (`free_ports`),
//! where it is alone.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use sluice_sys::sock_diag::{BY_FAMILY, DESTROY, DUMP, LISTENING, REQUEST, Request, Shown, UNCONNECTED};

use super::netlink::Netlink;
use super::{Error, Ports};

/// The loopback addresses of the listeners.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

const TCP: u8 = 6;
const UDP: u8 = 17;

/// How many other ranges of ports are tried.
const RANGES: u16 = 8;

/// A socket that receives new connections or datagrams at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listener {
    protocol: u8,
    shown: Shown,
}

/// The listeners at some ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sharing {
    /// The number of places where this process has some.
    pub(super) own: usize,
    /// Listeners of other processes at the same places.
    pub(super) others: Vec<Listener>,
}

/// Lists the listeners.
///
/// # Errors
/// The kernel does not tell, or this process's own sockets cannot be determined.
pub(super) fn look(ports: Ports) -> Result<Sharing, Error> {
    let all = listeners(ports, |ip| ADDRESSES.contains(&ip))?;
    // All of our sockets that are still open were in the first list, or were opened later. In the other order, a
    // new one would seem to be somebody else's.
    let own = own_sockets().map_err(Error::Netlink)?;
    Ok(split(&all, &own))
}

fn split(all: &[Listener], own: &HashSet<u32>) -> Sharing {
    let is_own = |listener: &Listener| own.contains(&listener.shown.inode);
    let place = |listener: &Listener| (listener.protocol, listener.shown.local);
    let places: HashSet<(u8, SocketAddr)> = all.iter().filter(|l| is_own(l)).map(place).collect();
    // A socket at a place where we have none is of another kind: it may be any program's.
    let others = all.iter().filter(|l| !is_own(l) && places.contains(&place(l))).copied().collect();
    Sharing { own: places.len(), others }
}

/// Destroys the TCP listeners. Returns their number, or why one could not be destroyed.
pub(super) fn destroy(listeners: &[Listener]) -> Result<usize, Error> {
    let mut kernel = Netlink::sock_diag().map_err(Error::Netlink)?;
    let mut destroyed = 0;
    for Listener { shown, .. } in listeners.iter().filter(|listener| listener.protocol == TCP) {
        let mut request = request(DESTROY, REQUEST, TCP, shown.local);
        (request.device, request.cookie) = (shown.device, shown.cookie);
        match kernel.exchange(request.bytes(0), |_| {}) {
            Ok(()) => destroyed += 1,
            // It was closed meanwhile.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::Sockets(error)),
        }
    }
    Ok(destroyed)
}

/// Other ports at which nobody listens.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn free_ports(ports: Ports) -> Result<Option<Ports>, Error> {
    for ports in (1..=RANGES).map_while(|number| ports.beyond(number)) {
        if listeners(ports, |_| true)?.is_empty() {
            return Ok(Some(ports));
        }
    }
    Ok(None)
}

/// Sockets that listen at these ports, at matching addresses.
fn listeners(ports: Ports, matters: impl Fn(IpAddr) -> bool) -> Result<Vec<Listener>, Error> {
    let mut kernel = Netlink::sock_diag().map_err(Error::Netlink)?;
    let mut found = Vec::new();
    for port in [ports.outside, ports.local_pod, ports.node] {
        for (protocol, states) in [(TCP, LISTENING), (UDP, UNCONNECTED)] {
            for ip in ADDRESSES {
                let mut request = request(BY_FAMILY, REQUEST | DUMP, protocol, SocketAddr::new(ip, port));
                request.states = states;
                let outcome = kernel.exchange(request.bytes(0), |answer| {
                    let shown = Shown::read(answer.payload());
                    let shown = shown.filter(|s| s.local.port() == port && matters(s.local.ip()));
                    found.extend(shown.map(|shown| Listener { protocol, shown }));
                });
                match outcome {
                    // The kernel has no IPv6.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(Error::Sockets(error)),
                }
            }
        }
    }
    Ok(found)
}

fn request(kind: u16, flags: u16, protocol: u8, local: SocketAddr) -> Request {
    let remote = match local.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Request {
        kind,
        flags,
        is_v6: local.is_ipv6(),
        protocol,
        states: u32::MAX,
        local,
        remote: SocketAddr::new(remote, 0),
        device: 0,
        cookie: u64::MAX,
    }
}

/// The inodes of this process's sockets.
fn own_sockets() -> io::Result<HashSet<u32>> {
    let links = fs::read_dir("/proc/self/fd")?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links.filter_map(|link| inode(link.to_str()?)).collect())
}

/// `socket:[12345]`
fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn listener(protocol: u8, port: u16, inode: u32) -> Listener {
        let local = SocketAddr::new(ADDRESSES[0], port);
        Listener { protocol, shown: Shown { local, device: 0, cookie: 1, inode } }
    }

    #[test]
    fn only_what_is_at_a_place_of_ours_is_an_agents() {
        let (ours, theirs) = (listener(TCP, 10_265, 1), listener(TCP, 10_265, 2));
        let own = HashSet::from([1]);
        let all = [ours, theirs, listener(UDP, 10_265, 3), listener(TCP, 10_266, 4)];
        assert_eq!(split(&all, &own), Sharing { own: 1, others: vec![theirs] });
        assert_eq!(inode("socket:[77]"), Some(77));
        assert_eq!((inode("pipe:[77]"), inode("socket:[x]")), (None, None));
    }

    #[test]
    fn own_listeners_are_found_and_are_nobody_elses() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let ports = Ports::from_first(port);
        let found = listeners(ports, |ip| ADDRESSES.contains(&ip)).unwrap();
        let own = own_sockets().unwrap();
        let here: Vec<u8> =
            found.iter().filter(|l| l.shown.local.port() == port).map(|l| l.protocol).collect();
        assert_eq!(here, [TCP, UDP]);
        assert!(found.iter().filter(|l| l.shown.local.port() == port).all(|l| own.contains(&l.shown.inode)));
        // A connected socket receives nothing new.
        udp.connect("127.0.0.1:9").unwrap();
        let found = listeners(ports, |_| true).unwrap();
        assert!(found.iter().all(|l| l.shown.local.port() != port || l.protocol == TCP));
        assert_ne!(free_ports(ports).unwrap(), Some(ports));
    }
}
