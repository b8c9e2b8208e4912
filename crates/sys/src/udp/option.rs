//! Socket options of UDP sockets that neither socket2 nor rustix knows.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::sockopt;
use socket2::Domain;

/// Has the address that each datagram was sent to delivered with it: on a transparent socket, the
/// Service's. See [`Datagram::original_destination`](super::Datagram::original_destination).
///
/// # Errors
/// The descriptor is not a socket of this domain, IPv4 or IPv6.
pub fn receive_original_destination(socket: impl AsFd, domain: Domain) -> io::Result<()> {
    let socket = socket.as_fd();
    match domain {
        Domain::IPV4 => set_flag(socket, libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
        Domain::IPV6 => set_flag(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
        _ => Err(not_of_ip()),
    }
}

/// Sends without the don't-fragment bit (`IP_PMTUDISC_DONT`), so that a datagram larger than some link
/// on its way arrives in fragments. Linux sets the bit by default and loses what does not fit until
/// an ICMP message has told it the path's size: a loss that the client's own socket would have learned
/// from, but that the relay would learn of in its stead.
///
/// # Errors
/// The descriptor is not a socket of this domain, IPv4 or IPv6.
pub fn allow_fragmentation(socket: impl AsFd, domain: Domain) -> io::Result<()> {
    match domain {
        Domain::IPV4 => sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DONT)?,
        Domain::IPV6 => sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DONT)?,
        _ => return Err(not_of_ip()),
    }
    Ok(())
}

/// Has datagrams that arrive as a train (`UDP_GRO`) delivered as one. See the [module](super).
///
/// # Errors
/// The descriptor is not a UDP socket.
pub fn receive_trains(socket: impl AsFd) -> io::Result<()> {
    set_flag(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO)
}

/// How many datagrams the kernel has dropped rather than put in the socket's queue, nearly always because that was
/// full: `SK_MEMINFO_DROPS` of `SO_MEMINFO` (Linux 4.12). It counts from the socket's beginning, starts again at 0
/// after `u32::MAX`, and counts a train as one. Of a TCP socket that listens these are SYNs and last segments of
/// handshakes (`tcp_listendrop`).
///
/// # Errors
/// The descriptor is not a socket.
#[expect(clippy::cast_possible_truncation, reason = "the size of a few ints")]
pub fn dropped(socket: impl AsFd) -> io::Result<u32> {
    const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
    // Fields that later kernels may add come after it, and are cut off.
    let mut fields = [0_u32; DROPS + 1];
    let mut length = size_of_val(&fields) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the pointer, during the call only: those of `fields`,
    // plain integers, which live until after it. It writes to `length` how many it wrote. The descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            fields.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(fields[DROPS]) } else { Err(io::Error::last_os_error()) }
}

fn not_of_ip() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not an IPv4 or IPv6 socket")
}

#[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
fn set_flag(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes from the pointer, during the call only, and
    // `on` is that large and lives until after it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
