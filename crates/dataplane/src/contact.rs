//! How a worker is told things, by the rest of the program and by its like: it may be handed a connection by another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SendError, Sender};

use mio::Waker;

use crate::stats::WorkerStats;
use crate::tcp::relay::AcceptedConnection;
use crate::worker::Command;

/// What others have of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    pub(crate) stats: Arc<WorkerStats>,
    /// Connections that it was handed and has not looked at.
    handed: Arc<AtomicUsize>,
}

impl Contact {
    /// With what the worker is told.
    pub(crate) fn new(waker: Waker) -> (Self, Receiver<Command>) {
        let (commands, receiver) = mpsc::channel();
        let contact =
            Self { commands, waker: Arc::new(waker), stats: Arc::default(), handed: Arc::default() };
        (contact, receiver)
    }

    /// A worker that has ended takes no commands: then there is nothing to do.
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

    /// Hands it a connection; back, if it has ended.
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
            // It is what was sent.
            Err(SendError(_)) => Ok(()),
        }
    }

    /// TCP sessions that it has, and will have.
    pub(crate) fn sessions(&self) -> usize {
        let sessions = usize::try_from(self.stats.tcp_active.get()).unwrap_or(usize::MAX);
        sessions.saturating_add(self.handed.load(Ordering::Relaxed))
    }
}

/// The other workers, as one of them has them.
///
/// The kernel spreads connections over the workers' listeners by chance (`SO_REUSEPORT`). With many that is even. But of
/// a few long ones several would share a worker while others have none, so a worker that has more than twice as many sessions as
/// another one, of two that it looks at, hands on what it has accepted.
#[derive(Debug, Default)]
pub(crate) struct Others {
    contacts: Vec<Contact>,
    /// The worker's own count.
    handed: Arc<AtomicUsize>,
    /// Whom to look at next.
    next: usize,
}

impl Others {
    /// All workers but this one.
    pub(crate) fn of(number: usize, all: &[Contact]) -> Self {
        let contacts = all.iter().enumerate().filter(|(other, _)| *other != number);
        let handed = all.get(number).map(|own| Arc::clone(&own.handed)).unwrap_or_default();
        Self { contacts: contacts.map(|(_, contact)| contact.clone()).collect(), handed, next: 0 }
    }

    /// Hands a connection to another worker, if one has much less to do than this one, which has so many sessions. Otherwise
    /// it is the caller's.
    pub(crate) fn hand_on(
        &mut self,
        connection: AcceptedConnection,
        sessions: usize,
    ) -> Result<(), AcceptedConnection> {
        // Looking at others' counts is not free.
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

    /// A connection has been taken over.
    pub(crate) fn has_taken(&self) {
        self.handed.fetch_sub(1, Ordering::Relaxed);
    }

    /// From now on all are kept: others may be about to end.
    pub(crate) fn keep_all(&mut self) {
        self.contacts.clear();
    }
}
