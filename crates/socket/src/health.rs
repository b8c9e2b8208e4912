//! The endpoints' health in the words that the programs read: see `health.h`, which does the same for what the
//! programs see. Both write at any time on all CPUs; the last write counts.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};
use sluice_socket_maps::endpoint_flags::UNPROVEN;
use sluice_socket_maps::{Endpoint, Failures};
use sluice_sys::bpf::Mapping;
use sluice_table::{SocketHealth, SocketNumber};

use crate::attached::{halves, word};

/// The size of an endpoint in words, and the index of the word with port and incarnation.
const WORDS: usize = size_of::<Endpoint>() / 8;
const PORT_AND_INCARNATION: usize = offset_of!(Endpoint, port) / 8;
const FAILURES: usize = offset_of!(Endpoint, failures) / 8;

/// The current time on the programs' clock.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is ever negative.
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec))
}

/// The array of endpoints, which stays mapped as long as this is held.
#[derive(Debug)]
pub(crate) struct Health(Arc<Mapping>);

/// The health of one endpoint.
#[derive(Debug)]
struct Words<'a> {
    /// Port and flags in one half, the incarnation in the other.
    who: &'a AtomicU64,
    failures: &'a AtomicU64,
}

impl Health {
    pub(crate) fn new(endpoints: Arc<Mapping>) -> Self {
        Self(endpoints)
    }

    /// `None` if there is no such endpoint.
    fn of(&self, number: SocketNumber) -> Option<Words<'_>> {
        let first = (number.id as usize).checked_mul(WORDS)?;
        let words = self.0.words().get(first..first.checked_add(WORDS)?)?;
        Some(Words { who: words.get(PORT_AND_INCARNATION)?, failures: words.get(FAILURES)? })
    }
}

impl Words<'_> {
    /// The half with port and flags, if the number still means the same endpoint.
    fn port_and_flags(&self, number: SocketNumber) -> Option<u32> {
        let (port_and_flags, incarnation) = halves(self.who.load(Ordering::Relaxed));
        (incarnation == number.incarnation).then_some(port_and_flags)
    }

    /// Marks the endpoint as proven. Returns whether the number still means the same endpoint.
    fn prove(&self, number: SocketNumber) -> bool {
        while let Some(port_and_flags) = self.port_and_flags(number) {
            let clear = port_and_flags & !unproven();
            let [old, new] = [port_and_flags, clear].map(|half| word(half, number.incarnation));
            // The exchange succeeds only while the number means this endpoint: it may be given to another at
            // any time.
            if old == new || self.who.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return true;
            }
        }
        false
    }
}

/// The flag of an endpoint that is in doubt without having failed, in the half that flags share with the port.
fn unproven() -> u32 {
    let [a, b] = UNPROVEN.to_ne_bytes();
    u32::from_ne_bytes([0, 0, a, b])
}

impl SocketHealth for Health {
    fn is_in_doubt(&self, number: SocketNumber) -> bool {
        self.of(number).is_some_and(|words| {
            words
                .port_and_flags(number)
                .is_some_and(|half| half & unproven() != 0 || words.failures.load(Ordering::Relaxed) != 0)
        })
    }

    fn has_served(&self, number: SocketNumber) {
        let Some(words) = self.of(number) else { return };
        // If the number is given to another endpoint in between, that one may lose a failure, or be avoided for
        // a while.
        if words.prove(number) && words.failures.load(Ordering::Relaxed) != 0 {
            words.failures.store(0, Ordering::Relaxed);
        }
    }

    fn has_failed(&self, number: SocketNumber) {
        let Some(words) = self.of(number) else { return };
        if words.port_and_flags(number).is_some() {
            let now = now_ns();
            let and_one = |word| Some(Failures::unpack(word).and_one(now).pack());
            // The closure never refuses.
            let _ = words.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, and_one);
        }
    }
}
