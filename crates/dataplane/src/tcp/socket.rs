//! Sockets of connections: opening, options and closing.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use mio::net::TcpStream;
use rustix::io::Errno;
use sluice_model::Protocol;
use sluice_sys::local_port;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::failure;
use crate::local_ports::{LocalPorts, UpstreamPort, choices, counterpart, last_choices};
use crate::transparent::{Local, Marks, make_transparent};

/// A peer that vanished without a word is noticed after `KEEPALIVE_IDLE` + 3 x `KEEPALIVE_INTERVAL`,
/// two minutes. kube-proxy leaves this to the kernel's conntrack, which needs five days
/// (`nf_conntrack_tcp_timeout_established`); a relay holds two descriptors all that time.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(75);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;

/// The maximum number of connections that the kernel queues between two turns of a listener. The kernel
/// limits it to `net.core.somaxconn`.
pub(super) const BACKLOG: u16 = 4096;

/// After the first port, only one in this many of the possible ports is tried: each try costs a socket, and
/// most clients get a port at once.
const OTHERS_APART: usize = 4;

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Everything was delivered, and FINs have been exchanged.
    Clean,
    /// The peer is to see a reset.
    Reset,
}

/// Closes a connection. A connection that is closed in any other way, such as by the end of the process, is
/// reset, so that truncated data cannot be taken for complete.
pub(crate) fn close(stream: TcpStream, ending: Ending) {
    if ending == Ending::Clean {
        // A failure means that the connection is gone already.
        let _ = SockRef::from(&stream).set_linger(None);
    }
    drop(stream);
}

/// Opens a listener whose address other workers' sockets can share (`SO_REUSEPORT`). With marks it accepts
/// connections that TPROXY delivers, to any address.
///
/// Accepted connections inherit its options (tcp(7)), which saves setting them on each.
///
/// # Errors
/// The address is in use, privileged, or not local to this machine, or CAP_NET_ADMIN is missing for a mark.
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

/// How many ports are tried for a client towards an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// One port: none was free a moment ago, but each of the client's connections has a port of its own to
    /// try.
    Single,
    /// Some ports; nearly always the first one is free.
    Short,
    /// So many ports that a client for which all are in use has nearly all ports.
    Thorough,
}

/// Starts to connect; success and failure show as the stream becoming writable.
///
/// If the endpoint is to see the client's address, the socket uses the client's port if that matters, and
/// otherwise a port that the client hardly uses itself ([`UpstreamPort`]), because the client may talk to
/// this endpoint without the Service as well. A port that is in use towards this endpoint, or that this
/// process may not bind, is replaced by another one. A port that other sockets of this node may need is not
/// bound but left to connect(2), so that it stays available towards all other destinations
/// ([`LocalPorts::can_ask_for`]).
///
/// # Errors
/// The attempt failed immediately: no route, no descriptor, no local port (`EADDRNOTAVAIL`).
pub(crate) fn connect(
    address: SocketAddr,
    local: Local,
    ports: &LocalPorts,
    search: Search,
) -> io::Result<TcpStream> {
    let Some(client) = local.client else { return start_connect(open(address, local)?, address) };
    let open = || {
        let socket = open(address, local)?;
        make_transparent(&socket, client.ip())?;
        // The client's connections to other endpoints use the same port, and a listener of the node that is
        // started later may need it.
        socket.set_reuse_address(true)?;
        Ok(socket)
    };
    let bind = |socket: &Socket, port| bind(socket, SocketAddr::new(client.ip(), port), ports);
    connect_from_one_of(candidates(client.port(), search), open, bind, |socket| {
        start_connect(socket, address)
    })
}

/// The ports to try for a client with the given port.
fn candidates(client: u16, search: Search) -> impl Iterator<Item = u16> {
    let (first, own) = match UpstreamPort::of_client(client, Protocol::Tcp) {
        UpstreamPort::Keep => (client, None),
        // The others were all in use a moment ago. The client's own port is hardly ever in use, because each
        // of its connections has a different one.
        UpstreamPort::Avoid if search == Search::Single => (client, None),
        UpstreamPort::Avoid => (counterpart(client), Some(client)),
        UpstreamPort::Choose => (counterpart(client), None),
    };
    let last = (search == Search::Thorough).then(last_choices).into_iter().flatten();
    let others =
        choices(rand::random()).step_by(OTHERS_APART).chain(last).filter(move |port| *port != client);
    let most = if search == Search::Single { 1 } else { usize::MAX };
    std::iter::once(first).chain(others).chain(own).take(most)
}

