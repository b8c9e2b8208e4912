//! How often a worker says the same kind of thing: what clients or endpoints can cause at any rate must not fill a log,
//! nor keep a worker busy with writing one. Pure; runs on the worker.

use std::time::{Duration, Instant};

/// Messages of one kind in an [`INTERVAL`].
const BURST: u32 = 10;

/// How long a burst is counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts messages of one kind, of one worker.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// When the burst under way began.
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Throttle {
    /// Whether a message may be said now: how many before it were not.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL) {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said == BURST {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Admits one message of a kind a minute, of one worker: for what goes on for as long as nobody mends it.
#[derive(Debug, Default)]
pub(crate) struct OnceAMinute(Option<Instant>);

impl OnceAMinute {
    /// Whether it may be said now.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|said| now.saturating_duration_since(said) >= Duration::from_secs(60));
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_said_then_the_next_message_counts_what_was_left_out() {
        let (start, mut throttle) = (Instant::now(), Throttle::default());
        for _ in 0..BURST {
            assert_eq!(throttle.admit(start), Some(0));
        }
        for _ in 0..1_000 {
            assert_eq!(throttle.admit(start + INTERVAL / 2), None);
        }
        assert_eq!(throttle.admit(start + INTERVAL), Some(1_000));
        assert_eq!(throttle.admit(start + INTERVAL), Some(0));
    }

    #[test]
    fn what_goes_on_is_said_once_a_minute() {
        let (start, mut said) = (Instant::now(), OnceAMinute::default());
        let at = [0, 1, 59_999, 60_000, 119_999, 120_000];
        let admitted = at.map(|millis| said.admit(start + Duration::from_millis(millis)));
        assert_eq!(admitted, [true, false, false, true, false, true]);
    }
}
