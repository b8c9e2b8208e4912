//! How long it is tried to attach while the system is short of something, and how often. Time is an argument.

use std::time::{Duration, Instant};

/// How long to wait before the second attempt, and twice as long each time up to the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(16);

/// For how long what an earlier agent has left may go on meanwhile: it knows of no change since then. An update of an agent may
/// take as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait once what was left is removed: all is relayed then, and nothing is wrong with that.
pub(super) const SLOW: Duration = Duration::from_secs(300);

/// Attempts that failed one after the other.
#[derive(Debug)]
pub(super) struct Shortage {
    since: Instant,
    delay: Duration,
    has_given_up: bool,
}

/// What becomes of what an earlier agent has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Stays,
    /// It goes; `is_news` for the first time.
    Goes {
        /// Whether it stayed so far.
        is_news: bool,
    },
}

impl Shortage {
    /// The first attempt is made now.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, delay: Duration::ZERO, has_given_up: false }
    }

    /// An attempt has failed.
    pub(super) fn failed(&mut self, now: Instant) -> Fate {
        if now < self.since + PATIENCE {
            self.delay = (self.delay * 2).clamp(FIRST, LONGEST);
            Fate::Stays
        } else {
            self.delay = SLOW;
            Fate::Goes { is_news: !std::mem::replace(&mut self.has_given_up, true) }
        }
    }

    /// How long to wait before the next one.
    pub(super) fn delay(&self) -> Duration {
        self.delay
    }
}
