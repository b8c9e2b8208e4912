//! The proxy as one piece: objects in, traffic carried. Table, capture and data plane, and the order in
//! which a change goes through them.
//!
//! Belongs to one thread, the controller; nothing here waits for the network.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_capture::Capture;
use sluice_capture::bind::{Bind, Listeners};
use sluice_dataplane::{Config, Dataplane, Stats};
use sluice_model::{Change, Frontend, ServicePortName};
use sluice_table::{Table, Upstream, Writer, WriterConfig};
use tracing::{debug, info, warn};

/// How the proxy is to run.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// What the rules need to know.
    pub table: WriterConfig,
    /// The workers.
    pub dataplane: Config,
}

/// A running proxy. Dropping it cuts every connection off; see [`Proxy::shut_down`].
pub struct Proxy {
    writer: Writer,
    capture: Box<dyn Capture + Send + Sync>,
    dataplane: Arc<Dataplane>,
}

/// A view of a running proxy.
#[derive(Debug, Clone)]
pub struct Observer {
    table: Table,
    dataplane: Arc<Dataplane>,
}

impl Observer {
    /// What the workers have done so far.
    pub fn stats(&self) -> Stats {
        self.dataplane.stats()
    }

    /// How many frontends there are.
    pub fn frontends(&self) -> usize {
        self.table.routes().len()
    }

    /// Every endpoint that can serve, with its service port, in order and each once.
    pub fn endpoints(&self) -> Vec<(ServicePortName, Arc<Upstream>)> {
        let endpoints: BTreeMap<_, _> = self
            .table
            .routes()
            .iter()
            .flat_map(|route| {
                let backends = route.service_port().backends();
                let sets = [backends.cluster().upstreams(), backends.local().upstreams()].concat();
                sets.into_iter().map(|u| ((route.service_port().name().clone(), u.address()), u))
            })
            .collect();
        endpoints.into_iter().map(|((name, _), upstream)| (name, upstream)).collect()
    }
}

/// The data plane's sockets, as bind mode wants them.
struct Workers(Arc<Dataplane>);

impl Listeners for Workers {
    fn open(&self, frontend: Frontend) -> io::Result<()> {
        self.0.open(frontend)
    }

    fn close(&self, frontend: Frontend) {
        self.0.close(frontend);
    }
}

impl Proxy {
    /// Starts the workers, with nothing to serve yet. Frontends are bound on their own addresses.
    ///
    /// # Errors
    /// The system refuses threads or epoll instances.
    pub fn start(config: ProxyConfig) -> io::Result<Self> {
        let writer = Writer::new(config.table);
        let dataplane = Arc::new(Dataplane::start(config.dataplane, writer.table())?);
        let capture = Box::new(Bind::new(Workers(Arc::clone(&dataplane))));
        Ok(Self { writer, capture, dataplane })
    }

    /// Makes changes take effect, all of them in one step. When it returns new connections are decided
    /// by the new state.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let start = Instant::now();
        self.writer.apply_all(changes);
        let mut plan = self.writer.plan();
        if plan.is_empty() {
            return;
        }
        plan.notices.iter().for_each(|notice| warn!("{notice}"));
        self.capture.withdraw(&plan.withdraw);
        self.writer.publish(&mut plan);
        self.capture.offer(&plan.offer, Instant::now());
        for state in &plan.withdraw {
            debug!(frontend = %state.frontend, service = %state.port, "withdrawn");
        }
        for state in &plan.offer {
            debug!(frontend = %state.frontend, service = %state.port, verdict = ?state.outside, "offered");
        }
        if !(plan.withdraw.is_empty() && plan.offer.is_empty()) {
            let (withdrawn, offered) = (plan.withdraw.len(), plan.offer.len());
            info!(withdrawn, offered, took = ?start.elapsed(), "frontends changed");
        }
    }

    /// Does what is due from time to time: call it about once a second.
    pub fn tick(&mut self) {
        let now = Instant::now();
        self.capture.retry(now);
        self.writer.table().expire_affinity(now);
    }

    /// What others may look at while the proxy runs.
    pub fn observer(&self) -> Observer {
        Observer { table: self.writer.table().clone(), dataplane: Arc::clone(&self.dataplane) }
    }

    /// What the workers have done so far.
    pub fn stats(&self) -> Stats {
        self.dataplane.stats()
    }

    /// Whether every worker runs.
    pub fn is_alive(&self) -> bool {
        self.dataplane.is_alive()
    }

    /// Accepts nothing new, lets connections finish for up to `grace`, and returns how many were cut off.
    pub fn shut_down(self, grace: Duration) -> u64 {
        self.dataplane.drain(grace)
    }
}
