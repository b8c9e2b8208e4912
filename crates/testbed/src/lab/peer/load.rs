//! Continuous load during a test: one request after the other, each on its own connection or flow, and a
//! count of the outcomes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sluice_model::Protocol;

use crate::lab::Host;

/// The pause between two requests: some hundreds per second, and CPU time for others.
const REST: Duration = Duration::from_millis(1);

/// A request's timeout: longer than a busy machine may stall, shorter than the tests' patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// The maximum number of failures kept as text.
const TEXTS: usize = 20;

/// A client that sends requests until it is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The outcomes of a load's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Answered requests.
    pub answered: u64,
    /// Failed requests.
    pub failed: u64,
    /// The longest time to an answer. A lost SYN, which is retransmitted after a second, shows here.
    pub slowest: Duration,
    /// The first failures: the time since the start, and the reason.
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
    /// Starts to send requests from this host.
    pub fn load(&self, protocol: Protocol, to: SocketAddr) -> Load {
        let shared = Arc::new(Shared::default());
        let (host, its) = (self.clone(), Arc::clone(&shared));
        let thread = thread::spawn(move || its.ask(&host, protocol, to));
        Load { shared, thread: Some(thread) }
    }
}

impl Load {
    /// The outcomes so far.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// Waits until this many more requests were answered. Returns whether that happened in time.
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

    /// Waits for the current request, and returns all outcomes.
    pub fn stop(mut self) -> Report {
        self.end();
        self.shared.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it has panicked, that was printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
