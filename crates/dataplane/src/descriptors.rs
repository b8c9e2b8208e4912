//! How many file descriptors the data plane may hold. All workers share one budget. A connection that would
//! exceed it is rejected, and existing connections are not affected.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reserved for everything else in the process: connections to the apiserver, files, logs, health checks.
/// Together with what the workers need for themselves it is at most half of the limit.
const RESERVE: u64 = 256;

/// What a worker needs for itself: 12 listening sockets (TCP and UDP, IPv4 and IPv6, three origins) and 3
/// descriptors to wait for events (epoll, its duplicate in the registry, the waker).
const RESERVE_PER_WORKER: u64 = 15;

/// Listening sockets may take one in this many of the file descriptors. They are useless if no descriptors
/// are left for connections.
const LISTENERS_SHARE: usize = 2;

/// The data plane's share of the process's file descriptors, or a part of that.
#[derive(Debug)]
pub(crate) struct Descriptors {
    limit: usize,
    used: AtomicUsize,
    /// For a part: the whole, and how many descriptors of it are reserved for the part, used or not.
    whole: Option<(Arc<Descriptors>, usize)>,
}

/// The part of the descriptor budget for listening sockets other than the workers' own: those of frontends in
/// bind mode, and of other parts of this process that open one socket per Service port (health check ports).
/// Clones share the budget.
#[derive(Debug, Clone)]
pub struct Listeners(Arc<Descriptors>);

impl Listeners {
    /// A budget of its own.
    pub fn new(limit: usize) -> Self {
        Self(Descriptors::new(limit))
    }

    /// A part of a data plane's budget; connections take the rest.
    pub(crate) fn of(whole: &Arc<Descriptors>) -> Self {
        Self(whole.part(whole.limit / LISTENERS_SHARE, 0))
    }

    /// Takes descriptors for `count` sockets.
    ///
    /// # Errors
    /// `EMFILE` if the budget is used up.
    pub fn take(&self, count: usize) -> io::Result<Permit> {
        self.0.take(count).ok_or_else(|| Errno::MFILE.into())
    }
}

/// A number of descriptors taken from the budget; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    descriptors: Arc<Descriptors>,
    count: usize,
}

impl Descriptors {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), whole: None })
    }

    /// A budget that is part of this one: everything taken from it is taken from this one too. `reserved`
    /// descriptors are set aside for it, if that many are free now; others cannot take them.
    pub(crate) fn part(self: &Arc<Self>, limit: usize, reserved: usize) -> Arc<Self> {
        let reserved = if self.reserve(reserved) { reserved } else { 0 };
        Arc::new(Self { limit, used: AtomicUsize::new(0), whole: Some((Arc::clone(self), reserved)) })
    }

    /// Takes `count` descriptors, unless that exceeds the limit or that of the whole.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Option<Permit> {
        self.reserve(count).then(|| Permit { descriptors: Arc::clone(self), count })
    }

    /// How many are taken.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many are left.
    pub(crate) fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    fn reserve(&self, count: usize) -> bool {
        let fits = |used: usize| used.checked_add(count).filter(|used| *used <= self.limit);
        let Ok(before) = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) else {
            return false;
        };
        let Some((whole, reserved)) = &self.whole else { return true };
        let is_reserved = whole.reserve(beyond(*reserved, before, before + count));
        if !is_reserved {
            self.used.fetch_sub(count, Ordering::Relaxed);
        }
        is_reserved
    }

    fn give_back(&self, count: usize) {
        let before = self.used.fetch_sub(count, Ordering::Relaxed);
        if let Some((whole, reserved)) = &self.whole {
            whole.give_back(beyond(*reserved, before - count, before));
        }
    }
}

/// How much of the range between `from` and `to` lies above `level`.
fn beyond(level: usize, from: usize, to: usize) -> usize {
    to.saturating_sub(level) - from.saturating_sub(level)
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.descriptors.give_back(self.count);
    }
}

/// Raises the soft limit on open files to the hard limit, as far as the system allows, and returns how
/// many descriptors the data plane may hold with this many workers: the granted limit less a reserve.
pub fn raise_descriptor_limit(workers: usize) -> usize {
    let now = getrlimit(Resource::Nofile);
    // A failure is not an error: the effective limit is read back.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    let granted = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(without_reserve(granted, workers)).unwrap_or(usize::MAX)
}

fn without_reserve(granted: u64, workers: usize) -> u64 {
    let workers = u64::try_from(workers).unwrap_or(u64::MAX);
    let reserve = RESERVE_PER_WORKER.saturating_mul(workers).saturating_add(RESERVE);
    granted - reserve.min(granted / 2)
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

    #[test]
    fn a_part_is_bounded_by_itself_and_by_the_whole() {
        let whole = Descriptors::new(5);
        let part = whole.part(3, 0);
        let three = part.take(3).unwrap();
        assert!(part.take(1).is_none(), "the part is used up");
        let two = whole.take(2).unwrap();
        assert!(whole.take(1).is_none(), "what a part has the whole has not");
        drop(three);
        let others = whole.take(2).unwrap();
        assert!(part.take(2).is_none(), "the whole is used up");
        let one = part.take(1).unwrap();
        drop((one, others, two));
        assert!(part.take(3).is_some() && whole.take(5).is_some());
    }

    #[test]
    fn what_a_part_has_for_itself_nobody_else_can_take() {
        let whole = Descriptors::new(10);
        let (part, other) = (whole.part(5, 2), whole.part(8, 3));
        let five = whole.take(5).unwrap();
        assert!(whole.take(1).is_none());
        let (two, three) = (part.take(2).unwrap(), other.take(3).unwrap());
        assert!(part.take(1).is_none() && other.take(1).is_none(), "nothing is left beyond that");
        drop(five);
        let more = part.take(3).unwrap();
        assert!(whole.take(3).is_none(), "beyond it a part takes from the whole");
        drop((two, more));
        assert!(whole.take(6).is_none() && whole.take(5).is_some());
        drop(three);
        assert!(whole.take(6).is_none() && part.take(5).is_some() && other.take(8).is_some());
        assert_eq!(whole.part(1, 6).take(1).map(|_| ()), Some(()), "what cannot be reserved is shared");
    }

    #[test]
    fn the_reserve_grows_with_the_workers_and_is_never_more_than_half() {
        assert_eq!(without_reserve(100_000, 1), 100_000 - 256 - 15);
        assert_eq!(without_reserve(100_000, 128), 100_000 - 256 - 15 * 128);
        assert_eq!(without_reserve(1_024, 128), 512);
        assert_eq!(without_reserve(u64::MAX, usize::MAX), u64::MAX / 2 + 1);
    }
}
