//! The `healthCheckNodePort` servers: load balancers ask them which nodes have endpoints of a Service.
//!
//! One tokio task owns the ports, and opens and closes them as Services or addresses come and go. The numbers
//! in answers are read at each request. (kube-proxy: `healthcheck/service_health.go`.)

mod answer;
mod ports;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sluice_dataplane::Listeners;
use sluice_model::ObjectName;
use sluice_table::Table;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::events::Events;
use crate::http_server::Connections;
use ports::Ports;

/// How often to check the list of Services.
const POLL: Duration = Duration::from_millis(200);

/// The most connections over all ports together. A probe takes only milliseconds, so this is far more than load
/// balancers need, and half of what the data plane leaves to others.
const CONNECTIONS: usize = 128;

/// The most failures that are listed.
const FAILURES: usize = 100;

/// The servers. Dropping it closes all ports.
#[derive(Debug)]
pub struct HealthChecks {
    addresses: watch::Sender<Vec<IpAddr>>,
    stats: Stats,
    task: JoinHandle<()>,
}

/// The state of the servers. Clones share it.
#[derive(Debug, Clone)]
pub struct Stats {
    ports: Arc<Counts>,
    connections: Connections,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    failed: AtomicUsize,
    failures: ArcSwap<Vec<Failure>>,
}

/// A port on which the agent cannot listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) service: ObjectName,
    /// What is wrong, and what helps.
    pub(crate) what: String,
}

impl HealthChecks {
    /// Starts without any address. Each port on each address takes one of the `listeners`. `healthy` is asked
    /// at each request whether the proxy as a whole is healthy.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(
        table: Table,
        listeners: Listeners,
        events: Events,
        healthy: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let (addresses, changes) = watch::channel(Vec::new());
        let connections = Connections::new(CONNECTIONS);
        let stats = Stats { ports: Arc::default(), connections: connections.clone() };
        let ports = Ports::new(connections, listeners, events, Arc::new(healthy));
        let task = tokio::spawn(follow(table, changes, ports, Arc::clone(&stats.ports)));
        Self { addresses, stats, task }
    }

    /// Sets the addresses to serve on. An unspecified address stands for all of its family.
    pub fn update(&self, addresses: Vec<IpAddr>) {
        self.addresses.send_if_modified(|current| {
            let is_news = *current != addresses;
            *current = addresses;
            is_news
        });
    }

    /// The state of the servers.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.task.abort();
        self.stats.ports.open.store(0, Ordering::Relaxed);
        self.stats.ports.failed.store(0, Ordering::Relaxed);
        self.stats.ports.failures.store(Arc::default());
    }
}

impl Stats {
    /// How many addresses and ports answer.
    pub fn open(&self) -> usize {
        self.ports.open.load(Ordering::Relaxed)
    }

    /// How many addresses and ports should answer but cannot be listened on.
    pub fn failed(&self) -> usize {
        self.ports.failed.load(Ordering::Relaxed)
    }

    /// Some of these failures, with the reason.
    pub(crate) fn failures(&self) -> Arc<Vec<Failure>> {
        self.ports.failures.load_full()
    }

    /// How many connections were cut off because more came while the most were open.
    pub fn cut_off(&self) -> u64 {
        self.connections.cut_off()
    }

    /// How many connections could not be accepted.
    pub fn failed_accepts(&self) -> u64 {
        self.connections.failed()
    }
}

async fn follow(
    table: Table,
    mut addresses: watch::Receiver<Vec<IpAddr>>,
    mut ports: Ports,
    counts: Arc<Counts>,
) {
    let mut poll = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            changed = addresses.changed() => if changed.is_err() { return },
            _ = poll.tick() => {}
        }
        let current = addresses.borrow_and_update().clone();
        ports.reconcile(&table.health_checks(), &current, Instant::now());
        counts.open.store(ports.open(), Ordering::Relaxed);
        counts.failed.store(ports.failed(), Ordering::Relaxed);
        let failures: Vec<Failure> = ports.failures().take(FAILURES).collect();
        if **counts.failures.load() != failures {
            counts.failures.store(Arc::new(failures));
        }
    }
}

#[cfg(test)]
mod tests;