/// Connects from the first available port. If bind(2) refuses a port, the socket is reused for the next one;
/// a socket that has a port keeps it, even if connect(2) finds the port in use, and is closed.
fn connect_from_one_of<S, C>(
    ports: impl Iterator<Item = u16>,
    open: impl Fn() -> io::Result<S>,
    bind: impl Fn(&S, u16) -> io::Result<()>,
    connect: impl Fn(S) -> io::Result<C>,
) -> io::Result<C> {
    let mut unbound = None;
    for port in ports {
        let socket = match unbound.take() {
            Some(socket) => socket,
            None => open()?,
        };
        match bind(&socket, port) {
            Ok(()) => {}
            Err(error) if failure::is_about_the_port(&error) => {
                unbound = Some(socket);
                continue;
            }
            Err(error) => return Err(error),
        }
        match connect(socket) {
            Err(error) if failure::is_taken_towards_it(&error) => {}
            done => return done,
        }
    }
    Err(Errno::ADDRNOTAVAIL.into())
}

/// Binds a socket to a client's address and a port.
fn bind(socket: &Socket, local: SocketAddr, ports: &LocalPorts) -> io::Result<()> {
    if !ports.can_ask_for(local.port()) {
        return socket.bind(&local.into());
    }
    // Bind to the address only; the port is left to connect(2).
    local_port::choose_from(socket, local.port()..=local.port())?;
    local_port::choose_at_connect(socket)?;
    socket.bind(&SocketAddr::new(local.ip(), 0).into())
}

/// A socket towards an endpoint.
fn open(address: SocketAddr, local: Local) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    set_stream_options(&socket)?;
    // The last segment of the handshake is delayed and sent with the first bytes; see
    // [`acknowledge_at_once`].
    socket.set_tcp_quickack(false)?;
    local.prepare(&socket)?;
    Ok(socket)
}

