//! The lock-free side: from a frontend to its route.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use sluice_model::{Frontend, FrontendKind};

use crate::{Client, FrontendKey, Rejection, Selection, ServicePort};

/// Every frontend and where it leads.
pub(crate) type RouteMap = HashMap<FrontendKey, Arc<Route>, foldhash::fast::RandomState>;

/// The shared table. Cloning it shares it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    routes: Arc<ArcSwap<RouteMap>>,
}

impl Table {
    /// A reader for one thread.
    pub fn reader(&self) -> Reader {
        Reader { cache: Cache::new(Arc::clone(&self.routes)) }
    }

    /// Every route there is, in no order. For status and statistics.
    pub fn routes(&self) -> Vec<Arc<Route>> {
        self.routes.load().values().cloned().collect()
    }

    pub(crate) fn swap(&self, routes: RouteMap) {
        self.routes.store(Arc::new(routes));
    }

    pub(crate) fn load(&self) -> Arc<RouteMap> {
        self.routes.load_full()
    }
}

/// A view of the [`Table`] for one thread: holds the latest map and looks for a newer one with one
/// atomic load a look-up.
#[derive(Debug)]
pub struct Reader {
    cache: Cache<Arc<ArcSwap<RouteMap>>, Arc<RouteMap>>,
}

impl Reader {
    /// Where this frontend leads now.
    pub fn lookup(&mut self, key: FrontendKey) -> Option<&Arc<Route>> {
        self.cache.load().get(&key)
    }
}

/// A frontend of a Service that is being served.
#[derive(Debug)]
pub struct Route {
    frontend: Frontend,
    kind: FrontendKind,
    port: Arc<ServicePort>,
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

    /// Which field of the Service it comes from.
    pub fn kind(&self) -> FrontendKind {
        self.kind
    }

    /// The service port it leads to.
    pub fn service_port(&self) -> &Arc<ServicePort> {
        &self.port
    }

    /// Whether the table still holds this route. A UDP flow over one that it does not hold any
    /// more has ended.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn retire(&self) {
        self.live.store(false, Ordering::Relaxed);
    }

    /// Decides about a new connection or flow of a client. `now` is the caller's clock.
    ///
    /// # Errors
    /// It is to be refused or dropped.
    pub fn select(&self, client: Client, _now: Instant) -> Result<Selection, Rejection> {
        let backends = self.port.backends();
        match backends.choose(self.kind, client.origin) {
            Ok(set) => Ok(Selection::new(Arc::clone(&self.port), backends, set)),
            Err(verdict) => Err(Rejection { verdict }),
        }
    }
}
