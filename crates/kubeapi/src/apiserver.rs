//! Follows the Services, EndpointSlices, this Node and ServiceCIDRs of an apiserver and, if requested, this
//! node's Pods and all Namespaces.
//!
//! ```text
//!  config ─► access ─► transport ─► follow ─┐
//!  (flags,   (files     (servers,   (list,  ├─► collect ─► batches of changes
//!   files)    read)      401, TLS)   watch) ┘
//! ```
//!
//! * [`Config`]: where the apiserver is and how to connect to it. [`Prepared::new`] reports configuration
//!   errors. Errors that may pass without intervention are retried, and reported by [`Health`].
//! * One task per resource lists and watches it. Each object becomes the compact model at once; only names are
//!   kept, to tell after the next list which objects are gone.
//! * Nothing is passed on before Services and EndpointSlices are listed in full.
//!
//! [`look`] reads the cluster once without following it. [`EventWriter`] writes Events.
//!
//! The requests are few and plain (list, watch), so they are made with reqwest directly. A kube client and
//! watcher would need a wrapper for each of these: 410 at the start of a watch, `Retry-After`, silence, several
//! apiservers, one bad object in a list, and credentials that change.
//!
//! It runs on the caller's tokio runtime and never blocks it: small files are read on threads of their own.

mod access;
mod addresses;
mod answer;
mod backoff;
mod client;
mod collect;
mod config;
mod decode;
mod exec;
mod files;
mod follow;
mod health;
mod kubeconfig;
mod lines;
mod look;
mod milestones;
mod names;
mod own_node;
mod paging;
mod reason;
mod resource;
mod resume;
mod transport;
mod warned;
mod write;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use sluice_model::{Change, Object};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use config::{Config, ConfigError, Environment, Timing};
pub use health::{Durations, Health, Outcome, ResourceHealth};
pub use look::{LookError, Seen, look};
pub use reason::Reason;
pub use resource::Resource;
pub use write::{EventError, EventWriter};

use collect::collect;
use follow::Follower;
use transport::Transport;

/// The maximum number of news, of all resources, that wait for the collector.
const NEWS_IN_FLIGHT: usize = 16;
/// The maximum number of batches that wait for the receiver. The next one is collected meanwhile.
const BATCHES_IN_FLIGHT: usize = 1;

/// A source that is ready to start: its configuration is valid, and no connection has been made yet.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    transport: Arc<Transport>,
}

impl Prepared {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// The configuration is invalid, whatever the apiserver answers.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self { transport: Arc::new(Transport::new(config.clone())?), config })
    }

    /// See [`ApiserverSource::addresses`]. Before the start: the configured addresses.
    pub fn addresses(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.transport.addresses().subscribe()
    }

    /// Starts to follow the cluster, on the current tokio runtime.
    ///
    /// The first batch is the whole cluster, and is sent as soon as that is known; it may be empty. All later
    /// batches are changes, in order. A slow receiver gets larger batches.
    pub fn start(self) -> (ApiserverSource, mpsc::Receiver<Vec<Change>>) {
        let Self { config, transport } = self;
        let health = Arc::new(Health::new(config.timing.unnoticed()));
        let (news, receiver) = mpsc::channel(NEWS_IN_FLIGHT);
        let (batches, output) = mpsc::channel(BATCHES_IN_FLIGHT);
        let mut tasks = JoinSet::new();
        for resource in Resource::ALL.into_iter().filter(|resource| config.pods || !resource.is_optional()) {
            let follower = Follower::new(
                resource,
                config.node.clone(),
                config.timing.clone(),
                Arc::clone(&transport),
                Arc::clone(&health),
                news.clone(),
            );
            tasks.spawn(follower.run());
        }
        let synced = Arc::clone(&health);
        let for_events = Arc::clone(&transport);
        tasks.spawn(async move {
            let servers = transport.servers().await;
            let on_first = |changes: &[Change]| {
                synced.set_synced();
                warn_of_circle(&servers, changes);
            };
            collect(receiver, batches, on_first).await;
        });
        (ApiserverSource { health, transport: for_events, _tasks: tasks }, output)
    }
}

/// A running source; dropping it stops it.
#[derive(Debug)]
pub struct ApiserverSource {
    health: Arc<Health>,
    transport: Arc<Transport>,
    _tasks: JoinSet<()>,
}

impl ApiserverSource {
    /// [Prepares](Prepared::new) one, and [starts](Prepared::start) it.
    ///
    /// # Errors
    /// The configuration is invalid, whatever the apiserver answers.
    pub fn start(config: Config) -> Result<(Self, mpsc::Receiver<Vec<Change>>), ConfigError> {
        Ok(Prepared::new(config)?.start())
    }

    /// A writer of Events to this cluster.
    pub fn events(&self) -> EventWriter {
        EventWriter::new(Arc::clone(&self.transport), Arc::clone(&self.health))
    }

    /// The addresses and ports of connections to apiservers, or to a proxy in between: the configured ones and,
    /// before a connection is made, those that names resolve to. At most 16; those resolved longest ago are
    /// dropped.
    pub fn addresses(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.transport.addresses().subscribe()
    }

    /// The state of the source.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }
}

/// Warns if the apiserver's address works only while a node proxy serves it.
fn warn_of_circle(servers: &[Url], changes: &[Change]) {
    if let Some(address) = circle(servers, changes) {
        tracing::warn!(
            "the apiserver's address {address} is that of a Service, which this agent is to provide: when it is started again, \
             alone, there may be nobody to lead it there, and it serves nothing; give the apiserver's own address with --master"
        );
    }
}

/// An apiserver's address that is a Service's cluster IP. The rules that an agent leaves behind capture its
/// successor's connections to that address as well, and no agent serves them. (Other addresses of Services are
/// harmless: an agent excludes its apiserver's addresses from capture.)
fn circle(servers: &[Url], changes: &[Change]) -> Option<IpAddr> {
    let hosts = servers.iter().filter_map(Url::host_str);
    let hosts: Vec<IpAddr> = hosts.filter_map(|host| host.trim_matches(['[', ']']).parse().ok()).collect();
    let services = changes.iter().filter_map(|change| match change {
        Change::Apply(Object::Service(service)) => Some(service),
        _ => None,
    });
    services.flat_map(|service| &service.cluster_ips).copied().find(|address| hosts.contains(address))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::convert;

    #[test]
    fn an_apiserver_behind_a_service_is_noticed() {
        let service = json!({
            "metadata": { "name": "kubernetes", "namespace": "default" },
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.7"],
                "ports": [{ "port": 443 }],
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.8" }] } },
        });
        let service = convert::service(&serde_json::from_value(service).unwrap()).result.unwrap();
        let changes = [Change::Apply(service.into())];
        let of = |url: &str| circle(&[Url::parse(url).unwrap()], &changes);
        assert_eq!(of("https://10.96.0.1"), Some("10.96.0.1".parse().unwrap()));
        assert_eq!(of("https://[fd00::1]:443"), Some("fd00::1".parse().unwrap()));
        assert_eq!(of("https://192.0.2.7:6443"), None, "an external IP");
        assert_eq!(of("https://192.0.2.8:6443"), None, "a load balancer's");
        assert_eq!(of("https://10.0.0.2:6443"), None);
        assert_eq!(of("https://kubernetes.default"), None);
    }
}
