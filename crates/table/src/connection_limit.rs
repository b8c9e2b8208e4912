//! How many connections a Service may have through this node: annotation `sluice.dev/max-connections`.
//!
//! All ports and families of the Service, all workers: what protects a database from its clients does not
//! care which of its ports they use. Counted only where a limit is set, so that others share no counter.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The limit of one Service, and how much of it is used. The use outlives every version of the limit.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimit {
    max: NonZeroU32,
    used: Arc<AtomicU32>,
}

/// One connection's part of the limit, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicU32>);

impl ConnectionLimit {
    pub(crate) fn new(max: NonZeroU32, used: &Arc<AtomicU32>) -> Self {
        Self { max, used: Arc::clone(used) }
    }

    /// Room for one more connection, if there is any.
    pub(crate) fn take(&self) -> Option<Slot> {
        let one_more = |used| (used < self.max.get()).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Slot(Arc::clone(&self.used)))
    }
}

impl PartialEq for ConnectionLimit {
    fn eq(&self, other: &Self) -> bool {
        self.max == other.max && Arc::ptr_eq(&self.used, &other.used)
    }
}

impl Eq for ConnectionLimit {}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn threads_never_have_more_than_the_limit() {
        let used = Arc::default();
        let limit = ConnectionLimit::new(NonZeroU32::new(3).unwrap(), &used);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let slots = [limit.take(), limit.take()];
                        assert!(used.load(Ordering::Relaxed) <= 3);
                        drop(slots);
                    }
                });
            }
        });
        assert_eq!(used.load(Ordering::Relaxed), 0);
    }
}
