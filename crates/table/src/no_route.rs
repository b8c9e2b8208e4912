//! Endpoints that this node had no route to a moment ago. connect(2) reports that at once, and the endpoint
//! has no part in it, so it does not count as a failure of the endpoint. For [`KEPT`], other endpoints are
//! tried first, because each attempt costs a socket.
//!
//! Routes may depend on the source address (ip-rule(8)), so those from the node's address and those from
//! clients' addresses are recorded separately. A missing route for a link-local client says nothing about
//! other clients: its route depends on its link.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::passive_health::Seen;

/// How long a missing route is remembered. Short, because only another attempt shows that a route is back.
pub(crate) const KEPT: Duration = Duration::from_secs(1);

/// The unit of time: 2^27 ns (134 ms). 32 bits of it last for 18 years.
const UNIT_BITS: u32 = 27;

/// The origin of all times.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Until when one endpoint is skipped, in units after the epoch, by kind of source address; 0 if a route is
/// not known to be missing.
#[derive(Debug, Default)]
pub(crate) struct NoRoute {
    to_clients: AtomicU32,
    to_node: AtomicU32,
}

impl NoRoute {
    /// Records that there is no route. Returns whether that was known.
    pub(crate) fn found(&self, seen: Seen, now: Instant) -> bool {
        if let Seen::Client(IpAddr::V6(ip)) = seen
            && ip.is_unicast_link_local()
        {
            return false;
        }
        let until = units(now + KEPT).saturating_add(1);
        self.until(seen).swap(until, Ordering::Relaxed) > units(now)
    }

    /// Records that there is a route.
    pub(crate) fn is_over(&self, seen: Seen) {
        let until = self.until(seen);
        if until.load(Ordering::Relaxed) != 0 {
            until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a route was missing for any source address, and may still be. Needs no clock.
    #[inline]
    pub(crate) fn may_be(&self) -> bool {
        [&self.to_clients, &self.to_node].iter().any(|until| until.load(Ordering::Relaxed) != 0)
    }

    /// Whether there was no route a moment ago.
    pub(crate) fn is_known(&self, seen: Seen, now: Instant) -> bool {
        let until = self.until(seen);
        let there = until.load(Ordering::Relaxed);
        if there == 0 || units(now) < there {
            return there != 0;
        }
        // Expired, so picks need not check any more. The exchange fails if another thread has just found that
        // there still is no route.
        let _ = until.compare_exchange(there, 0, Ordering::Relaxed, Ordering::Relaxed);
        false
    }

    fn until(&self, seen: Seen) -> &AtomicU32 {
        match seen {
            Seen::Client(_) => &self.to_clients,
            Seen::Node => &self.to_node,
        }
    }
}

fn units(time: Instant) -> u32 {
    let after = time.saturating_duration_since(*EPOCH).as_nanos() >> UNIT_BITS;
    u32::try_from(after).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Seen = Seen::Client(IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 1)));

    #[test]
    fn it_lasts_for_a_moment_and_picks_need_not_look_after_that() {
        let (way, now) = (NoRoute::default(), Instant::now());
        assert!(!way.may_be() && !way.is_known(Seen::Node, now));
        assert!(!way.found(Seen::Node, now));
        assert!(way.found(Seen::Node, now), "it was known");
        assert!(way.may_be() && way.is_known(Seen::Node, now + KEPT));
        let later = now + 2 * KEPT;
        assert!(!way.is_known(Seen::Node, later) && !way.may_be());
        assert!(!way.found(Seen::Node, later), "that was before");
    }

    #[test]
    fn a_way_ends_it_and_that_of_clients_is_not_the_nodes() {
        let (way, now) = (NoRoute::default(), Instant::now());
        way.found(CLIENT, now);
        assert!(way.is_known(CLIENT, now) && !way.is_known(Seen::Node, now));
        way.is_over(Seen::Node);
        assert!(way.is_known(CLIENT, now));
        way.is_over(CLIENT);
        assert!(!way.is_known(CLIENT, now) && !way.may_be());
    }

    #[test]
    fn a_client_of_a_link_says_nothing_about_others() {
        let (way, now) = (NoRoute::default(), Instant::now());
        assert!(!way.found(Seen::Client("fe80::1".parse().unwrap()), now));
        assert!(!way.may_be());
    }
}
