//! Rate-limited warnings about TCP clients that are reset because of a limit of this node. Without them, only
//! counters would show it.

use std::time::Instant;

use super::client_sessions::ClientSessions;
use crate::client::ClientKey;
use crate::throttle::OnceAMinute;

/// The warnings of one worker.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    over_share: OnceAMinute,
    no_descriptors: OnceAMinute,
}

impl Complaints {
    /// A client is refused because it has too many sessions.
    pub(crate) fn over_share(&mut self, client: ClientKey, clients: &ClientSessions, now: Instant) {
        if self.over_share.admit(now) {
            let sessions = clients.count(client);
            tracing::warn!(
                %client,
                sessions,
                "a client has its share of all TCP sessions (of this worker's, so many); more are reset \
                 (--client-share; said once a minute)"
            );
        }
    }

    /// There are no file descriptors for a session.
    pub(crate) fn no_descriptors(&mut self, clients: &ClientSessions, sessions: usize, now: Instant) {
        if self.no_descriptors.admit(now) {
            let largest = clients.largest();
            let client = largest.map(|(client, _)| tracing::field::display(client));
            let its_sessions = largest.map(|(_, count)| count);
            tracing::warn!(
                sessions,
                client,
                its_sessions,
                "file descriptors have run out, so that new TCP connections are reset; the client named has most of this \
                 worker's sessions (said once a minute). Fix: see who has so many, or raise the limit on \
                 open files"
            );
        }
    }
}
