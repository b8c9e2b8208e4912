//! The number of closed sockets on this machine whose last bytes have not been acknowledged (orphans). They
//! belong to no session and count in no share, but use the TCP memory that all sockets have in common.

use std::fs;
use std::time::{Duration, Instant};

use tracing::warn;

use super::delivering::LEFT_TO_KERNEL;
use crate::throttle::OnceAMinute;

/// About as many as a machine has that makes ten thousand connections per second, with each an orphan for a
/// third of a second. With 64 KiB each they use a quarter of a gigabyte.
const MANY: u64 = 4_096;

/// The minimum interval between two reads of the count: the kernel has to add up the counts of all
/// processors.
const LOOK: Duration = Duration::from_secs(1);

/// The last count of orphans.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    looked: Option<Instant>,
    are_many: bool,
    says: OnceAMinute,
}

impl Orphans {
    /// How many bytes a session may leave to the kernel when it ends.
    pub(super) fn left_to_kernel(&mut self, now: Instant) -> usize {
        if self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK) {
            self.looked = Some(now);
            // If the count cannot be read, it is taken to be zero.
            let orphans = fs::read_to_string("/proc/net/sockstat").ok().and_then(|text| orphans(&text));
            self.see(orphans.unwrap_or(0), now);
        }
        if self.are_many { 0 } else { LEFT_TO_KERNEL }
    }

    fn see(&mut self, orphans: u64, now: Instant) {
        self.are_many = orphans >= MANY;
        if self.are_many && self.says.admit(now) {
            warn!(
                orphans,
                "closed TCP connections wait for readers that do not read, and take memory of the whole node (net.ipv4.tcp_mem): \
                 sessions count in their client's share until all has arrived (said once a minute)"
            );
        }
    }

    /// A fixed count that is never read again.
    #[cfg(test)]
    pub(crate) fn seen(orphans: u64) -> Self {
        let mut seen = Self::default();
        seen.see(orphans, Instant::now());
        seen.looked = Some(Instant::now() + Duration::from_secs(3_600));
        seen
    }
}

/// The orphans of all network namespaces (`TCP: inuse 4 orphan 0 tw 2 alloc 5 mem 1`).
fn orphans(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_ascii_whitespace();
    words.find(|word| *word == "orphan")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_many_there_are() {
        let text = "sockets: used 212\nTCP: inuse 4 orphan 17 tw 2 alloc 5 mem 1\nUDP: inuse 3 mem 2\n";
        assert_eq!(orphans(text), Some(17));
        assert_eq!([orphans(""), orphans("TCP: inuse 4"), orphans("TCP: orphan x")], [None; 3]);
        let here = fs::read_to_string("/proc/net/sockstat").unwrap();
        assert!(orphans(&here).is_some(), "{here}");
    }

    #[test]
    fn where_there_are_many_nothing_is_left_to_the_kernel() {
        let now = Instant::now();
        let left = [MANY - 1, MANY].map(|orphans| Orphans::seen(orphans).left_to_kernel(now));
        assert_eq!(left, [LEFT_TO_KERNEL, 0]);
    }
}
