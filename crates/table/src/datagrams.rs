//! What becomes of the UDP datagrams of a service port: counts that workers add to and anyone reads.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a datagram got no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// There was no endpoint for it that could be had.
    NoEndpoint,
    /// The Service has as many flows as it may.
    ServiceLimit,
    /// This node was out of something, or forbade it.
    Node,
    /// A socket's buffer for sending was full.
    Full,
    /// A socket refused it.
    Error,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::NoEndpoint, Self::ServiceLimit, Self::Node, Self::Full, Self::Error];

    /// As metrics have it.
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

/// The datagrams of a service port.
#[derive(Debug, Default)]
pub struct Datagrams {
    forwarded: AtomicU64,
    returned: AtomicU64,
    lost: [AtomicU64; Loss::ALL.len()],
}

impl Datagrams {
    /// So many were delivered to endpoints.
    pub fn forwarded(&self, count: u64) {
        self.forwarded.fetch_add(count, Ordering::Relaxed);
    }

    /// So many were delivered to clients.
    pub fn returned(&self, count: u64) {
        self.returned.fetch_add(count, Ordering::Relaxed);
    }

    /// So many were lost; mostly none.
    pub fn lost(&self, loss: Loss, count: u64) {
        if count > 0
            && let Some(lost) = self.lost.get(loss as usize)
        {
            lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The numbers now.
    pub fn counts(&self) -> DatagramCounts {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (forwarded, returned) = (now(&self.forwarded), now(&self.returned));
        DatagramCounts { forwarded, returned, lost: self.lost.each_ref().map(now) }
    }
}

/// [`Datagrams`] at one moment, of one service port or of several together.
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
