//! Socket options and the ends of a connection.

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

/// How long a port is looked for that a client can have towards an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// One port is tried: there was none a moment ago, but clients have one each.
    Single,
    /// Some ports are tried: nearly always the first one will do.
    Short,
    /// So many that a client that finds none has nearly all.
    Thorough,
}

/// Starts to connect; success and failure show as the stream becoming writable.
///
/// A client's address is used with the client's port where that matters, and otherwise with one that the client hardly
/// uses itself ([`UpstreamPort`]): the client may talk to this endpoint without the Service as well. A port that is
/// taken towards this endpoint, or that we may not have, is replaced. One that other sockets of this node may need is
/// not bound but left to connect(2), to which it is free towards every other destination
/// ([`LocalPorts::can_ask_for`]).
///
/// # Errors
/// It failed at once: no route, no descriptor, no local port (`EADDRNOTAVAIL`).
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
        // The client's connections to other endpoints have the port too, and so may a listener of the node that is
        // started later.
        socket.set_reuse_address(true)?;
        Ok(socket)
    };
    let bind = |socket: &Socket, port| bind(socket, SocketAddr::new(client.ip(), port), ports);
    connect_from_one_of(candidates(client.port(), search), open, bind, |socket| {
        start_connect(socket, address)
    })
}

/// The ports to try for a client that has this one.
fn candidates(client: u16, search: Search) -> impl Iterator<Item = u16> {
    let (first, own) = match UpstreamPort::of_client(client, Protocol::Tcp) {
        UpstreamPort::Keep => (client, None),
        // Others were all taken a moment ago; this one, which each of the client's connections has for itself, hardly is.
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

/// Connects from the first port that can be had. A port that bind(2) does not give leaves the socket as it is, for the next
/// one; a socket that has a port keeps it, also where connect(2) finds it taken.
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
    // To the address alone; the port is left to connect(2).
    local_port::choose_from(socket, local.port()..=local.port())?;
    local_port::choose_at_connect(socket)?;
    socket.bind(&SocketAddr::new(local.ip(), 0).into())
}

/// A socket towards an endpoint.
fn open(address: SocketAddr, local: Local) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    set_stream_options(&socket)?;
    // The last segment of the handshake waits for the first bytes and goes with them; see [`acknowledge_at_once`].
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
    undelivered(stream) == 0
}

/// How many bytes of what was written have not reached the peer's kernel.
pub(crate) fn undelivered(stream: &TcpStream) -> usize {
    // A socket that cannot say will not deliver anything either.
    sluice_sys::tcp::unacknowledged_bytes(stream.as_fd()).unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How many sockets are opened, bound and connected for a client, and what comes of it, where bind(2) and connect(2)
    /// say this of each port.
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
            // It has thousands of connections: each has a port of its own.
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

    /// Where answers need it, the capture remembers an open connection for three minutes after it was last heard of.
    #[test]
    fn a_connection_that_is_silent_is_heard_of_before_anybody_forgets_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream);
        keep_alive(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        // The first question, or its answer, may be lost.
        let heard_of = socket.tcp_keepalive_time().unwrap() + socket.tcp_keepalive_interval().unwrap();
        assert!(heard_of < Duration::from_secs(180), "{heard_of:?}");
    }

    /// As the loop above relies on it.
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