fn start_connect(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Sends the last segment of the handshake, which [`connect`] holds back, if there is no data to send with
/// it: endpoints that speak first wait for it. The kernel would send it after 200 ms.
pub(crate) fn acknowledge_at_once(stream: &TcpStream) {
    // A failure means that the connection is gone already.
    let _ = SockRef::from(stream).set_tcp_quickack(true);
}

/// Whether a connection that was started is established.
pub(crate) fn is_connected(stream: &TcpStream) -> bool {
    stream.peer_addr().is_ok()
}

/// Whether the kernel connected a socket to itself. That happens if the destination is a local port without a
/// listener, and the kernel picked the same port as the source.
pub(crate) fn is_self_connected(stream: &TcpStream, destination: SocketAddr, ports: &LocalPorts) -> bool {
    ports.contains(destination.port()) && stream.local_addr().is_ok_and(|local| local == destination)
}

/// Whether the peer's kernel has acknowledged everything that was written.
pub(crate) fn is_delivered(stream: &TcpStream) -> bool {
    undelivered(stream) == 0
}

/// How many written bytes the peer's kernel has not acknowledged.
pub(crate) fn undelivered(stream: &TcpStream) -> usize {
    // A socket that does not report it will not deliver anything either.
    sluice_sys::tcp::unacknowledged_bytes(stream.as_fd()).unwrap_or(0)
}

/// Sets the options that every socket has from the beginning; accepted sockets inherit them from the
/// listener. Connecting sockets get `TCP_NODELAY` later ([`super::peer`]).
fn set_stream_options(socket: &Socket) -> io::Result<()> {
    // Closing resets the connection, unless [`close`] does it.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)
}

/// Enables keepalive probes, which detect a peer that vanishes.
pub(crate) fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    // A failure means that the connection is gone already.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The number of sockets that are opened, bound and connected for a client, and the result, if bind(2)
    /// and connect(2) return this for each port.
    fn tries(search: Search, bound: Option<Errno>, connected: Option<Errno>) -> ([u32; 3], Option<i32>) {
        let counts = [(); 3].map(|()| Cell::new(0));
        let count = |step: usize, outcome: Option<Errno>| {
            counts[step].set(counts[step].get() + 1);
            outcome.map_or(Ok(()), |errno| Err(io::Error::from(errno)))
        };
        let outcome = connect_from_one_of(
            candidates(40_000, search),
            || count(0, None),
            |&(), _| count(1, bound),
            |()| count(2, connected),
        );
        (counts.map(Cell::into_inner), outcome.err().and_then(|error| error.raw_os_error()))
    }

    #[test]
    fn a_port_that_cannot_be_bound_takes_no_socket_of_its_own() {
        let none = Some(Errno::ADDRNOTAVAIL.raw_os_error());
        assert_eq!(tries(Search::Short, None, None), ([1, 1, 1], None));
        assert_eq!(tries(Search::Single, Some(Errno::ADDRINUSE), None), ([1, 1, 0], none));
        assert_eq!(tries(Search::Short, Some(Errno::ADDRINUSE), None), ([1, 5, 0], none));
        assert_eq!(tries(Search::Thorough, Some(Errno::ACCESS), None), ([1, 69, 0], none));
        assert_eq!(tries(Search::Short, None, Some(Errno::ADDRNOTAVAIL)), ([5, 5, 5], none));
        assert_eq!(tries(Search::Thorough, None, Some(Errno::ADDRNOTAVAIL)), ([69, 69, 69], none));
    }

    #[test]
    fn a_port_that_a_client_chose_is_tried_last_and_once_unless_it_is_privileged() {
        for client in [1_024, 20_000, 32_767, 61_000, u16::MAX] {
            for search in [Search::Short, Search::Thorough] {
                let ports: Vec<u16> = candidates(client, search).collect();
                assert_eq!(ports[0], counterpart(client), "{ports:?}");
                let (last, others) = ports.split_last().unwrap();
                assert_eq!(*last, client, "{ports:?}");
                assert!(others.len() >= 4 && !others.contains(&client), "{ports:?}");
            }
            // A client with thousands of connections: each has its own port.
            assert_eq!(candidates(client, Search::Single).collect::<Vec<_>>(), [client]);
        }
        for search in [Search::Single, Search::Short, Search::Thorough] {
            assert_eq!(candidates(1_023, search).next(), Some(1_023));
            assert!(candidates(40_000, search).all(|port| port != 40_000), "an ephemeral one is never had");
        }
    }

    #[test]
    fn what_is_not_about_the_port_is_not_tried_with_another_one() {
        for errno in [Errno::ACCESS, Errno::NETUNREACH, Errno::NOBUFS] {
            let outcome = tries(Search::Thorough, None, Some(errno));
            assert_eq!(
                outcome,
                ([1, 1, 1], Some(errno.raw_os_error())),
                "a route that prohibits, and the like"
            );
        }
        assert_eq!(
            tries(Search::Thorough, Some(Errno::NOBUFS), None),
            ([1, 1, 0], Some(Errno::NOBUFS.raw_os_error()))
        );
    }

    /// Where replies need it, the capture remembers an open connection for three minutes after its last
    /// packet.
    #[test]
    fn a_connection_that_is_silent_is_heard_of_before_anybody_forgets_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream);
        keep_alive(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        // The first keepalive probe, or its answer, may be lost.
        let heard_of = socket.tcp_keepalive_time().unwrap() + socket.tcp_keepalive_interval().unwrap();
        assert!(heard_of < Duration::from_secs(180), "{heard_of:?}");
    }

    /// The port search relies on this.
    #[test]
    fn a_socket_whose_port_could_not_be_bound_can_have_another_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_at = taken.local_addr().unwrap();
        let ports = LocalPorts::with_range(1..=1);
        let local = Local { client: None, mark: None };
        let socket = open(taken_at, local).unwrap();
        let error = bind(&socket, taken_at, &ports).unwrap_err();
        assert!(failure::is_about_the_port(&error), "{error}");
        bind(&socket, "127.0.0.1:0".parse().unwrap(), &ports).unwrap();
        let bound = socket.local_addr().unwrap().as_socket().unwrap();
        let connected = start_connect(socket, taken_at).unwrap();
        assert_eq!(connected.local_addr().unwrap(), bound);
    }
}
