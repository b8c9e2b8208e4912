//! Socket options and the ends of a connection.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use mio::net::TcpStream;
use rustix::io::Errno;
use sluice_sys::local_port;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::failure;
use crate::local_ports::{LocalPorts, UpstreamPort, choices, counterpart, last_choices};
use crate::transparent::{Local, Marks, make_transparent};

/// A peer that vanished without a word is noticed after `KEEPALIVE_IDLE` + 3 x `KEEPALIVE_INTERVAL`,
/// two minutes. kube-proxy leaves this to the kernel's conntrack, which needs five days
/// (`nf_conntrack_tcp_timeout_established`); a relay holds two descriptors all that time.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(75);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;

/// Connections that the kernel may hold for us between two looks at a listener. The kernel cuts it
/// down to `net.core.somaxconn`.
pub(super) const BACKLOG: u16 = 4096;

/// Of the ports that could be tried after the first, one in so many is: each try is a socket, and most clients find one
/// at once.
const OTHERS_APART: usize = 4;

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Everything was delivered: FINs have been exchanged.
    Clean,
    /// The peer is to see a reset.
    Reset,
}

/// Ends a connection. What closes it without this, the end of the process for one, resets it: nobody is to take what
/// has been cut off for complete.
pub(crate) fn close(stream: TcpStream, ending: Ending) {
    if ending == Ending::Clean {
        // Failing means that the connection is gone already.
        let _ = SockRef::from(&stream).set_linger(None);
    }
    drop(stream);
}

/// Opens a listener that other workers' sockets can share the address with (`SO_REUSEPORT`). With marks it
/// takes what TPROXY hands over, whatever address that is for.
///
/// Its options are inherited by the connections it accepts (tcp(7)), which saves setting them on each.
///
/// # Errors
/// The address is taken, privileged, or not one of this machine's; CAP_NET_ADMIN is missing for a mark.
pub(crate) fn listen(address: SocketAddr, marks: Option<Marks>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if let Some(marks) = marks {
        make_transparent(&socket, address.ip())?;
        socket.set_mark(marks.downstream)?;
    }
    socket.bind(&address.into())?;
    socket.set_tcp_nodelay(true)?;
    set_stream_options(&socket)?;
    socket.listen(BACKLOG.into())?;
    Ok(socket.into())
}

/// Starts to connect; success and failure show as the stream becoming writable.
///
/// A client's address is used with the client's port where that matters, and otherwise with one that the client does
/// not use itself ([`UpstreamPort`]): the client may talk to this endpoint without the Service as well. A port that is
/// taken towards this endpoint, or that we may not have, is replaced. One that other sockets of this node may need is
/// not bound but left to connect(2), to which it is free towards every other destination
/// ([`LocalPorts::can_ask_for`]).
///
/// # Errors
/// It failed at once: no route, no descriptor, no local port.
pub(crate) fn connect(address: SocketAddr, local: Local, ports: &LocalPorts) -> io::Result<TcpStream> {
    let Some(client) = local.client else { return start_connect(address, local, |_| Ok(())) };
    let first = match UpstreamPort::of_client(client.port()) {
        UpstreamPort::Keep => client.port(),
        UpstreamPort::Choose => counterpart(client.port()),
    };
    let others = choices(rand::random()).step_by(OTHERS_APART);
    for port in std::iter::once(first).chain(others).chain(last_choices()) {
        match start_connect(address, local, |socket| bind(socket, SocketAddr::new(client.ip(), port), ports))
        {
            Err(error) if failure::is_about_the_port(&error) => {}
            done => return done,
        }
    }
    Err(Errno::ADDRNOTAVAIL.into())
}

/// Binds a socket to a client's address and a port.
fn bind(socket: &Socket, local: SocketAddr, ports: &LocalPorts) -> io::Result<()> {
    if ports.can_ask_for(local.port()) {
        local_port::choose_from(socket, local.port()..=local.port())?;
        return bind_without_port(socket, local.ip());
    }
    make_transparent(socket, local.ip())?;
    // The client's connections to other endpoints have the port too, and so may a listener of the node that is started
    // later.
    socket.set_reuse_address(true)?;
    socket.bind(&local.into())
}

/// Binds a socket to a client's address, and leaves the port to connect(2).
fn bind_without_port(socket: &Socket, client: IpAddr) -> io::Result<()> {
    make_transparent(socket, client)?;
    socket.set_reuse_address(true)?;
    local_port::choose_at_connect(socket)?;
    socket.bind(&SocketAddr::new(client, 0).into())
}

fn start_connect(
    address: SocketAddr,
    local: Local,
    bind: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    set_stream_options(&socket)?;
    // The last segment of the handshake waits for the first bytes and goes with them; see [`acknowledge_at_once`].
    socket.set_tcp_quickack(false)?;
    local.prepare(&socket)?;
    bind(&socket)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Has the last segment of the handshake sent that [`connect`] holds back, where there is nothing to go with it: endpoints
/// that speak first wait for it. The kernel would send it after 200 ms.
pub(crate) fn acknowledge_at_once(stream: &TcpStream) {
    // Failing means that the connection is gone already.
    let _ = SockRef::from(stream).set_tcp_quickack(true);
}

/// Whether a connection that was started is established.
pub(crate) fn is_connected(stream: &TcpStream) -> bool {
    stream.peer_addr().is_ok()
}

/// Whether the kernel connected a socket to itself: it can when the destination is a local port that
/// nobody listens on and that is the very one it picked as the source.
pub(crate) fn is_self_connected(stream: &TcpStream, destination: SocketAddr, ports: &LocalPorts) -> bool {
    ports.contains(destination.port()) && stream.local_addr().is_ok_and(|local| local == destination)
}

/// Whether everything that was written has reached the peer's kernel.
pub(crate) fn is_delivered(stream: &TcpStream) -> bool {
    // A socket that cannot say will not deliver anything either.
    sluice_sys::tcp::unacknowledged_bytes(stream.as_fd()).map_or(true, |bytes| bytes == 0)
}

/// What every socket has from the beginning; those that a listener accepts inherit it. `TCP_NODELAY` comes later to those
/// that connect ([`super::peer`]).
fn set_stream_options(socket: &Socket) -> io::Result<()> {
    // Closing is resetting, unless it is done by [`close`].
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)
}

/// Has the kernel notice a peer that vanishes.
pub(crate) fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    // Failing means that the connection is gone already.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}
