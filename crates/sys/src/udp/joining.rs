//! What is known of a socket about joining datagrams to trains.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// How large the datagrams of one socket may be that go as a [train](super#trains): as large as any, until the kernel has
/// refused one. It does where a datagram alone would have to be fragmented, or the route encrypts, or, before
/// Linux 6.11, where the device computes no checksums; the attempt is lost, so there is one for each size at most. Of a
/// socket that sends to many peers the worst way counts, until that is [forgotten](Self::forget).
#[derive(Debug)]
pub struct Joining(AtomicU16);

impl Default for Joining {
    fn default() -> Self {
        Self(AtomicU16::new(u16::MAX))
    }
}

impl Joining {
    /// Nothing is known any more: to be called now and then for a socket that sends to many peers, since ways change and
    /// peers go. It costs one more attempt for each size that is refused still.
    pub fn forget(&self) {
        self.0.store(u16::MAX, Ordering::Relaxed);
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_way_counts_until_it_is_forgotten() {
        let joining = Joining::default();
        for (size, error, up_to) in
            [(600, libc::EMSGSIZE, 599), (1400, libc::EMSGSIZE, 599), (100, libc::EIO, 0)]
        {
            joining.failed(size, &io::Error::from_raw_os_error(error));
            assert_eq!(joining.up_to(), up_to);
        }
        joining.forget();
        assert_eq!(joining.up_to(), usize::from(u16::MAX));
    }
}
