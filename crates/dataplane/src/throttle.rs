//! How often the same kind of thing is said: what clients, endpoints or objects can cause at any rate must not fill a log,
//! nor keep a thread busy with writing one. Pure; each is of one thread.

use std::time::{Duration, Instant};

/// Messages of one kind of a worker in an [`INTERVAL`].
const BURST: u32 = 10;

/// How long a burst is counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts messages of one kind, of one thread: in 10 s a burst of them is said.
#[derive(Debug)]
pub struct Throttle {
    burst: u32,
    /// When the burst under way began.
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(BURST)
    }
}

impl Throttle {
    /// One for bursts of so many messages.
    pub const fn new(burst: u32) -> Self {
        Self { burst, since: None, said: 0, left_out: 0 }
    }

    /// Whether a message may be said now: how many before it were not.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_over(now) {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said == self.burst {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// How many were not said, once their interval is over and where that has not been told yet: for what may not come again,
    /// with a message that could tell it.
    pub fn sum_up(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.left_out > 0 && self.is_over(now);
        is_due.then(|| std::mem::take(&mut self.left_out))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
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
    fn what_was_left_out_is_told_without_a_further_message_once_the_interval_is_over() {
        let (start, mut throttle) = (Instant::now(), Throttle::new(20));
        assert_eq!(throttle.sum_up(start), None);
        let admitted = |throttle: &mut Throttle, at| (0..1_000).filter_map(|_| throttle.admit(at)).count();
        assert_eq!(admitted(&mut throttle, start), 20);
        assert_eq!(admitted(&mut throttle, start + INTERVAL / 2), 0);
        assert_eq!(throttle.sum_up(start + INTERVAL / 2), None);
        assert_eq!(throttle.sum_up(start + INTERVAL), Some(2_000 - 20));
        assert_eq!(throttle.sum_up(start + INTERVAL), None);
        assert_eq!(throttle.admit(start + INTERVAL), Some(0));
        assert_eq!(admitted(&mut throttle, start + INTERVAL), 19);
    }

    #[test]
    fn what_goes_on_is_said_once_a_minute() {
        let (start, mut said) = (Instant::now(), OnceAMinute::default());
        let at = [0, 1, 59_999, 60_000, 119_999, 120_000];
        let admitted = at.map(|millis| said.admit(start + Duration::from_millis(millis)));
        assert_eq!(admitted, [true, false, false, true, false, true]);
    }
}
