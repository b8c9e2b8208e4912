//! Passive health: an endpoint that keeps failing is passed over for a while.
//!
//! Nothing is probed; the outcome of real connections tells. After [`FAILURES`] failures in a row
//! the endpoint is passed over for [`FIRST`], after each failure that follows for twice as long, up
//! to [`LONGEST`]; one success ends it. Whoever picks falls back to endpoints that are passed over
//! when there are no others, so this never refuses a connection.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Failures in a row before an endpoint is passed over.
pub const FAILURES: u32 = 3;

/// How long an endpoint is passed over the first time.
pub const FIRST: Duration = Duration::from_secs(1);

/// How long an endpoint is passed over at most.
pub const LONGEST: Duration = Duration::from_secs(30);

/// The state of one endpoint. All zero while it answers.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct PassiveHealth {
    /// When it is tried again, in nanoseconds after `epoch`; 0 if it was not passed over. First:
    /// every pick looks at it.
    until: AtomicU64,
    /// Failures since the last success.
    failures: AtomicU32,
    /// How often in a row it was passed over.
    rounds: AtomicU32,
    /// The time of the first failure.
    epoch: OnceLock<Instant>,
}

impl PassiveHealth {
    /// Takes note of a failed connect. Whether the endpoint is passed over from now on and was not.
    pub(crate) fn failed(&self, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let now = nanoseconds(now.saturating_duration_since(*self.epoch.get_or_init(|| now)));
        let until = self.until.load(Ordering::Relaxed);
        // Connects that were under way when the pause began say nothing new.
        if failures < FAILURES || now < until {
            return false;
        }
        let pause = pause(self.rounds.load(Ordering::Relaxed));
        let began = self
            .until
            .compare_exchange(until, now + nanoseconds(pause), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if began {
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        began
    }

    /// Takes note of an answer.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.rounds.store(0, Ordering::Relaxed);
            self.until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it was passed over since the last success: a look that needs no clock.
    #[inline]
    pub(crate) fn was_passed_over(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0
    }

    /// For how long it is still passed over.
    pub(crate) fn remaining(&self, now: Instant) -> Option<Duration> {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return None;
        }
        let now = nanoseconds(now.saturating_duration_since(*self.epoch.get()?));
        until.checked_sub(now).filter(|left| *left > 0).map(Duration::from_nanos)
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// How long to pass over an endpoint that was passed over `rounds` times before.
fn pause(rounds: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(rounds).unwrap_or(u32::MAX)).min(LONGEST)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events, at seconds: `fail@0.5`, `ok@2`, and questions: `over@1` (passed over), `free@2.5`.
    type Case = (&'static str, &'static str);

    const CASES: &[Case] = &[
        ("an endpoint that never failed is free", "free@0"),
        ("two failures in a row are not enough", "fail@0 fail@0 free@0"),
        ("three are", "fail@0 fail@0 fail@0 over@0 over@0.9 free@1.1"),
        ("a success in between starts anew", "fail@0 fail@0 ok@0 fail@0 fail@0 free@0"),
        ("failures may be far apart", "fail@0 fail@100 fail@200 over@200.9 free@201.1"),
        ("failures under way when it began add nothing", "fail@0 fail@0 fail@0 fail@0.5 fail@0.9 free@1.1"),
        ("one more failure after the pause doubles it", "fail@0 fail@0 fail@0 fail@1 over@2.9 free@3.1"),
        (
            "the pause grows up to 30 seconds",
            "fail@0 fail@0 fail@0 fail@1 fail@3 fail@7 over@14.9 fail@15 over@30.9 fail@31 over@60.9 \
             free@61.1 fail@62 over@91.9 free@92.1 fail@93 over@122.9 free@123.1",
        ),
        ("a success ends the pause", "fail@0 fail@0 fail@0 over@0.5 ok@0.5 free@0.5"),
        (
            "after a success the first pause is short again",
            "fail@0 fail@0 fail@0 fail@1 ok@1 fail@9 fail@9 fail@9 over@9.9 free@10.1",
        ),
    ];

    #[test]
    fn cases() {
        for (name, events) in CASES {
            let start = Instant::now();
            let health = PassiveHealth::default();
            for event in events.split_whitespace() {
                let (what, at) = event.split_once('@').unwrap();
                let now = start + Duration::from_secs_f64(at.parse().unwrap());
                match what {
                    "fail" => _ = health.failed(now),
                    "ok" => health.succeeded(),
                    "over" => assert!(health.remaining(now).is_some(), "{name}: {event}"),
                    _ => assert!(health.remaining(now).is_none(), "{name}: {event}"),
                }
            }
        }
    }

    #[test]
    fn a_pause_is_reported_once() {
        let (health, now) = (PassiveHealth::default(), Instant::now());
        assert_eq!([0; 5].map(|_| health.failed(now)), [false, false, true, false, false]);
        assert_eq!(health.failures(), 5);
        assert_eq!(health.remaining(now), Some(FIRST));
    }

    #[test]
    fn a_clock_that_jumps_back_does_no_harm() {
        let (health, now) = (PassiveHealth::default(), Instant::now() + Duration::from_secs(60));
        (0..3).for_each(|_| _ = health.failed(now));
        let earlier = now - Duration::from_secs(30);
        assert!(health.remaining(earlier).is_some());
        assert!(!health.failed(earlier));
    }
}
