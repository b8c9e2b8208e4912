//! Which datagrams of a socket can be joined to trains.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// The largest size of datagrams that a socket may send as a [train](super#trains): unlimited, until the
/// kernel has refused one. It does so if a single datagram would have to be fragmented, or the route
/// encrypts, or, before Linux 6.11, if the device does not compute checksums. The attempt is wasted, so there
/// is at most one for each size. For a socket that sends to many peers, the worst path counts until it is
/// [forgotten](Self::forget).
#[derive(Debug)]
pub struct Joining(AtomicU16);

impl Default for Joining {
    fn default() -> Self {
        Self(AtomicU16::new(u16::MAX))
    }
}

impl Joining {
    /// Forgets earlier refusals. To be called now and then for a socket that sends to many peers, because
    /// paths change and peers go. Costs one more attempt for each size that is still refused.
    pub fn forget(&self) {
        self.0.store(u16::MAX, Ordering::Relaxed);
    }

    /// The largest size of datagrams that are joined, in bytes.
    pub(super) fn up_to(&self) -> usize {
        self.0.load(Ordering::Relaxed).into()
    }

    /// Records that a train of datagrams of `size` bytes was refused.
    pub(super) fn failed(&self, size: usize, error: &io::Error) {
        // EIO: the size is not the reason.
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
