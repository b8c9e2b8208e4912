//! Waking a thread that waits for descriptors, because something that it goes by has changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// Can be read while something has changed since it was last taken.
#[derive(Debug)]
pub(super) struct News(OwnedFd);

impl News {
    /// Nothing has changed so far.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Something has changed.
    pub(super) fn tell(&self) {
        // It cannot be full: nobody has written as often.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// What changes from now on is news.
    pub(super) fn take(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
