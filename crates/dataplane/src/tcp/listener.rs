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
    /// It waits for a turn; an event in the meantime needs none of its own.
    pub(crate) is_queued: bool,
    /// It was said that it does not work.
    pub(crate) is_reported: bool,
}

/// The outcome of one accept.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// One that ended before we got to it; there may be more.
    Aborted,
    /// No more for now; an event will tell.
    Drained,
    /// The process or the machine has no descriptor left. The connection waits in the kernel's queue,
    /// and no event will tell of it again.
    Exhausted,
    /// The listener itself does not work. Trying at once again would go on for ever.
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

    /// How its clients get here.
    pub(crate) fn kind(&self) -> ListenerKind {
        self.kind
    }

    /// The address that the client of an accepted connection connects to: a captured connection has it
    /// as its local address.
    pub(crate) fn frontend_of(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        match self.kind {
            ListenerKind::Bound => Ok(self.address),
            ListenerKind::Captured(_) => stream.local_addr(),
        }
    }

    /// Takes no new connections from now on, where that can be had; those that have begun are still accepted. A capturing one's
    /// are the successor's, with which it shares its address.
    pub(crate) fn refuse(&self) -> io::Result<()> {
        match self.kind {
            ListenerKind::Bound => refuse_new_connections(self.socket.as_fd()),
            ListenerKind::Captured(_) => Ok(()),
        }
    }

    /// What the kernel has dropped since the last call, as the queue was full.
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

/// What an error of accept(2) is about.
fn on_error(error: io::Error) -> Accepted {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Accepted::Exhausted,
        // The new connection's own: it ended, a firewall forbids it, or its network is in trouble (accept(2)).
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
