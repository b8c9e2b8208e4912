//! Load that goes on while something else happens: one question after the other, each on a connection or
//! flow of its own, and a count of what became of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sluice_model::Protocol;

use crate::lab::Host;

/// The rest between two questions: some hundreds a second, and processor time for others.
const REST: Duration = Duration::from_millis(1);

/// How long a question may take: longer than a busy machine may stall, shorter than the tests' patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many failures are kept as text.
const TEXTS: usize = 20;

/// A client that asks until it is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What became of a load's questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many were answered.
    pub answered: u64,
    /// How many were not.
    pub failed: u64,
    /// The longest that an answer took. A lost SYN is sent again after a second, and shows here.
    pub slowest: Duration,
    /// The first of those that were not: when, counted from the start, and why.
    pub failures: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    /// In nanoseconds.
    slowest: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn ask(&self, host: &Host, protocol: Protocol, to: SocketAddr) {
        let begin = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let asked = begin.elapsed();
            let outcome = host.ask(protocol, to, PATIENCE);
            if outcome.by().is_some() {
                let took = begin.elapsed().saturating_sub(asked).as_nanos();
                self.slowest.fetch_max(took.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
                self.answered.fetch_add(1, Ordering::Relaxed);
            } else {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                if failures.len() < TEXTS {
                    failures
                        .push(format!("after {asked:?}: {protocol} {to} from {}: {outcome:?}", host.name));
                }
            }
            thread::sleep(REST);
        }
    }

    fn report(&self) -> Report {
        Report {
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            slowest: Duration::from_nanos(self.slowest.load(Ordering::Relaxed)),
            failures: self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Host {
    /// Starts to ask from this host, without end.
    pub fn load(&self, protocol: Protocol, to: SocketAddr) -> Load {
        let shared = Arc::new(Shared::default());
        let (host, its) = (self.clone(), Arc::clone(&shared));
        let thread = thread::spawn(move || its.ask(&host, protocol, to));
        Load { shared, thread: Some(thread) }
    }
}

impl Load {
    /// What became of the questions so far.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// Waits until this many more questions have been answered; whether that came in time.
    #[must_use]
    pub fn answers_more(&self, count: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let enough = answered() + count;
        while answered() < enough {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(REST);
        }
        true
    }

    /// Lets the question that is under way be answered, and says what became of all.
    pub fn stop(mut self) -> Report {
        self.end();
        self.shared.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
