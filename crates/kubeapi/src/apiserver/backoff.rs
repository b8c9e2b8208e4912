//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// Delays that double with each consecutive failure.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The next delay. `random` is from 0 to 1: half of a delay is random, so that the nodes of a cluster do not
    /// all reconnect at once when its apiserver returns.
    pub(super) fn failed(&mut self, random: f64) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        // At first between 1 and 2 times the minimum, never more than the maximum.
        (delay.mul_f64(1.0 + random.clamp(0.0, 1.0))).min(self.max)
    }

    /// Resets the delay after a success.
    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_longest_and_fall_back_after_health() {
        let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
        let delays: Vec<_> = (0..8).map(|_| backoff.failed(0.0).as_millis()).collect();
        assert_eq!(delays, [800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.failed(1.0).as_secs(), 30);
        backoff.reset();
        assert_eq!(backoff.failed(0.5).as_millis(), 1200);
        assert_eq!(backoff.failed(1.0).as_millis(), 3200);
    }
}
