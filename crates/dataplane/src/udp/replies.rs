//! The sockets from which replies to captured datagrams are sent: one for each frontend with flows, which
//! these share, and one more for each client that found it full.
//!
//! Datagrams that the kernel cannot send yet, because a neighbour does not answer or a device is slow, count
//! against the send buffer of their socket until they are sent (`sk_wmem_alloc`). So one client could keep a
//! shared socket full and block the replies to all others. The kernel does not report which client fills it,
//! so any client that finds it full gets a socket of its own. Innocent clients lose nothing then, and the
//! others no longer add to the shared socket.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};

use rustix::io::Errno;
use sluice_model::mend_of_shortage;
use sluice_sys::udp::Joining;

use super::socket;
use crate::descriptors::Permit;
use crate::transparent::Marks;

/// The maximum number of clients of a frontend with sockets of their own. All sockets with one address form a
/// group, which the kernel walks for each datagram to it once one of them has had a peer
/// (`reuseport_has_conns_set`, caused by [`socket::turn_away`]).
const MOST_OWN: usize = 64;

/// A socket with a frontend's address. It is closed with the last flow that uses it.
#[derive(Debug)]
pub(crate) struct ReplySocket {
    pub(crate) socket: UdpSocket,
    pub(crate) joining: Joining,
    /// Only one client's replies are sent from it.
    pub(crate) is_own: bool,
    _permit: Permit,
}

impl ReplySocket {
    /// Opens one. Even if it is for a single client, it is not connected: otherwise TPROXY would give it what
    /// the client sends (`nf_tproxy_get_sock_v4`, `NF_TPROXY_LOOKUP_ESTABLISHED`).
    fn open(frontend: SocketAddr, marks: Marks, is_own: bool, permit: Permit) -> io::Result<Arc<Self>> {
        let socket = socket::reply_from(frontend, marks)?;
        Ok(Arc::new(Self { socket, joining: Joining::default(), is_own, _permit: permit }))
    }
}

impl ReplySocket {
    /// Has the kernel give this socket nothing more, before it is closed because its frontend is gone. Closing is not enough: a
    /// process that is being started has a copy until it executes its program.
    ///
    /// Not for a frontend that is still captured: a socket that gets a peer while TPROXY looks a datagram up takes it with it
    /// (`nf_tproxy_get_sock_v4` asks for the peer only after the look-up).
    pub(crate) fn turn_away(&self) {
        // None is known that fails, and it is about to be closed.
        let _ = socket::turn_away(&self.socket);
    }
}

#[derive(Debug, Default)]
pub(crate) struct ReplySockets {
    by_frontend: HashMap<SocketAddr, Weak<ReplySocket>>,
    /// By frontend and client.
    own: HashMap<SocketAddr, HashMap<IpAddr, Weak<ReplySocket>>>,
    has_complained: bool,
}

impl ReplySockets {
    /// The client's own socket for a frontend, or else the shared one, if there is one.
    pub(crate) fn find(&self, frontend: SocketAddr, client: IpAddr) -> Option<Arc<ReplySocket>> {
        let shared = || self.by_frontend.get(&frontend).and_then(Weak::upgrade);
        self.find_own(frontend, client).or_else(shared)
    }

    /// The client's own socket for a frontend, if it has one.
    pub(crate) fn find_own(&self, frontend: SocketAddr, client: IpAddr) -> Option<Arc<ReplySocket>> {
        self.own.get(&frontend)?.get(&client)?.upgrade()
    }

    /// Opens a frontend's socket; `None` if that fails.
    pub(crate) fn open(
        &mut self,
        frontend: SocketAddr,
        marks: Marks,
        permit: Permit,
    ) -> Option<Arc<ReplySocket>> {
        let socket = match ReplySocket::open(frontend, marks, false, permit) {
            Ok(socket) => socket,
            Err(error) => {
                self.complain(frontend, &error);
                return None;
            }
        };
        self.by_frontend.insert(frontend, Arc::downgrade(&socket));
        Some(socket)
    }

    /// Whether one more client of a frontend may have a socket of its own. Closed sockets count until they
    /// are removed by [`Self::tidy`].
    pub(crate) fn has_room(&self, frontend: SocketAddr) -> bool {
        self.own.get(&frontend).is_none_or(|clients| clients.len() < MOST_OWN)
    }

    /// Opens a socket for one client's replies; `None` if that fails.
    pub(crate) fn open_own(
        &mut self,
        frontend: SocketAddr,
        client: IpAddr,
        marks: Marks,
        permit: Permit,
    ) -> Option<Arc<ReplySocket>> {
        match ReplySocket::open(frontend, marks, true, permit) {
            Ok(socket) => {
                self.own.entry(frontend).or_default().insert(client, Arc::downgrade(&socket));
                Some(socket)
            }
            // The replies are counted as lost.
            Err(error) => {
                tracing::debug!(%frontend, %client, %error, "no socket for one client's answers");
                None
            }
        }
    }

    /// Forgets the failures to join datagrams, for all sockets: another client may have caused them.
    pub(crate) fn forget_refusals(&self) {
        for socket in self
            .by_frontend
            .values()
            .chain(self.own.values().flat_map(HashMap::values))
            .filter_map(Weak::upgrade)
        {
            socket.joining.forget();
        }
    }

    /// Logs an error, but only the first one, because clients send often.
    fn complain(&mut self, frontend: SocketAddr, error: &io::Error) {
        if std::mem::replace(&mut self.has_complained, true) {
            tracing::debug!(%frontend, %error, "no socket to reply by");
        } else {
            tracing::warn!(
                "what clients send to {frontend}/UDP is lost, as there can be no socket to reply by: {error}: \
                 {} (said once)",
                mend(error)
            );
        }
    }

    /// Removes frontends and clients without flows.
    pub(crate) fn tidy(&mut self) {
        self.by_frontend.retain(|_, socket| socket.strong_count() > 0);
        self.own.retain(|_, clients| {
            clients.retain(|_, socket| socket.strong_count() > 0);
            !clients.is_empty()
        });
    }
}

/// What to do about an error of [`socket::reply_from`].
fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => {
            "a program of this node has the port on that address: give one of them another, or start the program \
             so that it shares the port (SO_REUSEADDR)"
        }
        Some(Errno::ACCESS) => "the port is privileged: give the agent CAP_NET_BIND_SERVICE",
        Some(Errno::PERM) => "give the agent CAP_NET_ADMIN",
        _ => mend_of_shortage(error).unwrap_or("see bind(2) and ip(7) for the error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_in_use_is_blamed_on_another_program() {
        let mend = |errno: Errno| mend(&errno.into());
        assert!(mend(Errno::ADDRINUSE).contains("a program of this node"));
        assert!(mend(Errno::ACCESS).contains("CAP_NET_BIND_SERVICE"));
        assert!(mend(Errno::MFILE).contains("open files"));
        for errno in [Errno::ACCESS, Errno::PERM, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INVAL] {
            assert!(!mend(errno).contains("program"), "{errno}");
        }
    }
}
