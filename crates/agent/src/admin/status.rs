//! `/v1/status`: how the agent is, from what it shares.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use sluice_dataplane as dataplane;

use super::api::{Limits, Status, WorkerLoad};
use super::server::Inside;
use crate::health::Unhealthy;
use crate::proxy::{Observer, Size};

/// How the agent is now.
pub(super) fn status(inside: &Inside) -> Status {
    let observer = &inside.observer;
    let verdict = inside.health.verdict();
    let apiserver = inside.health.apiserver();
    let Size { services, endpoints } = observer.size();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: std::process::id(),
        mode: observer.mode().to_owned(),
        at_sockets: observer.at_sockets(),
        node: inside.node.clone(),
        started: inside.started_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        uptime_seconds: inside.started.elapsed().as_secs(),
        source: if apiserver.is_some() { "apiserver" } else { "manifests" }.to_owned(),
        is_synced: apiserver.is_none_or(|health| health.is_synced()),
        age_seconds: apiserver.and_then(|health| health.last_contact()).map(|age| age.as_secs_f64()),
        is_healthy: verdict.is_ok(),
        is_live: inside.health.is_live(),
        is_ready: verdict.is_ok() && inside.health.programming().updated().is_some(),
        is_stopping: inside.is_stopping.load(Ordering::Relaxed),
        problems: problems(inside, &verdict),
        workers: observer.workers(),
        worker_loads: observer.loads().into_iter().map(WorkerLoad::from).collect(),
        limits: Limits {
            descriptors: inside.dataplane.descriptors,
            client_share_percent: inside.dataplane.client_share,
            udp_idle_seconds: inside.dataplane.udp_idle.as_secs(),
            tcp_half_closed_seconds: inside.dataplane.half_closed_idle.as_secs(),
        },
        services,
        frontends: observer.frontends(),
        frontends_failed: observer.unserved(),
        endpoints,
        counters: counters(observer),
    }
}

/// What is wrong, for people.
fn problems(inside: &Inside, verdict: &Result<(), Unhealthy>) -> Vec<String> {
    let (observer, apiserver) = (&inside.observer, inside.health.apiserver());
    let mut problems: Vec<String> = verdict.as_ref().err().map(ToString::to_string).into_iter().collect();
    problems.extend(apiserver.iter().flat_map(|health| health.reasons()).map(|(_, reason)| reason));
    problems.sort_unstable();
    problems.dedup();
    if let Some(health) = apiserver
        && health.has_node() == Some(false)
    {
        let node = &inside.node;
        problems.push(match health.had_node() {
            true => format!(
                "the cluster has no Node {node} any more: nodePorts and zones go by what it said last, and load balancers \
                 are told not to send here"
            ),
            false => format!("the cluster has no Node {node}: there are no nodePorts (--hostname-override)"),
        });
    }
    if observer.unserved() > 0 {
        let what = match observer.unserved() {
            1 => "1 frontend".to_owned(),
            unserved => format!("{unserved} frontends"),
        };
        problems.push(format!("{what} cannot be listened on: the log says why"));
    }
    if observer.capture_stats().is_some_and(|stats| stats.bridge_netfilter) {
        problems.push(
            "net.bridge.bridge-nf-call-iptables or -ip6tables is not 0 and cannot be set: pods on bridges have no Services"
                .to_owned(),
        );
    }
    if !observer.is_alive() {
        problems.push("a worker has ended: the agent is about to end, to be started again".to_owned());
    }
    problems
}

/// All counters by their names.
fn counters(observer: &Observer) -> BTreeMap<String, u64> {
    let mut counters: BTreeMap<String, u64> =
        observer.stats().named().into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    if let Some(sum) = observer.at_socket().settle() {
        let numbers = [
            ("connections", sum.connections),
            ("connections_closed", sum.closed),
            ("connections_failed", sum.failed),
            ("bytes_from_clients", sum.bytes_to),
            ("bytes_to_clients", sum.bytes_from),
        ];
        counters.extend(numbers.map(|(name, n)| (format!("socket_{name}"), n)));
    }
    counters
}

impl From<dataplane::WorkerLoad> for WorkerLoad {
    fn from(load: dataplane::WorkerLoad) -> Self {
        let dataplane::WorkerLoad { cpu, tcp_sessions, udp_flows } = load;
        Self { cpu_seconds: cpu.as_secs_f64(), tcp_sessions, udp_flows }
    }
}
