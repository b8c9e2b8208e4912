//! Decides when the allocator is asked to give back unused memory. Otherwise the memory of deleted objects, of
//! the lists that they came in, and of ended sessions and flows would stay with the agent for good. Pure.

use std::time::{Duration, Instant};

/// How many changes of objects, or sessions and flows that have ended, make it worthwhile; fewer leave little
/// behind.
const MANY: u64 = 1_000;

/// It is asked once there were no more changes for this long, because it takes milliseconds.
const QUIET: Duration = Duration::from_secs(5);

/// If changes never stop, it is asked after this long.
const LONG: Duration = Duration::from_secs(300);

/// While sessions and flows come and go, it is asked at most this often.
const PAUSE: Duration = Duration::from_secs(60);

/// Counts of changes, sessions and flows.
#[derive(Debug)]
pub(crate) struct Heap {
    /// The number of changes when it was last asked.
    asked_at: u64,
    asked: Instant,
    /// The number of changes at the last look, and since when it is the same.
    seen: u64,
    quiet_since: Instant,
    /// The most sessions and flows since it was last asked.
    peak: u64,
}

impl Heap {
    pub(crate) fn new(now: Instant) -> Self {
        Self { asked_at: 0, asked: now, seen: 0, quiet_since: now, peak: 0 }
    }

    /// Whether to ask now, after so many changes in total and with so many sessions and flows.
    pub(crate) fn is_due(&mut self, changes: u64, active: u64, now: Instant) -> bool {
        if std::mem::replace(&mut self.seen, changes) != changes {
            self.quiet_since = now;
        }
        self.peak = self.peak.max(active);
        let is_quiet = now >= self.quiet_since + QUIET || now >= self.asked + LONG;
        let is_due = (is_quiet && changes >= self.asked_at + MANY)
            || (now >= self.asked + PAUSE && self.peak >= active + MANY);
        if is_due {
            (self.asked_at, self.asked, self.peak) = (changes, now, active);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_after_many_changes_once_there_are_no_more() {
        let start = Instant::now();
        let mut heap = Heap::new(start);
        let mut at = |seconds, changes| heap.is_due(changes, 0, start + Duration::from_secs(seconds));
        assert!(!at(0, 0) && !at(60, 0) && !at(100, MANY - 1) && !at(200, MANY - 1), "few");
        assert!(!at(201, MANY) && !at(205, MANY), "they may go on");
        assert!(at(206, MANY) && !at(207, MANY) && !at(500, MANY), "once");
        assert!(!at(900, 2 * MANY - 1) && !at(910, 2 * MANY - 1));
    }

    #[test]
    fn where_there_are_always_more_it_is_asked_now_and_then() {
        let start = Instant::now();
        let mut heap = Heap::new(start);
        let due = (0..1_000).filter(|n| heap.is_due(10 * n, 0, start + Duration::from_secs(*n)));
        assert_eq!(due.collect::<Vec<_>>(), [300, 600, 900]);
    }

    #[test]
    fn it_is_asked_when_many_sessions_and_flows_have_ended_and_not_each_time() {
        let start = Instant::now();
        let mut heap = Heap::new(start);
        let mut at = |seconds, active| heap.is_due(0, active, start + Duration::from_secs(seconds));
        assert!(!at(100, 5_000) && !at(101, 4_001), "few have");
        assert!(at(102, 4_000) && !at(103, 10), "a minute has to be between");
        assert!(!at(161, 10) && at(162, 10) && !at(1_000, 10), "once");
    }
}
