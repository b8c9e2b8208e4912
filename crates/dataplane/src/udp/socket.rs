//! The two kinds of UDP sockets: the one that clients send to, and a flow's own one to its endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use sluice_sys::udp::{allow_fragmentation, receive_trains};
use socket2::{Domain, Socket, Type};

/// What the kernel may hold for us between two looks at a frontend's socket. It cuts this down to
/// `net.core.rmem_max`; every client of the frontend shares it.
const FRONTEND_BUFFER: usize = 4 << 20;

/// Opens a socket that other workers' sockets can share the address with; the kernel gives each client
/// to always the same one.
///
/// # Errors
/// The address is taken, privileged, or not one of this machine's.
pub(crate) fn listen(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(FRONTEND_BUFFER)?;
    socket.set_send_buffer_size(FRONTEND_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Opens a flow's socket. Connected, so that it receives from its endpoint only, and hears of ICMP errors.
///
/// # Errors
/// There is no route, no port, or no descriptor.
pub(crate) fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), None)?;
    allow_fragmentation(&socket)?;
    receive_trains(&socket)?;
    Ok(socket)
}
