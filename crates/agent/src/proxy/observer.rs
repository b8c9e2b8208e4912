//! What others see of a running proxy, from any thread: its table, what it counts, how it is.

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

/// How much there is to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Services.
    pub services: usize,
    /// Endpoints, counted in each port of each Service.
    pub endpoints: usize,
}

impl Observer {
    /// What is decided at clients' sockets.
    pub(crate) fn at_socket(&self) -> &View {
        &self.view
    }

    /// How connections get to endpoints, as it is now: `bind`, `tproxy` or `socket`.
    pub(crate) fn mode(&self) -> &'static str {
        match (&self.captured, self.view.looks()) {
            (None, _) => "bind",
            (Some(_), None) => "tproxy",
            (Some(_), Some(_)) => "socket",
        }
    }

    /// Whether connections are decided at sockets, in words that begin with `on` or `off`, and where or why not.
    pub(crate) fn at_sockets(&self) -> String {
        match (self.view.looks(), self.view.reason()) {
            (Some(looks), _) => {
                format!("on, for sockets below {}, {}", looks.cgroup.display(), looks.names.words())
            }
            (None, Some(reason)) => format!("off: {reason}"),
            (None, None) => format!("off: --capture {}", self.mode()),
        }
    }

    /// How many TCP connections and UDP flows have been translated at their sockets so far; none where none are.
    pub fn translated(&self) -> Option<u64> {
        self.view.settle().map(|sum| sum.connections)
    }

    /// What the capture has done to the kernel's rules so far, where it goes by them.
    pub fn capture_stats(&self) -> Option<tproxy::Stats> {
        self.captured.as_ref().map(|counters| counters.stats())
    }

    /// For how long the capture has failed to bring the kernel in line; none where it has not.
    pub fn capture_failing_for(&self) -> Option<Duration> {
        self.captured.as_ref().and_then(|counters| counters.failing_for())
    }

    /// How long ago the capture failed to; none where it has not.
    pub fn capture_last_failure(&self) -> Option<Duration> {
        self.captured.as_ref().and_then(|counters| counters.last_failure())
    }

    /// Whether another agent, which lives, captures in the place of this one.
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

    /// How long things took so far.
    pub(crate) fn times(&self) -> AllTimes {
        self.dataplane.times()
    }

    /// What each worker is busy with now.
    pub fn loads(&self) -> Vec<WorkerLoad> {
        self.dataplane.loads()
    }

    /// Has a worker show some of its connections: see [`Dataplane::look`].
    pub fn look(&self, worker: usize, place: Place, answer: impl FnOnce(Part) + Send + 'static) {
        self.dataplane.look(worker, place, answer);
    }

    /// Has UDP flows go on to the endpoints that they have: see [`Dataplane::recall`].
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

    /// What others than workers may take of the file descriptors, for sockets that listen.
    pub fn listeners(&self) -> &Listeners {
        self.dataplane.listeners()
    }

    /// The addresses that nodePorts are served on now.
    pub fn node_port_addresses(&self) -> Arc<Vec<IpAddr>> {
        self.node_port_addresses.load_full()
    }

    /// The addresses that health check node ports are listened on now: an unspecified one is all of its family.
    pub fn health_check_addresses(&self) -> Arc<Vec<IpAddr>> {
        self.health_check_addresses.load_full()
    }

    /// Whether load balancers may send to this node, as its Node object says; none where there is none.
    pub fn node_eligible(&self) -> Option<bool> {
        **self.node_eligible.load()
    }

    /// Where pods of this node have their addresses, as its Node object last said.
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

    /// How many frontends are to be served and cannot be listened on.
    pub fn unserved(&self) -> usize {
        self.failures.count()
    }

    /// Frontends that are to be served and cannot be listened on, and why.
    pub fn failures(&self) -> BTreeMap<Frontend, String> {
        self.failures.all()
    }

    /// Frontends that Services name and that are not served, because the agent reaches the apiserver there.
    pub(crate) fn left_out(&self) -> Arc<BTreeSet<Frontend>> {
        self.left_out.load_full()
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
