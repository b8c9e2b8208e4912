//! A connection's hold on its endpoint. It is counted from the moment that the connection is established
//! until it ends.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::connection_limit::Slot;
use crate::passive_health::{Heard, Seen};
use crate::{SourceAddress, Upstream};

/// An established connection (TCP) or open flow (UDP) to an endpoint.
///
/// Counts as one of [`UpstreamStats::active`](crate::UpstreamStats::active) until it is dropped, so its owner
/// must keep it for exactly as long as the connection lives.
#[derive(Debug)]
#[must_use = "dropping it says that the connection has ended"]
pub struct Lease {
    upstream: Arc<Upstream>,
    client: IpAddr,
    /// The address that the endpoint sees.
    source: SourceAddress,
    passive_health: bool,
    /// Held for as long as the connection lives.
    slot: Option<Slot>,
}

impl Lease {
    pub(crate) fn new(
        upstream: &Arc<Upstream>,
        client: IpAddr,
        source: SourceAddress,
        passive_health: bool,
    ) -> Self {
        upstream.stats().connections.fetch_add(1, Ordering::Relaxed);
        upstream.stats().active.fetch_add(1, Ordering::Relaxed);
        Self { upstream: Arc::clone(upstream), client, source, passive_health, slot: None }
    }

    /// The same, with its part of the Service's limit.
    pub(crate) fn with(mut self, slot: Option<Slot>) -> Self {
        self.slot = slot;
        self
    }

    /// A lease of some client, for tests.
    #[cfg(test)]
    pub(crate) fn of(upstream: &Arc<Upstream>) -> Self {
        Self::new(upstream, [10, 1, 0, 1].into(), SourceAddress::Client, true)
    }

    /// The endpoint.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Records that the endpoint of a UDP flow answered.
    pub fn answered(&self) {
        self.upstream.note_success(Seen::new(self.source, self.client));
    }

    /// Records that the endpoint of a UDP flow refused a datagram, which counts as a failed connect.
    pub fn refused(&self, now: Instant) {
        let seen = Seen::new(self.source, self.client);
        self.upstream.note_failure(self.passive_health, seen, Heard::Refusal, now);
    }
}

impl Deref for Lease {
    type Target = Upstream;

    fn deref(&self) -> &Upstream {
        &self.upstream
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.stats().active.fetch_sub(1, Ordering::Relaxed);
        drop(self.slot.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::test_port;

    #[test]
    fn a_lease_counts_as_active_until_it_is_dropped() {
        let upstream = Arc::new(Upstream::new("10.0.0.1:80".parse().unwrap(), test_port()));
        let numbers = || {
            let stats = upstream.stats();
            (stats.connections.load(Ordering::Relaxed), stats.active.load(Ordering::Relaxed))
        };
        let (first, second) = (Lease::of(&upstream), Lease::of(&upstream));
        assert_eq!(numbers(), (2, 2));
        assert_eq!(first.address(), upstream.address());
        drop(first);
        assert_eq!(numbers(), (2, 1));
        drop(second);
        assert_eq!(numbers(), (2, 0));
    }
}
