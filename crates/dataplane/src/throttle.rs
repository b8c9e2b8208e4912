//! Rate limits for log messages of one kind. Events that clients, endpoints or objects can cause at any rate
//! must neither fill a log nor keep a thread busy writing it. Pure; each limit belongs to one thread.

use std::time::{Duration, Instant};

/// The maximum number of messages of one kind that a worker logs in an [`INTERVAL`].
const BURST: u32 = 10;

/// The period over which a burst is counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// A rate limit for messages of one kind, on one thread: one burst per 10 s is logged.
#[derive(Debug)]
pub struct Throttle {
    burst: u32,
    /// When the current burst began.
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
    /// A limit of `burst` messages per interval.
    pub const fn new(burst: u32) -> Self {
        Self { burst, since: None, said: 0, left_out: 0 }
    }

    /// Returns `Some` if a message may be logged now, with the number of messages suppressed before it.
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

    /// The number of suppressed messages, once their interval is over and if it has not been reported yet.
    /// For kinds of events that may not happen again, so that no later message would report the number.
    pub fn sum_up(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.left_out > 0 && self.is_over(now);
        is_due.then(|| std::mem::take(&mut self.left_out))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
    }
}

/// Admits one message per minute, for conditions that last until somebody fixes them. Each worker has its
/// own.
#[derive(Debug, Default)]
pub(crate) struct OnceAMinute(Option<Instant>);

impl OnceAMinute {
    /// Whether the message may be logged now.
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
