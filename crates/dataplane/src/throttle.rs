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
}
