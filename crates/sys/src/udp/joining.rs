//! What is known of a socket about joining datagrams to trains.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// How large the datagrams of one socket may be that go as a [train](super#trains): as large as any, until the kernel has
/// refused one. It does where a datagram alone would have to be fragmented, or the route encrypts, or, before
/// Linux 6.11, where the device computes no checksums; the attempt is lost, so there is one for each size at most. Of a
/// socket that sends to many peers the worst way counts.
#[derive(Debug)]
pub struct Joining(AtomicU16);

impl Default for Joining {
    fn default() -> Self {
        Self(AtomicU16::new(u16::MAX))
    }
}

impl Joining {
    /// Nothing larger than this is joined, in bytes.
    pub(super) fn up_to(&self) -> usize {
        self.0.load(Ordering::Relaxed).into()
    }

    /// A train of datagrams of `size` bytes was refused.
    pub(super) fn failed(&self, size: usize, error: &io::Error) {
        // EIO: it is not their size.
        let up_to = if error.raw_os_error() == Some(libc::EIO) { 0 } else { size.saturating_sub(1) };
        self.0.fetch_min(u16::try_from(up_to).unwrap_or(u16::MAX), Ordering::Relaxed);
    }
}
