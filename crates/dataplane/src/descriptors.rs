//! How many file descriptors the data plane may hold. All workers share one budget: whoever would go
//! over it is turned away, and nothing that already runs is disturbed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for everything else in the process: listeners, the apiserver's connections, files, logs; but no
/// more than half of what there is.
const RESERVE: u64 = 256;

/// The data plane's share of the process's file descriptors.
#[derive(Debug)]
pub(crate) struct Descriptors {
    limit: usize,
    used: AtomicUsize,
}

/// A number of descriptors taken from the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    descriptors: Arc<Descriptors>,
    count: usize,
}

impl Descriptors {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Takes `count` descriptors, unless that goes over the limit.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Option<Permit> {
        let fits = |used: usize| used.checked_add(count).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Permit { descriptors: Arc::clone(self), count })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.descriptors.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Raises the soft limit on open files to the hard limit, as far as the system allows, and returns how
/// many descriptors the data plane may hold: the granted limit less a reserve.
pub fn raise_descriptor_limit() -> usize {
    let now = getrlimit(Resource::Nofile);
    // Failing is no error: the limit that holds is what is read back.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    let granted = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(granted - RESERVE.min(granted / 2)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_never_exceeded_and_is_given_back() {
        let descriptors = Descriptors::new(5);
        let two = descriptors.take(2).unwrap();
        let three = descriptors.take(3).unwrap();
        assert!(descriptors.take(1).is_none());
        drop(three);
        assert!(descriptors.take(4).is_none());
        assert!(descriptors.take(3).is_some());
        drop(two);
        assert!(descriptors.take(5).is_some());
    }
}
