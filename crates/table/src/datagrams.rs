//! Counters of a service port's UDP datagrams. Workers add to them, any thread reads.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a datagram was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No endpoint could be used.
    NoEndpoint,
    /// The Service's flow limit is reached.
    ServiceLimit,
    /// This node lacked a resource, or its rules forbade it.
    Node,
    /// A socket's send buffer was full.
    Full,
    /// A socket returned an error.
    Error,
}

impl Loss {
    /// All reasons.
    pub const ALL: [Self; 5] = [Self::NoEndpoint, Self::ServiceLimit, Self::Node, Self::Full, Self::Error];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no-endpoint",
            Self::ServiceLimit => "service-limit",
            Self::Node => "node-limit",
            Self::Full => "full",
            Self::Error => "error",
        }
    }
}

/// The datagram counters of a service port.
#[derive(Debug, Default)]
pub struct Datagrams {
    forwarded: AtomicU64,
    returned: AtomicU64,
    lost: [AtomicU64; Loss::ALL.len()],
}

impl Datagrams {
    /// Adds datagrams that were delivered to endpoints.
    pub fn forwarded(&self, count: u64) {
        self.forwarded.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds datagrams that were delivered to clients.
    pub fn returned(&self, count: u64) {
        self.returned.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds lost datagrams; `count` is mostly 0.
    pub fn lost(&self, loss: Loss, count: u64) {
        if count > 0
            && let Some(lost) = self.lost.get(loss as usize)
        {
            lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The current values.
    pub fn counts(&self) -> DatagramCounts {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (forwarded, returned) = (now(&self.forwarded), now(&self.returned));
        DatagramCounts { forwarded, returned, lost: self.lost.each_ref().map(now) }
    }
}

/// [`Datagrams`] at one moment, of one service port or the sum of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatagramCounts {
    /// Delivered to endpoints.
    pub forwarded: u64,
    /// Delivered to clients.
    pub returned: u64,
    /// Lost, in the order of [`Loss::ALL`].
    pub lost: [u64; Loss::ALL.len()],
}

impl AddAssign for DatagramCounts {
    fn add_assign(&mut self, other: Self) {
        self.forwarded += other.forwarded;
        self.returned += other.returned;
        self.lost.iter_mut().zip(other.lost).for_each(|(lost, more)| *lost += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_a_count_of_its_own() {
        let datagrams = Datagrams::default();
        (1..).zip(Loss::ALL).for_each(|(count, loss)| datagrams.lost(loss, count));
        let mut counts = datagrams.counts();
        counts += counts;
        assert_eq!(counts, DatagramCounts { lost: [2, 4, 6, 8, 10], ..DatagramCounts::default() });
    }
}
