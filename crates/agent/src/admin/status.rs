//! `/v1/status`: the agent's state, from what it shares.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_dataplane as dataplane;
use sluice_model::ObjectName;

use super::api::{Limits, Status, WorkerLoad};
use super::server::Inside;
use crate::health::State;
use crate::proxy::{Observer, Size, Standing};

/// How many problems of one kind name their Service: a cluster may have any number.
const NAMED: usize = 5;

/// How long to wait for the controller: the status must work even if it hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// The present conflicts between objects; empty if the controller does not answer.
pub(super) async fn standing(inside: &Inside) -> Standing {
    let asked = tokio::time::timeout(PATIENCE, inside.feed.notices(NAMED)).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

/// The agent's state now; with problems of Services if `standing` has them.
pub(super) fn status(inside: &Inside, standing: Option<&Standing>) -> Status {
    let observer = &inside.observer;
    let state = inside.health.state();
    let verdict = state.verdict;
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
        is_healthy: verdict.is_ok() && state.node_eligible,
        is_live: inside.health.is_live(),
        is_ready: verdict.is_ok() && inside.health.programming().updated().is_some(),
        is_stopping: inside.is_stopping.load(Ordering::Relaxed),
        problems: problems(inside, &state, standing),
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

/// The present problems, for people.
fn problems(inside: &Inside, state: &State, standing: Option<&Standing>) -> Vec<String> {
    let (observer, apiserver) = (&inside.observer, inside.health.apiserver());
    let mut problems: Vec<String> =
        state.verdict.as_ref().err().map(ToString::to_string).into_iter().collect();
    problems.extend(apiserver.iter().flat_map(|health| health.reasons()).map(|(_, reason)| reason));
    problems.sort_unstable();
    problems.dedup();
    problems.extend(of_node(inside, state));
    problems.extend(observer.trouble_of_other_agent());
    let in_the_way = inside.in_the_way.all();
    problems.extend(in_the_way.iter().map(|finding| format!("{}: {}", finding.about, finding.what)));
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
    problems.extend(standing.into_iter().flat_map(|standing| of_services(inside, standing)));
    if !observer.is_alive() {
        problems.push("a worker has ended: the agent is about to end, to be started again".to_owned());
    }
    problems
}

/// Why load balancers avoid this node, if its Node object is the reason.
fn of_node(inside: &Inside, state: &State) -> Option<String> {
    let node = &inside.node;
    match inside.health.apiserver() {
        Some(health) if health.has_node() == Some(false) => Some(match health.had_node() {
            true => format!(
                "the cluster has no Node {node} any more: nodePorts and zones go by what it said last, and load balancers \
                 are told not to send here"
            ),
            false => format!(
                "the cluster has no Node {node}: there are no nodePorts, and load balancers are told not to send here \
                 (--hostname-override)"
            ),
        }),
        // What is not known yet is reported by the verdict.
        _ if state.node_eligible || state.verdict.is_err() => None,
        _ => Some(format!(
            "load balancers are told not to send here: Node {node} is about to be deleted, or a cluster-autoscaler is to \
             take it away"
        )),
    }
}

/// All counters by their names.
fn counters(observer: &Observer) -> BTreeMap<String, u64> {
    let mut counters: BTreeMap<String, u64> = observer
        .stats()
        .named()
        .into_iter()
        .map(|counted| (counted.name.to_owned(), counted.value))
        .collect();
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

/// Problems of Services, some of each kind by name.
fn of_services(inside: &Inside, standing: &Standing) -> Vec<String> {
    let mut problems: Vec<String> = standing.notices.iter().map(ToString::to_string).collect();
    let more = |problems: &mut Vec<String>, more: usize, what: &str| {
        if more > 0 {
            problems.push(format!("{more} more {what}: the log names them"));
        }
    };
    more(&mut problems, standing.count.saturating_sub(standing.notices.len()), "objects do not fit together");
    let failures = inside.health_checks.failures();
    let said = |service: &ObjectName, what: &str| format!("Service {service}: {what}");
    problems.extend(failures.iter().take(NAMED).map(|failure| said(&failure.service, &failure.what)));
    more(&mut problems, failures.len().saturating_sub(NAMED), "health check ports cannot be listened on");
    let is_told = inside.health.apiserver().is_some_and(|health| health.has_node() != Some(true));
    if standing.without_node_port > 0 && !is_told {
        let node = &inside.node;
        let mend = match inside.health.apiserver() {
            Some(_) => "see its status.addresses, and --nodeport-addresses".to_owned(),
            None => format!(
                "add a Node {node} with status.addresses to the manifests, or give --nodeport-addresses or \
                 --hostname-override"
            ),
        };
        problems.push(format!(
            "nodePorts are served nowhere (Services that have some: {}), as no address of Node {node} is known for them: {mend}",
            standing.without_node_port
        ));
    }
    problems
}

impl From<dataplane::WorkerLoad> for WorkerLoad {
    fn from(load: dataplane::WorkerLoad) -> Self {
        let dataplane::WorkerLoad { cpu, tcp_sessions, udp_flows } = load;
        Self { cpu_seconds: cpu.as_secs_f64(), tcp_sessions, udp_flows }
    }
}
