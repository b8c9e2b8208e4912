//! Deadlines of a worker, soonest first.
//!
//! A cancelled deadline is removed immediately, so that the memory is proportional to the pending deadlines
//! and not to the connections that came and went. Activity does not move an entry; if a deadline comes up too
//! early, its owner sets a new one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Deadlines for owners identified by `T`.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    due: BTreeMap<TimerId, T>,
    /// Distinguishes deadlines at the same instant; the one set first comes up first.
    next: u64,
}

/// The handle of a deadline, for [`cancel`](Timers::cancel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerId {
    at: Instant,
    number: u64,
}

impl TimerId {
    /// When it comes up.
    pub(crate) fn at(self) -> Instant {
        self.at
    }
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), next: 0 }
    }
}

impl<T> Timers<T> {
    pub(crate) fn set(&mut self, at: Instant, owner: T) -> TimerId {
        let id = TimerId { at, number: self.next };
        self.next += 1;
        self.due.insert(id, owner);
        id
    }

    /// Removes a deadline; does nothing if it has come up already.
    pub(crate) fn cancel(&mut self, id: TimerId) {
        self.due.remove(&id);
    }

    /// Number of pending deadlines.
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }

    /// How long to wait for the first deadline.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let (TimerId { at, .. }, _) = self.due.first_key_value()?;
        Some(at.saturating_duration_since(now))
    }

    /// Removes the next deadline that is due and returns its owner.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let first = self.due.first_entry()?;
        (first.key().at <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_up_in_order_and_not_early() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set(at(20), 'b');
        timers.set(at(20), 'c');
        timers.set(at(10), 'a');
        assert_eq!(timers.wait(start), Some(Duration::from_millis(10)));
        assert_eq!(timers.wait(at(15)), Some(Duration::ZERO));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!([at(20); 4].map(|now| timers.pop_due(now)), [Some('a'), Some('b'), Some('c'), None]);
        assert_eq!(timers.wait(start), None);
    }

    #[test]
    fn a_deadline_that_is_cancelled_leaves_nothing_behind() {
        let now = Instant::now();
        let mut timers = Timers::default();
        for _ in 0..1_000 {
            let hour = timers.set(now + Duration::from_secs(3_600), 'x');
            timers.cancel(hour);
        }
        assert_eq!(timers.len(), 0);
        let due = timers.set(now, 'y');
        assert_eq!(timers.pop_due(now), Some('y'));
        timers.set(now, 'z');
        timers.cancel(due);
        assert_eq!(timers.pop_due(now), Some('z'), "one that has come up is not another one");
    }
}
