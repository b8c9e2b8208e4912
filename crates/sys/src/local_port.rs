//! Local ports of connecting sockets.

use std::ffi::c_int;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `IP_LOCAL_PORT_RANGE` of linux/in.h, which libc does not have.
const IP_LOCAL_PORT_RANGE: c_int = 51;

/// Makes the kernel choose the local port at connect(2) and not at bind(2) (`IP_BIND_ADDRESS_NO_PORT`,
/// ip(7)). Then the port has to be unique only together with the destination, and a local address can have as
/// many connections to each destination as there are ports. Works for IPv6 sockets as well.
///
/// # Errors
/// The descriptor is not an IPv4 or IPv6 socket.
pub fn choose_at_connect(socket: impl AsFd) -> io::Result<()> {
    set(socket.as_fd(), libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Makes the kernel choose the local port from `range` (`IP_LOCAL_PORT_RANGE`, ip(7)). Both ends must be in
/// `net.ipv4.ip_local_port_range`: the kernel silently ignores an end that is not. Works for IPv6 sockets as
/// well.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.3. The range is empty, or the descriptor is not an IPv4 or IPv6 socket.
pub fn choose_from(socket: impl AsFd, range: RangeInclusive<u16>) -> io::Result<()> {
    let value = u32::from(*range.end()) << 16 | u32::from(*range.start());
    set(socket.as_fd(), IP_LOCAL_PORT_RANGE, value)
}

/// Sets an int or unsigned option of level IPPROTO_IP.
#[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
fn set(socket: BorrowedFd<'_>, name: c_int, value: u32) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<u32>()` bytes, the size of an int too, from the pointer during the
    // call only. `value` is that large and lives longer; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            name,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_socket_bound_to_an_address_has_no_port_until_it_connects() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listen).unwrap();
            let at = listener.local_addr().unwrap();
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
            choose_at_connect(&socket).unwrap();
            socket.bind(&SocketAddr::new(at.ip(), 0).into()).unwrap();
            assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().port(), 0);
            socket.connect(&at.into()).unwrap();
            assert_ne!(socket.local_addr().unwrap().as_socket().unwrap().port(), 0);
        }
    }

    /// A socket that connects to `to` from a port of `range`.
    fn connect_from(range: RangeInclusive<u16>, to: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        choose_at_connect(&socket)?;
        choose_from(&socket, range)?;
        socket.bind(&SocketAddr::new(to.ip(), 0).into())?;
        socket.connect(&to.into())?;
        Ok(socket)
    }

    #[test]
    fn one_port_is_good_for_a_connection_to_each_destination() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let listeners = [(); 2].map(|()| TcpListener::bind(ip).unwrap());
            let to = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
            let probe = Socket::new(Domain::for_address(to[0]), Type::STREAM, None).unwrap();
            match choose_from(&probe, 1..=1) {
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                    crate::skipped("this kernel is older than 6.3");
                    return;
                }
                done => done.unwrap(),
            }
            // Another process may take a port that was free, so another one is tried.
            let connected = (0..100).find_map(|_| {
                let port = TcpListener::bind(ip).unwrap().local_addr().unwrap().port();
                let first = connect_from(port..=port, to[0]).ok()?;
                Some((port, first))
            });
            let (port, first) = connected.expect("a port was free");
            let second = connect_from(port..=port, to[1]).unwrap();
            for socket in [first, second] {
                assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().port(), port);
            }
            let again = connect_from(port..=port, to[0]).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AddrNotAvailable, "that is the first connection");
        }
    }
}
