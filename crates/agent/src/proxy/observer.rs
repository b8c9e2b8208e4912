//! What other threads may see of a running proxy: its table, its counters, its state.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use prometheus_client::metrics::histogram::Histogram;
use sluice_capture::bind::Failures;
use sluice_capture::tproxy::{self, Tenure};
use sluice_dataplane::{AllTimes, Dataplane, FlowEnds, Listeners, Part, Place, Stats, WorkerLoad};
use sluice_model::{Frontend, ServicePortName};
use sluice_table::{Table, Upstream};

use crate::at_socket::View;

/// A view of a running proxy.
#[derive(Debug, Clone)]
pub struct Observer {
    pub(super) table: Table,
    pub(super) dataplane: Arc<Dataplane>,
    pub(super) tenure: Option<Arc<Tenure>>,
    pub(super) captured: Option<Arc<tproxy::Counters>>,
    pub(super) failures: Failures,
    pub(super) node_port_addresses: Arc<ArcSwap<Vec<IpAddr>>>,
    pub(super) health_check_addresses: Arc<ArcSwap<Vec<IpAddr>>>,
    pub(super) node_eligible: Arc<ArcSwap<Option<bool>>>,
    pub(super) node_pod_cidrs: Arc<ArcSwap<Vec<IpNet>>>,
    pub(super) step_durations: Histogram,
    pub(super) left_out: Arc<ArcSwap<BTreeSet<Frontend>>>,
    pub(super) view: View,
}

/// How much is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Services.
    pub services: usize,
    /// Endpoints, counted in each port of each Service.
    pub endpoints: usize,
}

impl Observer {
    /// The view of socket mode.
    pub(crate) fn at_socket(&self) -> &View {
        &self.view
    }

    /// How connections get to endpoints at present: `bind`, `tproxy` or `socket`.
    pub(crate) fn mode(&self) -> &'static str {
        match (&self.captured, self.view.looks()) {
            (None, _) => "bind",
            (Some(_), None) => "tproxy",
            (Some(_), Some(_)) => "socket",
        }
    }

    /// Whether socket mode is active, in words that begin with `on` or `off`, and where or why not.
    pub(crate) fn at_sockets(&self) -> String {
        match (self.view.looks(), self.view.reason()) {
            (Some(looks), _) => {
                format!("on, for sockets below {}, {}", looks.cgroup.display(), looks.names.words())
            }
            (None, Some(reason)) => format!("off: {reason}"),
            (None, None) => format!("off: --capture {}", self.mode()),
        }
    }

    /// How many TCP connections and UDP flows have been translated so far; `None` if socket mode is off.
    pub fn translated(&self) -> Option<u64> {
        self.view.settle().map(|sum| sum.connections)
    }

    /// What the capture has done to the kernel's rules so far; `None` in bind mode.
    pub fn capture_stats(&self) -> Option<tproxy::Stats> {
        self.captured.as_ref().map(|counters| counters.stats())
    }

    /// For how long the capture has failed to bring the kernel in line; `None` if it does not fail.
    pub fn capture_failing_for(&self) -> Option<Duration> {
        self.captured.as_ref().and_then(|counters| counters.failing_for())
    }

    /// How long ago the capture last failed; `None` if it never has.
    pub fn capture_last_failure(&self) -> Option<Duration> {
        self.captured.as_ref().and_then(|counters| counters.last_failure())
    }

    /// Whether another live agent captures in place of this one.
    pub fn is_replaced(&self) -> bool {
        self.tenure.as_ref().is_some_and(|tenure| tenure.is_replaced())
    }

    /// What is wrong with another agent on this node, for people.
    pub fn trouble_of_other_agent(&self) -> Option<String> {
        self.tenure.as_ref().and_then(|tenure| tenure.trouble())
    }

    /// What the workers have done so far.
    pub fn stats(&self) -> Stats {
        self.dataplane.stats()
    }

    /// The times measured so far.
    pub(crate) fn times(&self) -> AllTimes {
        self.dataplane.times()
    }

    /// The present load of each worker.
    pub fn loads(&self) -> Vec<WorkerLoad> {
        self.dataplane.loads()
    }

    /// Asks a worker for some of its connections: see [`Dataplane::look`].
    pub fn look(&self, worker: usize, place: Place, answer: impl FnOnce(Part) + Send + 'static) {
        self.dataplane.look(worker, place, answer);
    }

    /// Lets UDP flows keep the endpoints that they have: see [`Dataplane::recall`].
    pub(crate) fn recall(&self, flows: impl IntoIterator<Item = FlowEnds>) {
        self.dataplane.recall(flows);
    }

    /// See [`Dataplane::end_recall_if_due`].
    pub(crate) fn end_recall_if_due(&self) {
        self.dataplane.end_recall_if_due();
    }

    /// Whether every worker runs.
    pub fn is_alive(&self) -> bool {
        self.dataplane.is_alive()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.dataplane.workers()
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The file descriptors that listeners outside the workers may take.
    pub fn listeners(&self) -> &Listeners {
        self.dataplane.listeners()
    }

    /// The addresses on which nodePorts are served now.
    pub fn node_port_addresses(&self) -> Arc<Vec<IpAddr>> {
        self.node_port_addresses.load_full()
    }

    /// The addresses on which health check node ports listen now; an unspecified one stands for all of its
    /// family.
    pub fn health_check_addresses(&self) -> Arc<Vec<IpAddr>> {
        self.health_check_addresses.load_full()
    }

    /// Whether load balancers may send to this node, as its Node object says; `None` without a Node object.
    pub fn node_eligible(&self) -> Option<bool> {
        **self.node_eligible.load()
    }

    /// The Node's podCIDRs, from which pods of this node get their addresses, as its Node object last said.
    pub(crate) fn node_pod_cidrs(&self) -> Arc<Vec<IpNet>> {
        self.node_pod_cidrs.load_full()
    }

    /// How long the capture's steps took, in seconds.
    pub(crate) fn step_durations(&self) -> &Histogram {
        &self.step_durations
    }

    /// How many Services and endpoints there are.
    pub(crate) fn size(&self) -> Size {
        let routes = self.table.routes();
        let services: HashSet<_> = routes.iter().map(|route| &route.service_port().name().service).collect();
        // A service port has a route for each of its frontends.
        let mut seen = HashSet::new();
        let ports = routes.iter().map(|route| route.service_port());
        let ports = ports.filter(|port| seen.insert(Arc::as_ptr(port)));
        Size { services: services.len(), endpoints: ports.map(|port| port.endpoints().len()).sum() }
    }

    /// How many frontends are served.
    pub fn frontends(&self) -> usize {
        self.table.routes().len().saturating_sub(self.unserved())
    }

    /// How many frontends should be served but cannot be listened on.
    pub fn unserved(&self) -> usize {
        self.failures.count()
    }

    /// Frontends that should be served but cannot be listened on, and why.
    pub fn failures(&self) -> BTreeMap<Frontend, String> {
        self.failures.all()
    }

    /// Frontends of Services that are not served because the agent reaches the apiserver there.
    pub(crate) fn left_out(&self) -> Arc<BTreeSet<Frontend>> {
        self.left_out.load_full()
    }

    /// Every endpoint that can serve, with its service port, sorted and without duplicates.
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
