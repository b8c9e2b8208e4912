//! The sockets that replies to captured datagrams leave by: one for each frontend that has flows, shared
//! by them, and one more for each client that has found it full.
//!
//! What the kernel cannot send yet, to a neighbour that does not answer or by a narrow device, counts as its socket's until
//! it has (`sk_wmem_alloc`): one client could keep a shared socket full, and all others from their answers. Who fills it the
//! kernel does not say. So whoever finds it full gets a socket of its own, innocent or not: the former lose nothing, and
//! the latter add nothing more to it.

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

/// So many clients of a frontend have sockets of their own at the most: all sockets with an address are a group, which the
/// kernel walks for each datagram to it once one of them has had a peer (`reuseport_has_conns_set`, by [`socket::turn_away`]).
const MOST_OWN: usize = 64;

/// A socket with a frontend's address. Closed with the last flow that replies by it.
#[derive(Debug)]
pub(crate) struct ReplySocket {
    pub(crate) socket: UdpSocket,
    pub(crate) joining: Joining,
    /// Only one client's answers leave by it.
    pub(crate) is_own: bool,
    _permit: Permit,
}

impl ReplySocket {
    /// One of a client's own has no peer all the same: TPROXY would hand over to it what the client sends
    /// (`nf_tproxy_get_sock_v4`, `NF_TPROXY_LOOKUP_ESTABLISHED`).
    fn open(frontend: SocketAddr, marks: Marks, is_own: bool, permit: Permit) -> io::Result<Arc<Self>> {
        let socket = socket::reply_from(frontend, marks)?;
        Ok(Arc::new(Self { socket, joining: Joining::default(), is_own, _permit: permit }))
    }
}

/// Closing is not enough: a process that is being started has a copy until it executes its program.
impl Drop for ReplySocket {
    fn drop(&mut self) {
        let _ = socket::turn_away(&self.socket);
    }
}

/// All of them of one worker.
#[derive(Debug, Default)]
pub(crate) struct ReplySockets {
    by_frontend: HashMap<SocketAddr, Weak<ReplySocket>>,
    /// A frontend's, for one client each.
    own: HashMap<SocketAddr, HashMap<IpAddr, Weak<ReplySocket>>>,
    has_complained: bool,
}

impl ReplySockets {
    /// The client's socket of a frontend, or else the one that it shares, if there is one.
    pub(crate) fn find(&self, frontend: SocketAddr, client: IpAddr) -> Option<Arc<ReplySocket>> {
        let shared = || self.by_frontend.get(&frontend).and_then(Weak::upgrade);
        self.find_own(frontend, client).or_else(shared)
    }

    /// The client's socket of a frontend, if it has one.
    pub(crate) fn find_own(&self, frontend: SocketAddr, client: IpAddr) -> Option<Arc<ReplySocket>> {
        self.own.get(&frontend)?.get(&client)?.upgrade()
    }

    /// Opens a frontend's socket; none if it cannot be had.
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

    /// Whether one more client of a frontend may have a socket of its own. Those that were closed count until they are
    /// tidied away.
    pub(crate) fn has_room(&self, frontend: SocketAddr) -> bool {
        self.own.get(&frontend).is_none_or(|clients| clients.len() < MOST_OWN)
    }

    /// Opens a socket for one client's answers; none if it cannot be had.
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
            // The answers are counted as lost.
            Err(error) => {
                tracing::debug!(%frontend, %client, %error, "no socket for one client's answers");
                None
            }
        }
    }

    /// Forgets what the kernel has refused to send as one, of all sockets: another client may have been the reason.
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

    /// Once: what clients send comes often.
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

    /// Forgets frontends, and clients of them, that have no flows any more.
    pub(crate) fn tidy(&mut self) {
        self.by_frontend.retain(|_, socket| socket.strong_count() > 0);
        self.own.retain(|_, clients| {
            clients.retain(|_, socket| socket.strong_count() > 0);
            !clients.is_empty()
        });
    }
}

/// What a person can do about an error of [`socket::reply_from`].
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
