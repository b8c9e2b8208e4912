//! How often it is said what others have broken and was mended: somebody may break it all the time, and a log is to be read.

use std::fmt;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

/// Lines in an [`INTERVAL`].
const BURST: u32 = 10;

/// How long a burst is counted.
const INTERVAL: Duration = Duration::from_secs(60);

/// Counts lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// When the burst under way began.
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Lines {
    /// Whether a line may be said now.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            (self.since, self.said) = (Some(now), 0);
        }
        let is_admitted = self.said < BURST;
        if is_admitted {
            self.said += 1;
        } else {
            self.left_out += 1;
        }
        is_admitted
    }

    /// Warns of it, or notes it where enough has been said.
    pub(super) fn warn(&mut self, now: Instant, what: fmt::Arguments<'_>) {
        if self.admit(now) {
            warn!("{what}");
        } else {
            debug!("{what}");
        }
    }

    /// How many were not said, once their interval is over and where that has not been told yet.
    pub(super) fn sum_up(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.left_out > 0 && self.is_over(now);
        is_due.then(|| std::mem::take(&mut self.left_out))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_are_said_and_the_others_counted() {
        let (start, mut lines) = (Instant::now(), Lines::default());
        let admitted = |lines: &mut Lines, at| (0..1_000).filter(|_| lines.admit(at)).count();
        assert_eq!(lines.sum_up(start), None);
        assert_eq!(admitted(&mut lines, start), 10);
        assert_eq!(admitted(&mut lines, start + INTERVAL / 2), 0);
        assert_eq!(lines.sum_up(start + INTERVAL / 2), None);
        assert_eq!(lines.sum_up(start + INTERVAL), Some(1_990));
        assert_eq!(lines.sum_up(start + INTERVAL), None);
        assert_eq!(admitted(&mut lines, start + INTERVAL), 10);
    }
}
