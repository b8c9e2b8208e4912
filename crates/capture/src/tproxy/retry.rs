//! Decides when to retry a failed operation.

use std::fmt;
use std::time::{Duration, Instant};

/// Pause before the first retry; doubles up to [`RETRY_MAX`]. It equals the interval of checks: the cause is
/// usually another program that changes nftables at the same time.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest pause.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(30);

/// The state of an operation that may fail.
#[derive(Debug, Default)]
pub(super) struct Retry(Option<Failure>);

#[derive(Debug)]
struct Failure {
    reason: String,
    pause: Duration,
    due: Instant,
}

impl Retry {
    /// Whether the last attempt has failed.
    pub(super) fn is_pending(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it may be tried: it has not failed, or the pause is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|failure| now >= failure.due)
    }

    /// Why the last attempt failed, if it did.
    pub(super) fn reason(&self) -> Option<&str> {
        self.0.as_ref().map(|failure| failure.reason.as_str())
    }

    /// Notes a failure. Returns whether the reason differs from the last one, and so is worth a log line.
    pub(super) fn failed(&mut self, now: Instant, error: &impl fmt::Display) -> bool {
        let reason = error.to_string();
        let is_news = self.0.as_ref().is_none_or(|failure| failure.reason != reason);
        let pause = self.0.as_ref().map_or(RETRY_MIN, |failure| (failure.pause * 2).min(RETRY_MAX));
        self.0 = Some(Failure { reason, pause, due: now + pause });
        is_news
    }

    /// Notes a success. Returns whether it had failed before.
    pub(super) fn succeeded(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_each_reason_is_news_once() {
        let mut retry = Retry::default();
        let mut now = Instant::now();
        assert!(retry.is_due(now) && !retry.is_pending());
        let mut pauses = Vec::new();
        for attempt in 0..9 {
            assert_eq!(retry.failed(now, &"busy"), attempt == 0);
            assert!(retry.is_pending() && !retry.is_due(now));
            assert_eq!(retry.reason(), Some("busy"));
            let start = now;
            while !retry.is_due(now) {
                now += RETRY_MIN;
            }
            pauses.push((now - start).as_millis());
        }
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert!(retry.failed(now, &"gone"));
        assert!(retry.succeeded());
        assert!(!retry.succeeded() && retry.is_due(now));
        assert!(retry.failed(now, &"gone"), "news again");
        assert!(retry.is_due(now + RETRY_MIN), "and the pause is short again");
    }
}
