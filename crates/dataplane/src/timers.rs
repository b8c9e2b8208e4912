//! Deadlines of a worker, soonest first.
//!
//! Cancelling is lazy: whoever owns a deadline remembers when it is due, and ignores one that comes up
//! and is not the one it remembers. Activity does not move an entry; the owner sets it anew when it
//! comes up too early.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Deadlines for owners identified by `T`.
#[derive(Debug)]
pub(crate) struct Timers<T: Ord>(BinaryHeap<Reverse<(Instant, T)>>);

impl<T: Ord> Default for Timers<T> {
    fn default() -> Self {
        Self(BinaryHeap::new())
    }
}

impl<T: Ord> Timers<T> {
    pub(crate) fn set(&mut self, at: Instant, owner: T) {
        self.0.push(Reverse((at, owner)));
    }

    /// How long to wait for the first deadline.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let Reverse((at, _)) = self.0.peek()?;
        Some(at.saturating_duration_since(now))
    }

    /// Takes the next deadline that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, T)> {
        match self.0.peek() {
            Some(Reverse((at, _))) if *at <= now => self.0.pop().map(|Reverse(entry)| entry),
            _ => None,
        }
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
        timers.set(at(10), 'a');
        assert_eq!(timers.wait(start), Some(Duration::from_millis(10)));
        assert_eq!(timers.wait(at(15)), Some(Duration::ZERO));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(20)), Some((at(10), 'a')));
        assert_eq!(timers.pop_due(at(20)), Some((at(20), 'b')));
        assert_eq!(timers.wait(start), None);
    }
}
