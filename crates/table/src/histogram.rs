//! Histograms of durations. Workers add to them, any thread reads.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Number of bounds of a histogram. Each is a time series for each Service, so there are few.
pub const BUCKETS: usize = 8;

/// Bounds for the time from the first attempt to connect until an endpoint has answered. Within a node that
/// takes a fraction of a millisecond, within a zone one or two; at 250 ms and the bounds after it, another
/// endpoint is tried.
const CONNECT: [Duration; BUCKETS] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(10),
];

/// Bounds for the time from the first attempt to connect until both sides have ended; for a flow, from its
/// first datagram to its last one.
const LIFE: [Duration; BUCKETS] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3_600),
    Duration::from_secs(86_400),
];

/// A histogram of durations.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [Duration; BUCKETS],
    /// One count for each bound, and one for what exceeds all of them.
    counts: [AtomicU64; BUCKETS + 1],
    /// In microseconds.
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram of connect times.
    pub fn of_connecting() -> Self {
        Self::new(&CONNECT)
    }

    /// A histogram of how long connections and flows last.
    pub fn of_lives() -> Self {
        Self::new(&LIFE)
    }

    fn new(bounds: &'static [Duration; BUCKETS]) -> Self {
        Self { bounds, counts: Default::default(), sum: AtomicU64::new(0) }
    }

    /// Adds a duration. Any thread may call it.
    pub fn add(&self, time: Duration) {
        if let Some(count) = self.counts.get(self.bucket(time)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(micros(time), Ordering::Relaxed);
    }

    /// Like [`Self::add`] without a locked instruction, if no other thread ever adds to this histogram.
    pub fn add_alone(&self, time: Duration) {
        let add = |to: &AtomicU64, n: u64| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        };
        if let Some(count) = self.counts.get(self.bucket(time)) {
            add(count, 1);
        }
        add(&self.sum, micros(time));
    }

    fn bucket(&self, time: Duration) -> usize {
        self.bounds.iter().position(|bound| time <= *bound).unwrap_or(BUCKETS)
    }

    /// The current values.
    pub fn times(&self) -> Times {
        Times {
            bounds: self.bounds,
            counts: self.counts.each_ref().map(|count| count.load(Ordering::Relaxed)),
            sum: Duration::from_micros(self.sum.load(Ordering::Relaxed)),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A [`Histogram`] at one moment, or the sum of several of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    bounds: &'static [Duration; BUCKETS],
    counts: [u64; BUCKETS + 1],
    sum: Duration,
}

impl Times {
    /// How long connections lasted, counted elsewhere: the count for each bound and for what exceeds all of
    /// them, and the sum.
    pub fn of_lives(counts: [u64; BUCKETS + 1], sum: Duration) -> Self {
        Self { bounds: &LIFE, counts, sum }
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of the durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Each bound with the number of durations above the previous bound and up to this one. A bound of `None`
    /// stands for what exceeds all bounds.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.bounds.iter().copied().map(Some).chain([None]).zip(self.counts)
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }
}

/// The times of one service port.
#[derive(Debug)]
pub struct ServiceTimes {
    /// From the first attempt to connect until an endpoint has answered; TCP only.
    pub connecting: Histogram,
    /// How long ended connections and flows lasted.
    pub lives: Histogram,
}

impl Default for ServiceTimes {
    fn default() -> Self {
        Self { connecting: Histogram::of_connecting(), lives: Histogram::of_lives() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_at_the_first_bound_that_it_does_not_pass() {
        let histogram = Histogram::of_connecting();
        for micros in [0, 500, 501, 1_000, 10_000_000, 10_000_001] {
            histogram.add(Duration::from_micros(micros));
            histogram.add_alone(Duration::from_micros(micros));
        }
        let mut times = histogram.times();
        assert_eq!(times.buckets().map(|(_, count)| count).collect::<Vec<_>>(), [4, 4, 0, 0, 0, 0, 0, 2, 2]);
        assert_eq!(times.sum(), 2 * Duration::from_micros(20_002_002));
        times += Histogram::of_connecting().times();
        times += histogram.times();
        assert_eq!(times.count(), 24);
    }
}
