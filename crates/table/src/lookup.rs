//! The lock-free side of the table: looks up the route of a frontend.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use ipnet::IpNet;
use sluice_model::{Family, Frontend, FrontendKind};

use crate::{
    Answer, Client, FrontendKey, HealthCheck, Origin, Rejection, Selection, ServicePort, Upstream, Verdict,
    Why, answer,
};

/// All frontends and their routes.
pub(crate) type RouteMap = HashMap<FrontendKey, Arc<Route>, foldhash::fast::RandomState>;

/// The shared table. Cloning it shares it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    routes: Arc<ArcSwap<RouteMap>>,
    health_checks: Arc<ArcSwap<Vec<Arc<HealthCheck>>>>,
    local_detectors: Arc<LocalDetectors>,
}

/// For which families pods of this node can be told from other clients.
#[derive(Debug, Default)]
struct LocalDetectors {
    v4: AtomicBool,
    v6: AtomicBool,
}

impl LocalDetectors {
    fn of(&self, family: Family) -> &AtomicBool {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Table {
    /// A reader for one thread.
    pub fn reader(&self) -> Reader {
        let local_detectors = Arc::clone(&self.local_detectors);
        Reader { cache: Cache::new(Arc::clone(&self.routes)), local_detectors }
    }

    /// All routes, in no order. For status and statistics.
    pub fn routes(&self) -> Vec<Arc<Route>> {
        self.routes.load().values().cloned().collect()
    }

    /// The health check ports that are to be served, sorted by Service. The list is a snapshot: call this
    /// again to see Services that came or went. The counts in it are live.
    pub fn health_checks(&self) -> Arc<Vec<Arc<HealthCheck>>> {
        self.health_checks.load_full()
    }

    pub(crate) fn set_health_checks(&self, checks: Vec<Arc<HealthCheck>>) {
        self.health_checks.store(Arc::new(checks));
    }

    pub(crate) fn set_detects_local_pods(&self, family: Family, detects: bool) {
        self.local_detectors.of(family).store(detects, Ordering::Relaxed);
    }

    pub(crate) fn swap(&self, routes: RouteMap) {
        self.routes.store(Arc::new(routes));
    }

    pub(crate) fn load(&self) -> Arc<RouteMap> {
        self.routes.load_full()
    }
}

/// A view of the [`Table`] for one thread. It holds the latest map and checks for a newer one with one atomic
/// load per look-up.
#[derive(Debug)]
pub struct Reader {
    cache: Cache<Arc<ArcSwap<RouteMap>>, Arc<RouteMap>>,
    local_detectors: Arc<LocalDetectors>,
}

impl Reader {
    /// The current route of this frontend.
    #[inline]
    pub fn lookup(&mut self, key: FrontendKey) -> Option<&Arc<Route>> {
        self.cache.load().get(&key)
    }

    /// Whether pods of this node can be told from other clients. If not, every pod is [`Origin::Outside`].
    pub fn detects_local_pods(&self, family: Family) -> bool {
        self.local_detectors.of(family).load(Ordering::Relaxed)
    }
}

/// A frontend of a Service that is being served.
#[derive(Debug)]
pub struct Route {
    port: Arc<ServicePort>,
    frontend: Frontend,
    kind: FrontendKind,
    live: AtomicBool,
}

impl Route {
    pub(crate) fn new(frontend: Frontend, kind: FrontendKind, port: Arc<ServicePort>) -> Self {
        Self { frontend, kind, port, live: AtomicBool::new(true) }
    }

    /// The frontend.
    pub fn frontend(&self) -> Frontend {
        self.frontend
    }

    /// The field of the Service that names the frontend.
    pub fn kind(&self) -> FrontendKind {
        self.kind
    }

    /// The service port that it leads to.
    pub fn service_port(&self) -> &Arc<ServicePort> {
        &self.port
    }

    /// Whether the table still holds this route. If not, UDP flows over it have ended.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn retire(&self) {
        self.live.store(false, Ordering::Relaxed);
    }

    /// Whether a UDP flow over this route to this endpoint continues. It ends when the endpoint stops
    /// serving, or the Service or the frontend goes away. A new endpoint is then chosen for its next
    /// datagram.
    pub fn keeps_flow(&self, upstream: &Upstream) -> bool {
        self.is_live() && upstream.is_serving()
    }

    /// Decides about a new connection or flow of a client, and advances the round-robin position if it is to
    /// be relayed. [`Route::answer`] only looks. `now` is the caller's clock.
    ///
    /// # Errors
    /// If the connection is to be refused or dropped.
    #[inline]
    pub fn select(&self, client: Client, now: Instant) -> Result<Selection, Rejection> {
        Selection::new(&self.port, self.kind, client, None, now)
    }

    /// Decides about an existing flow that another agent or worker opened to this endpoint. As long as the
    /// endpoint [keeps](Route::keeps_flow) its flows, the flow goes there again and the round-robin position
    /// does not change. Otherwise the flow is treated as a new one.
    ///
    /// # Errors
    /// If the flow is to be refused or dropped.
    pub fn select_again(
        &self,
        client: Client,
        endpoint: SocketAddr,
        now: Instant,
    ) -> Result<Selection, Rejection> {
        let kept = self.port.endpoint_at(endpoint).filter(|upstream| self.keeps_flow(upstream));
        Selection::new(&self.port, self.kind, client, kept, now)
    }

    /// What happens to connections of clients with this origin, and why, regardless of
    /// `loadBalancerSourceRanges`.
    pub fn outlook(&self, origin: Origin) -> (Verdict, Why) {
        answer::outlook(self.kind, &self.port, origin)
    }

    /// The only sources that may connect here; `None` for any (`loadBalancerSourceRanges`).
    pub fn allowed_sources(&self) -> Option<Arc<[IpNet]>> {
        self.port.load().allowed_sources(self.kind).cloned()
    }

    /// What happens to connections of this client, and why.
    pub fn answer(&self, client: Client) -> Answer {
        Answer::new(self.frontend, self.kind, &self.port, client)
    }
}
