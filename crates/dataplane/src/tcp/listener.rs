//! Accepting connections: what each error of accept(2) means.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use mio::net::TcpStream;
use rustix::io::Errno;
use sluice_sys::tcp::refuse_new_connections;

use crate::client::ListenerKind;
use crate::drops::DropsCounted;

/// A listening socket of one worker.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: mio::net::TcpListener,
    /// The address it listens on.
    address: SocketAddr,
    kind: ListenerKind,
    drops: DropsCounted,
    /// It is queued for a turn, so a further event need not queue it.
    pub(crate) is_queued: bool,
    /// Its failure has been logged.
    pub(crate) is_reported: bool,
}

/// The outcome of one accept.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// A connection that ended before it was accepted; there may be more.
    Aborted,
    /// The queue is empty; an event will announce the next connection.
    Drained,
    /// The process or the machine is out of descriptors or memory. The connection stays in the kernel's
    /// queue, and no further event announces it.
    Exhausted,
    /// The listener itself fails. An immediate retry would loop forever.
    Broken(io::Error),
}

impl Listener {
    pub(crate) fn new(socket: TcpListener, kind: ListenerKind) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let socket = mio::net::TcpListener::from_std(socket);
        let drops = DropsCounted::default();
        Ok(Self { socket, address, kind, drops, is_queued: false, is_reported: false })
    }

    pub(crate) fn source(&mut self) -> &mut mio::net::TcpListener {
        &mut self.socket
    }

    /// The address it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How clients reach this listener.
    pub(crate) fn kind(&self) -> ListenerKind {
        self.kind
    }

    /// The address that the client of an accepted connection connects to. It is the local address of a
    /// captured connection.
    pub(crate) fn frontend_of(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        match self.kind {
            ListenerKind::Bound => Ok(self.address),
            ListenerKind::Captured(_) => stream.local_addr(),
        }
    }

    /// Refuses new connections from now on, if the kernel can do that; those already begun are still
    /// accepted. A capturing listener is left as it is: new connections go to the successor's listener at the
    /// same address.
    pub(crate) fn refuse(&self) -> io::Result<()> {
        match self.kind {
            ListenerKind::Bound => refuse_new_connections(self.socket.as_fd()),
            ListenerKind::Captured(_) => Ok(()),
        }
    }

    /// How many packets the kernel has dropped since the last call because the queue was full.
    pub(crate) fn dropped(&mut self) -> u64 {
        self.drops.more(&self.socket)
    }

    pub(crate) fn accept(&self) -> Accepted {
        match self.socket.accept() {
            Ok((stream, client)) => Accepted::Connection(stream, client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accepted::Drained,
            Err(error) => on_error(error),
        }
    }
}

/// The outcome that an error of accept(2) stands for.
fn on_error(error: io::Error) -> Accepted {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Accepted::Exhausted,
        // Errors of the new connection: it ended, a firewall rejects it, or its network has a problem
        // (accept(2)).
        Some(
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::PERM
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
            | Errno::TIMEDOUT,
        ) => Accepted::Aborted,
        _ => Accepted::Broken(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_connections_this_nodes_or_the_listeners() {
        let of = |errno: Errno| on_error(errno.into());
        for errno in [Errno::CONNABORTED, Errno::PERM, Errno::HOSTUNREACH, Errno::INTR] {
            assert!(matches!(of(errno), Accepted::Aborted), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(matches!(of(errno), Accepted::Exhausted), "{errno}");
        }
        for errno in [Errno::INVAL, Errno::BADF, Errno::NOTSOCK] {
            assert!(matches!(of(errno), Accepted::Broken(_)), "{errno}");
        }
    }

    #[test]
    fn a_listener_that_was_shut_down_is_broken_and_says_so() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
        let listener = Listener::new(socket, ListenerKind::Bound).unwrap();
        assert!(matches!(listener.accept(), Accepted::Broken(_)));
    }
}
