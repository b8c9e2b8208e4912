//! The endpoints for one connection, in the order in which they are to be tried.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::service_port::{Backends, ServicePort, SetName, Verdict};
use crate::{EndpointSet, Lease, Upstream};

/// Where a client is. It decides about the short circuit of `externalTrafficPolicy: Local`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pod of this node.
    LocalPod,
    /// A process in the node's own network namespace.
    Node,
    /// Anywhere else.
    Outside,
}

impl Origin {
    /// On this node.
    pub fn is_inside(self) -> bool {
        self != Self::Outside
    }
}

/// Who asks for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    /// The address it connects from.
    pub ip: IpAddr,
    /// Where it is.
    pub origin: Origin,
}

/// A connection that is not to be relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// Refuse or drop, and why. Never [`Verdict::Relay`].
    pub verdict: Verdict,
}

/// Names the endpoints to try for one connection: first the one whose turn it is, and after each
/// failure the next turn, until every endpoint of the set was tried.
///
/// A retry takes a turn of its own from the shared rotation, so the load of a dead endpoint spreads
/// over all others instead of doubling that of its neighbour.
#[derive(Debug)]
pub struct Selection {
    port: Arc<ServicePort>,
    backends: Arc<Backends>,
    set: SetName,
    /// Endpoints that failed; allocates only once one did.
    failed: Vec<Arc<Upstream>>,
}

impl Selection {
    pub(crate) fn new(port: Arc<ServicePort>, backends: Arc<Backends>, set: SetName) -> Self {
        Self { port, backends, set, failed: Vec::new() }
    }

    /// The service port that the connection is for.
    pub fn service_port(&self) -> &Arc<ServicePort> {
        &self.port
    }

    /// The next endpoint to try, one that has not [`fail`](Self::fail)ed; none if all have.
    pub fn next(&mut self, _now: Instant) -> Option<Arc<Upstream>> {
        let is_untried = |upstream: &Arc<Upstream>| !self.failed.iter().any(|f| Arc::ptr_eq(f, upstream));
        let set: &EndpointSet = self.backends.set(self.set);
        // As many turns as there are endpoints: alone, that meets each of them; other threads may
        // take turns in between, so what it missed is looked for without one.
        set.upstreams()
            .iter()
            .find_map(|_| self.port.turn(&self.backends, self.set).filter(|u| is_untried(u)))
            .or_else(|| set.upstreams().iter().find(|u| is_untried(u)))
            .cloned()
    }

    /// Notes that connecting to an endpoint failed: it is not named again, and counted.
    pub fn fail(&mut self, upstream: &Arc<Upstream>, _now: Instant) {
        upstream.stats().connect_failures.fetch_add(1, Ordering::Relaxed);
        self.failed.push(Arc::clone(upstream));
    }

    /// Notes that the connection is established (TCP) or the flow opened (UDP). The lease counts it
    /// as active until it is dropped.
    pub fn connected(&self, upstream: &Arc<Upstream>, _now: Instant) -> Lease {
        Lease::new(upstream)
    }
}
