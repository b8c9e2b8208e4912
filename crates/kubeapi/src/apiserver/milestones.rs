//! What the age of a watch says. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Something that is true once a watch has lived for so long, whether or not it has said anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Milestone {
    /// It works. An event says no more than that it was opened: what is cut after each of them does not.
    Works,
    /// It lasts: what goes wrong after this is new, and not more of what went wrong before it was opened.
    Lasts,
    /// The apiserver should have ended it.
    Overdue,
}

/// What a watch has ahead of it.
#[derive(Debug)]
pub(super) struct Milestones(VecDeque<(Instant, Milestone)>);

impl Milestones {
    /// Those of a watch that is opened at a time, by how long it takes to each.
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

    /// One that is reached, once each, the earlier ones first.
    pub(super) fn reached(&mut self, now: Instant) -> Option<Milestone> {
        self.0.pop_front_if(|(at, _)| *at <= now).map(|(_, milestone)| milestone)
    }

    /// The time until the next one.
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
