//! A connection's hold on its endpoint: counted from the moment it is established until it ends.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::Upstream;

/// An established connection (TCP) or open flow (UDP) to an endpoint.
///
/// Counts as one of [`UpstreamStats::active`](crate::UpstreamStats::active) until it is dropped, so
/// whoever carries the connection keeps it for exactly as long as the connection lives.
#[derive(Debug)]
#[must_use = "dropping it says that the connection has ended"]
pub struct Lease {
    upstream: Arc<Upstream>,
    passive_health: bool,
}

impl Lease {
    pub(crate) fn new(upstream: &Arc<Upstream>, passive_health: bool) -> Self {
        upstream.stats().connections.fetch_add(1, Ordering::Relaxed);
        upstream.stats().active.fetch_add(1, Ordering::Relaxed);
        Self { upstream: Arc::clone(upstream), passive_health }
    }

    /// The endpoint.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Notes that the endpoint of a UDP flow answered.
    pub fn answered(&self) {
        self.upstream.note_success();
    }

    /// Notes that the endpoint of a UDP flow refused a datagram: a failed connect, in effect.
    pub fn refused(&self, now: Instant) {
        self.upstream.note_failure(self.passive_health, now);
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_as_active_until_it_is_dropped() {
        let upstream = Arc::new(Upstream::new("10.0.0.1:80".parse().unwrap()));
        let numbers = || {
            let stats = upstream.stats();
            (stats.connections.load(Ordering::Relaxed), stats.active.load(Ordering::Relaxed))
        };
        let (first, second) = (Lease::new(&upstream, true), Lease::new(&upstream, true));
        assert_eq!(numbers(), (2, 2));
        assert_eq!(first.address(), upstream.address());
        drop(first);
        assert_eq!(numbers(), (2, 1));
        drop(second);
        assert_eq!(numbers(), (2, 0));
    }
}
