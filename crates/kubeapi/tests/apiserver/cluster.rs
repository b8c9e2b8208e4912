//! A server, a source that follows it, and what both hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice_kubeapi::api;
use sluice_kubeapi::apiserver::{ApiserverSource, Config, Environment, Health, Timing};
use sluice_kubeapi::convert::{self, Converted};
use sluice_model::{Change, Object, ObjectRef};
use sluice_testbed::apiserver::{Apiserver, Builder, Counters, Resource};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::canned::Canned;

/// How long anything may take before the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// The node that the agent under test runs on.
pub(crate) const NODE: &str = "node-1";

/// Waits for what has to happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it took too long")
}

/// Waits until the server's numbers are such.
pub(crate) async fn until(server: &Apiserver, test: impl FnMut(&Counters) -> bool) {
    soon(server.counters().wait_for(test)).await.expect("the server is there");
}

/// Intervals for tests: failures are got over in milliseconds.
pub(crate) fn timing() -> Timing {
    Timing {
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(100),
        reload: Duration::ZERO,
        ..Timing::default()
    }
}

pub(crate) fn config(server: &Apiserver) -> Config {
    Config { masters: vec![server.url()], timing: timing(), ..Config::new(NODE, Environment::default()) }
}

/// The same by a kubeconfig, which has to be kept for it.
pub(crate) fn by_kubeconfig(server: &Apiserver) -> (NamedTempFile, Config) {
    let kubeconfig = NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), server.kubeconfig().unwrap()).unwrap();
    let path = Some(kubeconfig.path().to_owned());
    (kubeconfig, Config { kubeconfig: path, masters: Vec::new(), ..config(server) })
}

pub(crate) async fn plain() -> Apiserver {
    start(Apiserver::builder().plain_http()).await
}

pub(crate) async fn start(builder: Builder) -> Apiserver {
    builder.start().await.unwrap()
}

/// What the source has said, applied.
pub(crate) struct Followed {
    pub(crate) source: ApiserverSource,
    batches: mpsc::Receiver<Vec<Change>>,
    pub(crate) objects: BTreeMap<ObjectRef, Object>,
    /// Batches so far.
    pub(crate) count: usize,
}

impl Followed {
    pub(crate) fn new(config: Config) -> Self {
        let (source, batches) = ApiserverSource::start(config).unwrap();
        Self { source, batches, objects: BTreeMap::new(), count: 0 }
    }

    /// Follows a server that says what it is told to.
    pub(crate) fn canned(server: &Canned, timing: Timing) -> Self {
        let masters = vec![format!("http://{}", server.address)];
        Self::new(Config { masters, timing, ..Config::new(NODE, Environment::default()) })
    }

    /// Follows a server, until it is synced.
    pub(crate) async fn synced(server: &Apiserver) -> Self {
        let mut followed = Self::new(config(server));
        followed.next().await;
        followed
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        self.source.health()
    }

    /// Applies the next batch, and returns what it says in short: `+Service a/b`, `-Service a/b`.
    pub(crate) async fn next(&mut self) -> Vec<String> {
        let batch = soon(self.batches.recv()).await.expect("the source runs");
        assert!(self.health().is_synced());
        self.count += 1;
        batch.into_iter().map(|change| self.apply(change)).collect()
    }

    fn apply(&mut self, change: Change) -> String {
        match change {
            Change::Apply(object) => {
                let name = object.reference();
                self.objects.insert(name.clone(), object);
                format!("+{name}")
            }
            Change::Delete(name) => {
                self.objects.remove(&name);
                format!("-{name}")
            }
        }
    }

    /// Takes batches until the objects are such.
    pub(crate) async fn until(&mut self, mut test: impl FnMut(&BTreeMap<ObjectRef, Object>) -> bool) {
        let waited = tokio::time::timeout(DEADLINE, async {
            while !test(&self.objects) {
                self.next().await;
            }
        });
        if waited.await.is_err() {
            panic!("never came about: {:#?}\n{:#?}", self.objects.keys(), self.health());
        }
    }

    /// Takes batches until this side holds what the server holds.
    pub(crate) async fn until_like(&mut self, server: &Apiserver) {
        self.until(|objects| *objects == held(server)).await;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.keys().map(ToString::to_string).collect()
    }

    /// Takes what is there already.
    pub(crate) fn drain(&mut self) {
        while let Ok(batch) = self.batches.try_recv() {
            self.count += 1;
            for change in batch {
                self.apply(change);
            }
        }
    }

    /// Nothing has been handed over.
    pub(crate) fn assert_nothing(&mut self) {
        assert!(self.batches.try_recv().is_err());
        assert!(!self.health().is_synced());
    }
}

/// What of a server's objects counts for a proxy on [`NODE`].
pub(crate) fn held(server: &Apiserver) -> BTreeMap<ObjectRef, Object> {
    let services = list::<api::Service, _>(server, Resource::Services, convert::service);
    let slices = list::<api::EndpointSlice, _>(server, Resource::EndpointSlices, convert::slice);
    let mut nodes = list::<api::Node, _>(server, Resource::Nodes, convert::node);
    nodes.retain(|node| node.reference() == ObjectRef::Node(NODE.into()));
    let cidrs = list::<api::ServiceCidr, _>(server, Resource::ServiceCidrs, convert::service_cidr);
    let all = [services, slices, nodes, cidrs].into_iter().flatten();
    all.map(|object| (object.reference(), object)).collect()
}

fn list<K: DeserializeOwned, T: Into<Object>>(
    server: &Apiserver,
    resource: Resource,
    convert: fn(&K) -> Converted<T>,
) -> Vec<Object> {
    let objects = server.list(resource).into_iter();
    let typed = objects.filter_map(|object| serde_json::from_value::<K>(object).ok());
    typed.filter_map(|object| convert(&object).result.ok()).map(Into::into).collect()
}

pub(crate) fn service(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } })
}

pub(crate) fn slice(service: &str, name: &str, endpoints: &[&str]) -> Value {
    let endpoints: Vec<_> = endpoints.iter().map(|address| json!({ "addresses": [address] })).collect();
    json!({
        "metadata": {
            "name": name, "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
    })
}

pub(crate) fn node(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "status": { "addresses": [
        { "type": "InternalIP", "address": "192.168.0.1" }] } })
}
