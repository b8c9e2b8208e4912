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

/// Empty pipes that a worker keeps for the next bulk transfer.
const MAX_POOLED: usize = 32;

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
    pooled: Vec<Pipe>,
    descriptors: Arc<Descriptors>,
}

impl PipePool {
    pub(crate) fn new(descriptors: Arc<Descriptors>) -> Self {
        Self { pooled: Vec::new(), descriptors }
    }

    /// An empty pipe, if one can be had.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        self.pooled.pop().or_else(|| self.make().ok().flatten())
    }

    /// Gives an empty pipe back. One that still holds bytes must be dropped instead: the next
    /// connection would receive them.
    pub(crate) fn put(&mut self, pipe: Pipe) {
        if self.pooled.len() < MAX_POOLED {
            self.pooled.push(pipe);
        }
    }

    fn make(&self) -> io::Result<Option<Pipe>> {
        let Some(permit) = self.descriptors.take(2) else { return Ok(None) };
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Over the user's quota the pipe keeps the size it has: it works all the same.
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
    fn pipes_are_reused_and_bounded_by_the_descriptors() {
        let mut pool = PipePool::new(Descriptors::new(4));
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none(), "two pipes are four descriptors");
        pool.put(a);
        assert!(pool.take().is_some());
        drop(b);
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_bound() {
        let mut pool = PipePool::new(Descriptors::new(1_000));
        let pipes: Vec<Pipe> = std::iter::from_fn(|| pool.take()).take(MAX_POOLED + 5).collect();
        pipes.into_iter().for_each(|pipe| pool.put(pipe));
        assert_eq!(pool.pooled.len(), MAX_POOLED);
    }
}
