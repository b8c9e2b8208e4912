//! UDP socket options that neither socket2 nor rustix supports.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::sockopt;
use socket2::Domain;

/// Makes the kernel report the address that each datagram was sent to: on a transparent socket, the
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

/// Sends without the don't-fragment bit (`IP_PMTUDISC_DONT`), so that a datagram that is too large for some
/// link arrives in fragments. By default Linux sets the bit, and loses datagrams that are too large until an
/// ICMP message reports the path MTU. The client's own socket would learn from that loss, but here the relay
/// would learn in its place.
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

/// Makes the kernel deliver datagrams that arrive as a train (`UDP_GRO`) as one. See the [module](super).
///
/// # Errors
/// The descriptor is not a UDP socket.
pub fn receive_trains(socket: impl AsFd) -> io::Result<()> {
    set_flag(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO)
}

/// Number of datagrams that the kernel dropped instead of queueing them at the socket, nearly always because
/// its queue was full: `SK_MEMINFO_DROPS` of `SO_MEMINFO` (Linux 4.12). It counts from the socket's creation,
/// wraps around after `u32::MAX`, and counts a train as one. For a listening TCP socket, it counts SYNs and
/// final handshake segments (`tcp_listendrop`).
///
/// # Errors
/// The descriptor is not a socket.
#[expect(clippy::cast_possible_truncation, reason = "the size of a few ints")]
pub fn dropped(socket: impl AsFd) -> io::Result<u32> {
    const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
    // Fields that later kernels may add follow it, and are truncated.
    let mut fields = [0_u32; DROPS + 1];
    let mut length = size_of_val(&fields) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the pointer, during the call only: those of
    // `fields`, which are integers and live longer. It writes the number of bytes to `length`. The descriptor
    // is borrowed, so it is open.
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
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes from the pointer, during the call only. `on` is
    // that large and lives longer.
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
