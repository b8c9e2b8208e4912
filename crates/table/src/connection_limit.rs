//! The maximum number of connections to a Service through this node: annotation `sluice.dev/max-connections`.
//!
//! It covers all ports and families of the Service and all workers: a limit that protects a database from its
//! clients must not depend on which of its ports they use. Only Services with a limit are counted, so others
//! share no counter.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The limit of one Service, and the current count. The count outlives every version of the limit.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimit {
    max: NonZeroU32,
    used: Arc<AtomicU32>,
}

/// One connection's slot in the limit. Dropping it frees it.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicU32>);

impl ConnectionLimit {
    pub(crate) fn new(max: NonZeroU32, used: &Arc<AtomicU32>) -> Self {
        Self { max, used: Arc::clone(used) }
    }

    /// Takes a slot if one is free.
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
