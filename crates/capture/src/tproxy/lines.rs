//! Limits the rate of log lines about damage by others and its repair: it may be repeated endlessly, and a log
//! has to stay readable.

use std::fmt;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

/// The maximum number of lines in an [`INTERVAL`].
const BURST: u32 = 10;

/// The duration of a burst.
const INTERVAL: Duration = Duration::from_secs(60);

/// Counts lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The start of the current burst.
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Lines {
    /// Whether a line may be logged now.
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

    /// Logs a warning, or a debug line if the limit is reached.
    pub(super) fn warn(&mut self, now: Instant, what: fmt::Arguments<'_>) {
        if self.admit(now) {
            warn!("{what}");
        } else {
            debug!("{what}");
        }
    }

    /// The number of suppressed lines, once their interval is over; each is reported once.
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
