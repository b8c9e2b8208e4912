//! An in-memory apiserver with real HTTP, for the agent's tests and the demo.
//!
//! It serves Services, EndpointSlices, Nodes, ServiceCIDRs and Namespaces as a real one does, as far as a
//! watching client and `kubectl` can tell: paged lists at a consistent revision, watches with bookmarks and a
//! bounded history, selectors, optimistic locking, Tables, TLS, tokens and client certificates. It also fails
//! on demand ([`Faults`]).
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use serde_json::json;
//! use sluice_testbed::apiserver::{Apiserver, Resource};
//!
//! let server = Apiserver::builder().token("secret").start().await?;
//! std::fs::write("kubeconfig", server.kubeconfig()?)?;
//! server.create(Resource::Services, json!({
//!     "metadata": { "name": "web" },
//!     "spec": { "ports": [{ "port": 80 }] },
//! }))?;
//! server.faults().cut_watches();
//! # Ok(())
//! # }
//! ```
//!
//! `kubectl` can `get` (with `-w`), `create -f`, `replace`, `patch`, `apply`, `label`, `describe` and
//! `delete` without extra flags: the OpenAPI documents are empty, so it leaves validation to the
//! server. Not served: other resources, server-side apply, dry runs, authorisation, and protobuf,
//! which newer versions send for `kubectl create service`.
//!
//! It runs on the caller's tokio runtime: a task accepts, each connection and each watch is a task.
//! One lock guards the objects and is never held across a wait.

mod allocator;
mod auth;
mod body;
mod builder;
mod counters;
mod decode;
mod discovery;
mod faults;
mod listener;
mod negotiate;
mod object;
mod patch;
mod path;
mod query;
mod reads;
mod registry;
mod resource;
mod router;
mod selector;
mod server;
mod service;
mod status;
mod store;
mod table;
mod tls;
mod validation;
mod watching;
mod writes;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

pub use builder::Builder;
pub use counters::{Counters, Verb};
pub use faults::{Expiry, Failure, Faults, Target};
pub use resource::Resource;
pub use server::Apiserver;
pub use status::Status;
pub use tls::{Authority, Identity, Validity};

use auth::Authentication;
use registry::Registry;
use tls::Certificates;

/// The state that all connections to one server share.
#[derive(Debug)]
pub(crate) struct Shared {
    address: SocketAddr,
    config: Config,
    cluster: Arc<Cluster>,
    /// The revision at the latest start of the server.
    started: AtomicU64,
    faults: Arc<Faults>,
    counters: Arc<watch::Sender<Counters>>,
    /// Changes when all connections are to be dropped.
    connection_drops: watch::Sender<()>,
    /// Changes when existing connections are to accept no new requests.
    connection_ends: watch::Sender<()>,
}

/// The state that all servers of one cluster share.
#[derive(Debug)]
pub(crate) struct Cluster {
    registry: Mutex<Registry>,
    authentication: Authentication,
    /// `None` without TLS.
    certificates: Option<Arc<Certificates>>,
    /// Changes whenever watches should check for changes.
    tick: Arc<watch::Sender<()>>,
}

/// Settings that do not change while the server runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    bookmark_interval: Duration,
    watch_timeout: Duration,
    service_fields: bool,
}

impl Shared {
    fn new(address: SocketAddr, config: Config, cluster: Arc<Cluster>) -> Arc<Self> {
        let faults = Arc::new(Faults::new(Arc::clone(&cluster.tick)));
        let (counters, connection_drops, connection_ends) = Default::default();
        let started = AtomicU64::default();
        let shared =
            Self { address, config, cluster, started, faults, counters, connection_drops, connection_ends };
        shared.note_start();
        Arc::new(shared)
    }

    fn note_start(&self) {
        self.started.store(self.registry().store.revision(), Relaxed);
    }

    /// Whether a watch on a resource gets bookmarks of its own accord. It gets none before the first change
    /// since the start, as with a real apiserver, which knows no revision of the resource until then.
    fn has_bookmarks(&self, resource: Resource) -> bool {
        self.registry().store.is_written_after(resource, self.started.load(Relaxed))
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.cluster.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, and notifies the watches.
    fn write<T>(&self, write: impl FnOnce(&mut Registry) -> T) -> T {
        let written = write(&mut self.registry());
        self.cluster.tick.send_modify(|()| {});
        written
    }
}
