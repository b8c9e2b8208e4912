//! The sockets that replies to captured datagrams leave by: one for each frontend that has flows, shared
//! by them.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};

use rustix::io::Errno;
use sluice_sys::udp::Joining;

use super::socket;
use crate::descriptors::Permit;
use crate::transparent::Marks;

/// A socket with a frontend's address. Closed with the last flow that replies by it.
#[derive(Debug)]
pub(crate) struct ReplySocket {
    pub(crate) socket: UdpSocket,
    pub(crate) joining: Joining,
    _permit: Permit,
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
    has_complained: bool,
}

impl ReplySockets {
    /// The frontend's socket, if it has one.
    pub(crate) fn find(&self, frontend: SocketAddr) -> Option<Arc<ReplySocket>> {
        self.by_frontend.get(&frontend).and_then(Weak::upgrade)
    }

    /// Opens a frontend's socket; none if it cannot be had.
    pub(crate) fn open(
        &mut self,
        frontend: SocketAddr,
        marks: Marks,
        permit: Permit,
    ) -> Option<Arc<ReplySocket>> {
        let socket = match socket::reply_from(frontend, marks) {
            Ok(socket) => Arc::new(ReplySocket { socket, joining: Joining::default(), _permit: permit }),
            Err(error) => {
                self.complain(frontend, &error);
                return None;
            }
        };
        self.by_frontend.insert(frontend, Arc::downgrade(&socket));
        Some(socket)
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

    /// Forgets frontends that have no flows any more.
    pub(crate) fn tidy(&mut self) {
        self.by_frontend.retain(|_, socket| socket.strong_count() > 0);
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
        Some(Errno::MFILE) => "raise the agent's limit on open files (ulimit -n)",
        Some(Errno::NFILE) => "raise the node's limit on open files (fs.file-max)",
        Some(Errno::NOBUFS | Errno::NOMEM) => "the node, or the agent's cgroup, needs more memory",
        _ => "see bind(2) and ip(7) for the error",
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
