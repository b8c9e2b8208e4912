//! Wakes a thread that waits for descriptors, because something that it depends on has changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that is readable if something has changed since it was last taken.
#[derive(Debug)]
pub(super) struct News(OwnedFd);

impl News {
    /// Starts without news.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Reports a change.
    pub(super) fn tell(&self) {
        // The counter cannot be full: it holds 2^64 - 2 writes.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Clears the news: only later changes count.
    pub(super) fn take(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
