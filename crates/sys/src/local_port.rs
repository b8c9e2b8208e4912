//! Local ports of sockets that connect.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has the local port chosen at connect(2) rather than at bind(2) (`IP_BIND_ADDRESS_NO_PORT`, ip(7)): then
/// it only has to be unique together with the destination, and a local address is good for as many
/// connections to each destination as there are ports. Works for IPv6 sockets as well.
///
/// # Errors
/// The descriptor is not an IPv4 or IPv6 socket.
#[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
pub fn choose_at_connect(socket: impl AsFd) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes from the pointer, during the call only, and
    // `on` is that large and lives until after it; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<c_int>() as libc::socklen_t,
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
}
