//! Pipes for splice(2): a bounded pool of empty ones, made as they are needed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::descriptors::{Descriptors, Permit};

/// What one fill of a pipe may move. The default of 64 KiB has 16 slots, and a slot holds one segment
/// however short; 256 KiB quarters the number of system calls in bulk (measured: larger ones gain
/// nothing more, and unprivileged users have 64 MiB of pipe for all their processes, pipe(7)).
const CAPACITY: usize = 256 << 10;

/// How many pages the kernel counts for such a pipe if a page has 4 KiB; fewer with larger pages.
const PAGES: usize = CAPACITY >> 12;

/// Empty pipes that a worker keeps for the next bulk transfer.
const MAX_POOLED: usize = 8;

/// If the pipes of one user have more pages than this setting, processes of the user without CAP_SYS_RESOURCE
/// get pipes of two pages (pipe(7)). The user is mostly root, which is the same user as root of all
/// containers without a user namespace.
const SETTING: &str = "/proc/sys/fs/pipe-user-pages-soft";

/// The default of the setting.
const DEFAULT_PAGES: usize = 16_384;

/// Our pipes may take one in this many of these pages; the rest is for other programs.
const SHARE: usize = 4;

/// File descriptors of a pipe.
const DESCRIPTORS: usize = 2;

/// The budget of pipes' file descriptors, for all workers together. It is small because a slow reader holds a
/// pipe for as long as it likes.
pub(crate) fn budget(descriptors: &Arc<Descriptors>) -> Arc<Descriptors> {
    let pipes = most(std::fs::read_to_string(SETTING).ok().as_deref());
    descriptors.part(pipes.saturating_mul(DESCRIPTORS), 0)
}

/// The maximum number of pipes by the setting, or by its default if it cannot be read; 0 means no limit.
fn most(setting: Option<&str>) -> usize {
    match setting.and_then(|pages| pages.trim().parse().ok()).unwrap_or(DEFAULT_PAGES) {
        0 => usize::MAX,
        pages => pages / SHARE / PAGES,
    }
}

/// A pipe: `write` in, `read` out.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) read: OwnedFd,
    pub(crate) write: OwnedFd,
    /// How much to ask for in one fill. What is pending may be more: the kernel counts slots, and one
    /// slot can hold more than a page.
    pub(crate) capacity: usize,
    _permit: Permit,
}

/// A worker's empty pipes.
#[derive(Debug)]
pub(crate) struct PipePool {
    /// The most recently used pipe is last, and is used next.
    pooled: Vec<Pipe>,
    /// How many pipes at the front have not been used since the last [`close_unused`](Self::close_unused).
    unused: usize,
    /// The worker's part of the [`budget`].
    descriptors: Arc<Descriptors>,
}

impl PipePool {
    /// A pool within the [`budget`], which the other workers' pools share.
    pub(crate) fn new(budget: &Arc<Descriptors>) -> Self {
        Self { pooled: Vec::new(), unused: 0, descriptors: budget.part(usize::MAX, 0) }
    }

    /// An empty pipe, if one can be had.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        let pipe = self.pooled.pop();
        self.unused = self.unused.min(self.pooled.len());
        pipe.or_else(|| self.make().ok().flatten())
    }

    /// Gives an empty pipe back. One that still holds bytes must be dropped instead: the next
    /// connection would receive them.
    pub(crate) fn put(&mut self, pipe: Pipe) {
        if self.pooled.len() < MAX_POOLED {
            self.pooled.push(pipe);
        }
    }

    /// Closes the pipes that have not been used since the last call.
    pub(crate) fn close_unused(&mut self) {
        self.pooled.drain(..self.unused);
        self.unused = self.pooled.len();
    }

    /// Whether there are unused pipes.
    pub(crate) fn has_pooled(&self) -> bool {
        !self.pooled.is_empty()
    }

    /// How many pipes exist, in use or not.
    pub(crate) fn count(&self) -> usize {
        self.descriptors.used() / DESCRIPTORS
    }

    fn make(&self) -> io::Result<Option<Pipe>> {
        let Some(permit) = self.descriptors.take(DESCRIPTORS) else { return Ok(None) };
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // If the user's quota is exceeded, the pipe keeps its size, and still works.
        let capacity = match fcntl_setpipe_size(&write, CAPACITY) {
            Ok(size) => size,
            Err(_) => rustix::pipe::fcntl_getpipe_size(&write)?,
        };
        Ok(Some(Pipe { read, write, capacity, _permit: permit }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_reused_and_bounded_by_the_descriptors_and_by_their_own_budget() {
        for (all, those_of_pipes) in [(4, 100), (100, 4)] {
            let all = Descriptors::new(all);
            let mut pool = PipePool::new(&all.part(those_of_pipes, 0));
            let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
            assert!(pool.take().is_none(), "two pipes are four descriptors");
            pool.put(a);
            assert!(pool.take().is_some());
            assert_eq!(pool.count(), 1);
            drop(b);
            assert_eq!((pool.count(), all.used()), (0, 0));
        }
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_bound() {
        let mut pool = PipePool::new(&Descriptors::new(1_000));
        let pipes: Vec<Pipe> = std::iter::from_fn(|| pool.take()).take(MAX_POOLED + 5).collect();
        pipes.into_iter().for_each(|pipe| pool.put(pipe));
        assert_eq!(pool.pooled.len(), MAX_POOLED);
    }

    #[test]
    fn pipes_that_nobody_has_used_between_two_looks_are_closed() {
        let mut pool = PipePool::new(&Descriptors::new(1_000));
        let pipes: Vec<Pipe> = std::iter::from_fn(|| pool.take()).take(5).collect();
        pipes.into_iter().for_each(|pipe| pool.put(pipe));
        pool.close_unused();
        assert_eq!(pool.count(), 5, "all have been used");
        let two = [pool.take().unwrap(), pool.take().unwrap()];
        two.into_iter().for_each(|pipe| pool.put(pipe));
        pool.close_unused();
        assert_eq!(pool.count(), 2);
        let held = pool.take().unwrap();
        let mut counts = [(); 2].map(|()| {
            pool.close_unused();
            pool.count()
        });
        assert_eq!(counts, [1, 1], "one is in use all the time");
        pool.put(held);
        counts = [(); 2].map(|()| {
            pool.close_unused();
            pool.count()
        });
        assert_eq!(counts, [1, 0]);
        assert!(!pool.has_pooled());
    }

    #[test]
    fn a_quarter_of_what_a_user_may_have_in_pipes_is_ours() {
        let of = |setting| most(Some(setting));
        assert_eq!((of("16384\n"), of("65536\n"), of("100\n")), (64, 256, 0));
        assert_eq!(of("0\n"), usize::MAX, "no limit");
        assert_eq!((most(None), of("?")), (64, 64));
        assert!(budget(&Descriptors::new(1_000)).free() > 0, "this machine's");
    }
}
