//! How the rest of the program and other workers send commands to a worker. Another worker may hand it a
//! connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SendError, Sender};

use mio::Waker;

use crate::stats::WorkerStats;
use crate::tcp::relay::AcceptedConnection;
use crate::worker::Command;

/// A handle on a worker, held by others.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    pub(crate) stats: Arc<WorkerStats>,
    /// Connections that were handed to it and that it has not taken yet.
    handed: Arc<AtomicUsize>,
}

impl Contact {
    /// Returns the handle, and the receiver of the worker's commands.
    pub(crate) fn new(waker: Waker) -> (Self, Receiver<Command>) {
        let (commands, receiver) = mpsc::channel();
        let contact =
            Self { commands, waker: Arc::new(waker), stats: Arc::default(), handed: Arc::default() };
        (contact, receiver)
    }

    /// Sends a command. Does nothing if the worker has ended.
    pub(crate) fn tell(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake a worker");
        }
    }

    /// Hands the worker a connection. Returns the connection if the worker has ended.
    fn hand(&self, connection: AcceptedConnection) -> Result<(), AcceptedConnection> {
        self.handed.fetch_add(1, Ordering::Relaxed);
        match self.commands.send(Command::Take(connection)) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(SendError(Command::Take(connection))) => {
                self.handed.fetch_sub(1, Ordering::Relaxed);
                Err(connection)
            }
            // Unreachable: the error returns the command that was sent.
            Err(SendError(_)) => Ok(()),
        }
    }

    /// TCP sessions that the worker has or was handed.
    pub(crate) fn sessions(&self) -> usize {
        let sessions = usize::try_from(self.stats.tcp_active.get()).unwrap_or(usize::MAX);
        sessions.saturating_add(self.handed.load(Ordering::Relaxed))
    }
}

/// The other workers, as seen by one of them.
///
/// The kernel spreads connections over the workers' listeners at random (`SO_REUSEPORT`). That is even for
/// many connections. But of a few long ones, several may share a worker while another worker has none. So a
/// worker compares itself with two others, and if it has more than twice as many sessions as one of them, it
/// hands on the connection that it has just accepted.
#[derive(Debug, Default)]
pub(crate) struct Others {
    contacts: Vec<Contact>,
    /// The worker's own [`Contact::handed`].
    handed: Arc<AtomicUsize>,
    /// The index of the worker to compare with next.
    next: usize,
}

impl Others {
    /// All workers but this one.
    pub(crate) fn of(number: usize, all: &[Contact]) -> Self {
        let contacts = all.iter().enumerate().filter(|(other, _)| *other != number);
        let handed = all.get(number).map(|own| Arc::clone(&own.handed)).unwrap_or_default();
        Self { contacts: contacts.map(|(_, contact)| contact.clone()).collect(), handed, next: 0 }
    }

    /// Hands a connection to another worker if that one has much less to do than this one, which has
    /// `sessions`. Otherwise returns the connection to the caller.
    pub(crate) fn hand_on(
        &mut self,
        connection: AcceptedConnection,
        sessions: usize,
    ) -> Result<(), AcceptedConnection> {
        // Reading other workers' counters is not free.
        let count = self.contacts.len();
        if sessions == 0 || count == 0 {
            return Err(connection);
        }
        let some = (0..count.min(2)).filter_map(|offset| self.contacts.get((self.next + offset) % count));
        let least = some.map(|contact| (contact, contact.sessions())).min_by_key(|(_, sessions)| *sessions);
        self.next = (self.next + 1) % count;
        match least {
            Some((contact, least)) if sessions > least.saturating_mul(2) => contact.hand(connection),
            _ => Err(connection),
        }
    }

    /// Notes that this worker has taken a connection that was handed to it.
    pub(crate) fn has_taken(&self) {
        self.handed.fetch_sub(1, Ordering::Relaxed);
    }

    /// From now on keeps all connections, because other workers may be about to end.
    pub(crate) fn keep_all(&mut self) {
        self.contacts.clear();
    }
}
