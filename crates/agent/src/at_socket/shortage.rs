//! How long, and how often, attaching is retried while the system is short of something. Time is an argument.

use std::time::{Duration, Instant};

/// The wait before the second attempt. It doubles each time up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(16);

/// How long an earlier agent's programs may go on meanwhile, although they learn of no changes. An update of an
/// agent may take as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The wait once these programs are removed: everything is relayed then, and nothing is wrong with that.
pub(super) const SLOW: Duration = Duration::from_secs(300);

/// A series of failed attempts.
#[derive(Debug)]
pub(super) struct Shortage {
    since: Instant,
    delay: Duration,
    has_given_up: bool,
}

/// What becomes of an earlier agent's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// They go on.
    Stays,
    /// They are removed.
    Goes {
        /// Whether they stayed until now.
        is_news: bool,
    },
}

impl Shortage {
    /// The first attempt is made now.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, delay: Duration::ZERO, has_given_up: false }
    }

    /// Counts a failed attempt.
    pub(super) fn failed(&mut self, now: Instant) -> Fate {
        if now < self.since + PATIENCE {
            self.delay = (self.delay * 2).clamp(FIRST, LONGEST);
            Fate::Stays
        } else {
            self.delay = SLOW;
            Fate::Goes { is_news: !std::mem::replace(&mut self.has_given_up, true) }
        }
    }

    /// How long to wait before the next attempt.
    pub(super) fn delay(&self) -> Duration {
        self.delay
    }
}
