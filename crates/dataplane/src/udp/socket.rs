//! The UDP sockets on the clients' side: the one that they send to, and the one from which replies to
//! captured datagrams are sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::net::sockopt;
use sluice_sys::udp::{allow_fragmentation, receive_original_destination, receive_trains};
use socket2::{Domain, SockRef, Socket, Type};

use crate::transparent::{Marks, make_transparent};

/// The receive and send buffer of a socket that clients send to, in bytes of payload between two reads; the
/// kernel doubles it for its own overhead (socket(7)). All clients of the socket share it: those of a
/// frontend or, for a captured socket, those of one origin to all Services. Without CAP_NET_ADMIN the kernel
/// limits the receive buffer to `net.core.rmem_max`, 212,992 bytes by default. It always limits the send
/// buffer to `net.core.wmem_max`.
const FRONTEND_BUFFER: usize = 4 << 20;

/// Opens a socket whose address other workers' sockets can share; the kernel gives each client always to the
/// same one. With marks, it receives what TPROXY captures, whatever the destination address, and reports that
/// address.
///
/// # Errors
/// The address is taken, privileged, or not one of this machine's; or CAP_NET_ADMIN is missing for a mark.
pub(crate) fn listen(address: SocketAddr, marks: Option<Marks>) -> io::Result<UdpSocket> {
    let socket = open(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    // Refused in a container that has the capability only in a user namespace.
    if marks.is_none() || sockopt::set_socket_recv_buffer_size_force(&socket, FRONTEND_BUFFER).is_err() {
        socket.set_recv_buffer_size(FRONTEND_BUFFER)?;
    }
    socket.set_send_buffer_size(FRONTEND_BUFFER)?;
    if let Some(marks) = marks {
        make_transparent(&socket, address.ip())?;
        socket.set_mark(marks.downstream)?;
        receive_original_destination(&socket, Domain::for_address(address))?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes the kernel give what clients send from now on to other sockets with this address, which may be
/// another agent's. What this one has received can still be read. The kernel does so for a socket with a
/// peer; here, one on loopback that never sends. Closing the socket instead would lose what was not read yet.
///
/// # Errors
/// None is known for a socket of this module.
pub(crate) fn turn_away(socket: impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    let Some(address) = socket.local_addr()?.as_socket() else { return Ok(()) };
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    socket.connect(&SocketAddr::new(loopback, address.port()).into())
}

/// Opens a socket from which replies are sent with the frontend's address. It receives nothing: what clients
/// send goes to the socket that TPROXY selects.
///
/// Other programs of this machine may have the port, on this address or all addresses, if they share it too.
///
/// # Errors
/// Another program has the address without sharing it; or the port is privileged; or there is no descriptor.
pub(crate) fn reply_from(frontend: SocketAddr, marks: Marks) -> io::Result<UdpSocket> {
    let socket = open(frontend)?;
    if frontend.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The first lets other workers and agents of the same user share the port, the second any program.
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    socket.set_recv_buffer_size(0)?;
    socket.set_send_buffer_size(FRONTEND_BUFFER)?;
    make_transparent(&socket, frontend.ip())?;
    socket.set_mark(marks.downstream)?;
    socket.bind(&frontend.into())?;
    Ok(socket.into())
}

/// Opens a socket for this address, for datagrams of any size and for trains.
fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = open_plain(address)?;
    allow_fragmentation(&socket, Domain::for_address(address))?;
    receive_trains(&socket)?;
    Ok(socket)
}

/// Opens a socket of this address's family.
pub(super) fn open_plain(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_captured_socket_has_room_for_bursts_whatever_rmem_max_says() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let address = loopback.parse().unwrap();
            let forced = sockopt::set_socket_recv_buffer_size_force(open(address).unwrap(), FRONTEND_BUFFER);
            if let Err(error) = forced {
                assert!(!rustix::process::geteuid().is_root(), "{error}");
                sluice_sys::skipped("needs CAP_NET_ADMIN");
                return;
            }
            let socket = listen(address, Some(Marks { downstream: 0x20, upstream: 0x30 })).unwrap();
            assert!(SockRef::from(&socket).recv_buffer_size().unwrap() >= FRONTEND_BUFFER);
        }
    }

    #[test]
    fn a_socket_that_turns_clients_away_keeps_what_it_has_and_another_one_gets_the_rest() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let ending = listen(loopback.parse().unwrap(), None).unwrap();
            let address = ending.local_addr().unwrap();
            let clients: Vec<_> = (0..64).map(|_| open(address).unwrap()).collect();
            let send = || {
                clients
                    .iter()
                    .for_each(|client| assert_eq!(client.send_to(b"x", &address.into()).unwrap(), 1))
            };
            let received = |socket: &UdpSocket| {
                std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).filter(|&length| length == 1).count()
            };
            send();
            let staying = listen(address, None).unwrap();
            let ending = mio::net::UdpSocket::from_std(ending);
            turn_away(&ending).unwrap();
            send();
            assert_eq!(received(&staying), 64, "{loopback}: all that came since");
            assert_eq!(received(&ending.into()), 64, "{loopback}: all that came before");
        }
    }
}
