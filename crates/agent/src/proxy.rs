//! The proxy as one piece: objects in, traffic carried. Table, capture and data plane, and the order in
//! which a change goes through them.
//!
//! Belongs to one thread, the controller; nothing here waits for the network.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_capture::Capture;
use sluice_capture::bind::{Bind, Listeners};
use sluice_dataplane::{Config, Dataplane, Stats};
use sluice_model::{Change, Frontend};
use sluice_table::{Table, Writer, WriterConfig};
use tracing::{debug, info, warn};

/// How the proxy is to run.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// What the rules need to know.
    pub table: WriterConfig,
    /// Worker threads of the data plane.
    pub workers: usize,
    /// File descriptors for connections and flows.
    pub descriptors: usize,
}

/// A running proxy. Dropping it cuts every connection off; see [`Proxy::shut_down`].
pub struct Proxy {
    writer: Writer,
    capture: Box<dyn Capture + Send + Sync>,
    dataplane: Arc<Dataplane>,
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
        let dataplane = Config { workers: config.workers, descriptors: config.descriptors };
        let dataplane = Arc::new(Dataplane::start(dataplane, writer.table())?);
        let capture = Box::new(Bind::new(Workers(Arc::clone(&dataplane))));
        Ok(Self { writer, capture, dataplane })
    }

    /// Makes changes take effect, all of them in one step. When it returns new connections are decided
    /// by the new state.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let start = Instant::now();
        changes.into_iter().for_each(|change| self.writer.apply(change));
        let mut plan = self.writer.plan();
        if plan.is_empty() {
            return;
        }
        plan.notices.iter().for_each(|notice| warn!("{notice}"));
        self.capture.withdraw(&plan.withdraw);
        self.writer.publish(&mut plan);
        self.capture.offer(&plan.offer, Instant::now());
        for state in &plan.offer {
            info!(frontend = %state.frontend, service = %state.port, verdict = ?state.outside, "frontend");
        }
        for state in &plan.withdraw {
            info!(frontend = %state.frontend, service = %state.port, "frontend withdrawn");
        }
        debug!(
            offered = plan.offer.len(),
            withdrawn = plan.withdraw.len(),
            took = ?start.elapsed(),
            "frontends programmed"
        );
    }

    /// Does what is due from time to time: call it about once a second.
    pub fn tick(&mut self) {
        self.capture.retry(Instant::now());
    }

    /// The table, for readers of its statistics.
    pub fn table(&self) -> &Table {
        self.writer.table()
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
