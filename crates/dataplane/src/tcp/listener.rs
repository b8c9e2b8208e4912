//! Accepting connections: what each error of accept(2) means.

use std::io;
use std::net::{SocketAddr, TcpListener};

use mio::net::TcpStream;
use rustix::io::Errno;

use crate::client::Door;

/// A listening socket of one worker.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: mio::net::TcpListener,
    /// The address it listens on.
    address: SocketAddr,
    door: Door,
    /// It waits for a turn; an event in the meantime needs none of its own.
    pub(crate) is_queued: bool,
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
}

impl Listener {
    pub(crate) fn new(socket: TcpListener, door: Door) -> io::Result<Self> {
        let address = socket.local_addr()?;
        Ok(Self { socket: mio::net::TcpListener::from_std(socket), address, door, is_queued: false })
    }

    pub(crate) fn source(&mut self) -> &mut mio::net::TcpListener {
        &mut self.socket
    }

    /// The address it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How its clients get here.
    pub(crate) fn door(&self) -> Door {
        self.door
    }

    /// The address that the client of an accepted connection connects to: a captured connection has it
    /// as its local address.
    pub(crate) fn frontend_of(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        match self.door {
            Door::Bound => Ok(self.address),
            Door::Captured(_) => stream.local_addr(),
        }
    }

    pub(crate) fn accept(&self) -> Accepted {
        match self.socket.accept() {
            Ok((stream, client)) => Accepted::Connection(stream, client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accepted::Drained,
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Accepted::Exhausted,
                // accept(2): network errors of the new connection come out here, and are its own.
                _ => Accepted::Aborted,
            },
        }
    }
}
