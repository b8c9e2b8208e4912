//! `/v1/status`: how the agent is, from what it shares.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_dataplane as dataplane;

use super::api::{Limits, Status, WorkerLoad};
use super::server::Inside;

/// How the agent is now.
pub(super) fn status(inside: &Inside) -> Status {
    let observer = &inside.observer;
    let verdict = inside.health.verdict();
    let apiserver = inside.health.apiserver();
    let mut problems: Vec<String> = verdict.as_ref().err().map(ToString::to_string).into_iter().collect();
    problems.extend(apiserver.iter().flat_map(|health| health.reasons()).map(|(_, reason)| reason));
    problems.sort_unstable();
    problems.dedup();
    if let Some(false) = apiserver.and_then(|health| health.has_node()) {
        problems.push(format!(
            "the cluster has no Node {}: there are no nodePorts (--hostname-override)",
            inside.node
        ));
    }
    if observer.unserved() > 0 {
        let unserved = observer.unserved();
        problems.push(format!("{unserved} frontends cannot be listened on: the log says why"));
    }
    if !observer.is_alive() {
        problems.push("a worker has ended: the agent is about to end, to be started again".to_owned());
    }
    let routes = observer.table().routes();
    let names: BTreeSet<_> = routes.iter().map(|route| &route.service_port().name().service).collect();
    let mut seen = BTreeSet::new();
    let ports = routes.iter().map(|route| route.service_port());
    let ports = ports.filter(|port| seen.insert(Arc::as_ptr(port)));
    let endpoints = ports.map(|port| port.endpoints().len()).sum();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: std::process::id(),
        mode: if inside.is_capturing { "tproxy" } else { "bind" }.to_owned(),
        node: inside.node.clone(),
        started: inside.started_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        uptime_seconds: inside.started.elapsed().as_secs(),
        source: if apiserver.is_some() { "apiserver" } else { "manifests" }.to_owned(),
        is_synced: apiserver.is_none_or(|health| health.is_synced()),
        age_seconds: apiserver.and_then(|health| health.last_contact()).map(|age| age.as_secs_f64()),
        is_healthy: verdict.is_ok(),
        is_stopping: inside.is_stopping.load(Ordering::Relaxed),
        problems,
        workers: observer.workers(),
        worker_loads: observer.loads().into_iter().map(WorkerLoad::from).collect(),
        limits: Limits {
            descriptors: inside.dataplane.descriptors,
            client_share_percent: inside.dataplane.client_share,
            udp_idle_seconds: inside.dataplane.udp_idle.as_secs(),
            tcp_half_closed_seconds: inside.dataplane.half_closed_idle.as_secs(),
        },
        services: names.len(),
        frontends: observer.frontends(),
        frontends_failed: observer.unserved(),
        endpoints,
        counters: observer.stats().named().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
    }
}

impl From<dataplane::WorkerLoad> for WorkerLoad {
    fn from(load: dataplane::WorkerLoad) -> Self {
        let dataplane::WorkerLoad { cpu, tcp_sessions, udp_flows } = load;
        Self { cpu_seconds: cpu.as_secs_f64(), tcp_sessions, udp_flows }
    }
}
