//! An endpoint as the data plane sees it: an address, whether it still serves, and its numbers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One endpoint of one service port. The same value lives for as long as the address stays in the
/// service port, whatever happens to its conditions, so its numbers do not restart.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    serving: AtomicBool,
    stats: UpstreamStats,
}

/// What one endpoint has carried. Workers add, anyone reads; every value is exact once the
/// connections that it speaks of have ended.
#[derive(Debug, Default)]
pub struct UpstreamStats {
    /// TCP connections established and UDP flows opened.
    pub connections: AtomicU64,
    /// Of those, the ones that have not ended.
    pub active: AtomicU64,
    /// Attempts to connect that failed: refused, unreachable, timed out.
    pub connect_failures: AtomicU64,
    /// Bytes of payload from clients to the endpoint.
    pub bytes_to_endpoint: AtomicU64,
    /// Bytes of payload from the endpoint to clients.
    pub bytes_from_endpoint: AtomicU64,
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, serving: AtomicBool::new(true), stats: UpstreamStats::default() }
    }

    /// Address and port to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the endpoint is ready, or terminating and still serving. UDP flows end when it is
    /// not; TCP connections are left alone.
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    pub(crate) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// The endpoint's numbers.
    pub fn stats(&self) -> &UpstreamStats {
        &self.stats
    }
}
