//! Conclusions from the age of a watch. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A conclusion about a watch that has been open for some time, whether or not it has sent anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Milestone {
    /// It works. An event shows only that it was opened: a watch that is cut after each event does not work.
    Works,
    /// It lasts: later failures are new ones, and not repetitions of those before it was opened.
    Lasts,
    /// The apiserver should have ended it.
    Overdue,
}

/// The milestones that a watch has not reached yet.
#[derive(Debug)]
pub(super) struct Milestones(VecDeque<(Instant, Milestone)>);

impl Milestones {
    /// The milestones of a watch that was opened at `opened`, by the time that each takes.
    pub(super) fn new(opened: Instant, works: Duration, lasts: Duration, overdue: Duration) -> Self {
        let after = |time, milestone| (opened + time, milestone);
        let mut ahead = [
            after(works, Milestone::Works),
            after(lasts, Milestone::Lasts),
            after(overdue, Milestone::Overdue),
        ];
        ahead.sort_by_key(|(at, _)| *at);
        Self(ahead.into())
    }

    /// A milestone that has been reached. Each is returned once, in order.
    pub(super) fn reached(&mut self, now: Instant) -> Option<Milestone> {
        self.0.pop_front_if(|(at, _)| *at <= now).map(|(_, milestone)| milestone)
    }

    /// The time until the next milestone.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.0.front().map_or(Duration::ZERO, |(at, _)| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_reached_once_in_the_order_of_time() {
        let opened = Instant::now();
        let seconds = Duration::from_secs;
        let mut watch = Milestones::new(opened, seconds(1), seconds(30), seconds(20));
        assert_eq!((watch.reached(opened), watch.left(opened)), (None, seconds(1)));
        let later = opened + seconds(25);
        assert_eq!(watch.reached(later), Some(Milestone::Works));
        assert_eq!((watch.left(later), watch.reached(later)), (seconds(0), Some(Milestone::Overdue)));
        assert_eq!((watch.reached(later), watch.left(later)), (None, seconds(5)));
        assert_eq!(watch.reached(opened + seconds(30)), Some(Milestone::Lasts));
        assert_eq!((watch.reached(opened + seconds(99)), watch.left(opened)), (None, seconds(0)));
    }
}
