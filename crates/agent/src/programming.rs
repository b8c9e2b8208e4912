//! Whether what was queued has reached the kernel: since when a change waits, and when all was last up to date. Written
//! by whoever hands changes over and by the controller; read by anyone. (kube-proxy: `QueuedUpdate` and `Updated` of
//! `healthcheck/proxy_health.go`.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// The state of what is queued.
#[derive(Debug, Default)]
pub(crate) struct Programming(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Batches of changes that were handed over.
    queued: u64,
    /// Those of them that the proxy has taken in.
    taken: u64,
    /// Since when the oldest that has not taken effect waits.
    oldest: Option<Instant>,
    updated: Option<Timestamp>,
}

impl Programming {
    /// A batch of changes is handed over now.
    pub(crate) fn queued(&self, now: Instant) {
        let mut state = self.lock();
        state.queued += 1;
        state.oldest.get_or_insert(now);
    }

    /// The proxy knows this many more batches.
    pub(crate) fn taken(&self, batches: u64) {
        self.lock().taken += batches;
    }

    /// All that was taken has taken effect; where `is_good` is false only as far as that could be done.
    pub(crate) fn settled(&self, now: Instant, is_good: bool) {
        let mut state = self.lock();
        if state.oldest.is_none() || !is_good {
            return;
        }
        // What came in since has not waited for longer than this.
        state.oldest = (state.taken != state.queued).then_some(now);
        state.updated = Some(Timestamp::now());
    }

    /// For how long a change has waited; none where nothing waits.
    pub(crate) fn pending_for(&self, now: Instant) -> Option<Duration> {
        self.lock().oldest.map(|since| now.saturating_duration_since(since))
    }

    /// When changes last took effect.
    pub(crate) fn updated(&self) -> Option<Timestamp> {
        self.lock().updated
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_from_when_it_is_queued_to_when_it_has_taken_effect() {
        let programming = Programming::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let waits = |seconds| programming.pending_for(at(seconds)).map(|time| time.as_secs());
        programming.settled(at(0), true);
        assert_eq!((waits(0), programming.updated()), (None, None), "nothing was queued so far");

        programming.queued(at(10));
        programming.queued(at(20));
        programming.taken(1);
        assert_eq!(waits(30), Some(20), "the oldest counts");
        programming.settled(at(40), false);
        assert_eq!((waits(40), programming.updated()), (Some(30), None), "an attempt that failed is none");
        programming.settled(at(50), true);
        assert_eq!(waits(60), Some(10), "one of two is not in it");
        assert!(programming.updated().is_some());
        programming.taken(1);
        programming.settled(at(70), true);
        assert_eq!(waits(80), None);
    }
}
