//! The proxy as a whole: connects table, capture and data plane, and puts changes through in the right order.
//!
//! It belongs to one thread, the controller's; nothing here waits for the network. The capture works on a
//! thread of its own, one step at a time. Endpoints change meanwhile; all other changes wait for the next step.

mod apiservers;
mod config;
mod notices;
mod observer;
mod report;
mod routed;
mod tenure;
#[cfg(test)]
mod tests;
mod workers;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use ipnet::IpNet;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use sluice_capture::Capture;
use sluice_capture::background::{Background, Step};
use sluice_capture::bind::{Bind, Failures};
use sluice_capture::tproxy::{self, NodeAddresses, Tenure, Tproxy};
use sluice_dataplane::{Dataplane, Stats};
use sluice_model::{Change, Frontend, Object, ObjectRef, Protocol};
use sluice_table::{NodePortAddresses, Notice, Plan, Verdict, Writer};

use crate::at_socket::SocketMode;
use crate::capture_listeners::{self, CaptureListeners};
use crate::programming::Programming;
use crate::recall::Memory;

use apiservers::Apiservers;
pub use config::{CaptureConfig, ProxyConfig};
use notices::Teller;
pub use observer::Observer;
pub(crate) use observer::Size;
use report::report;
use routed::Routed;
use workers::Workers;

/// The error if the kernel does not report the node's addresses.
const CANNOT_WATCH: &str = "cannot watch the node's addresses";

/// How often clients whose session affinity has expired are removed.
const AFFINITY_EXPIRY: Duration = Duration::from_secs(1);

/// A running proxy. Dropping it cuts off every connection; see [`Proxy::shut_down`].
pub struct Proxy {
    writer: Writer,
    node: Arc<str>,
    capture: Background,
    /// Socket mode, which translates at clients' sockets.
    at_socket: SocketMode,
    /// The capture's current step and its start. The table does not count it as done yet.
    under_way: Option<(Plan, Instant)>,
    programming: Arc<Programming>,
    /// Which client had which endpoint at the previous agent; kept until there is something to serve.
    recalled: Option<Memory>,
    dataplane: Arc<Dataplane>,
    /// The listeners for captured packets; none in bind mode.
    listeners: Option<CaptureListeners>,
    /// Whether this agent is the one that captures.
    tenure: Option<Arc<Tenure>>,
    /// Whether another agent captures, and gets the captured connections.
    is_replaced: bool,
    /// How often this agent had become the capturing one when that was last checked.
    returns: u64,
    /// The capture's counters; none in bind mode, which has no rules in the kernel.
    captured: Option<Arc<tproxy::Counters>>,
    /// Frontends that bind mode has no sockets for.
    failures: Failures,
    /// The node's addresses; none if they cannot be watched and little depends on them.
    interfaces: Option<NodeAddresses>,
    apiservers: Apiservers,
    routed: Routed,
    node_port_addresses: Arc<ArcSwap<Vec<IpAddr>>>,
    health_check_addresses: Arc<ArcSwap<Vec<IpAddr>>>,
    node_eligible: Arc<ArcSwap<Option<bool>>>,
    node_pod_cidrs: Arc<ArcSwap<Vec<IpNet>>>,
    step_durations: Histogram,
    /// Whether the first changes have come: only then is the wanted state known.
    has_begun: bool,
    /// Whether the capture has been given its first step.
    has_captured: bool,
    /// Whether all initial frontends have been offered to socket mode.
    has_offered: bool,
    /// How many steps the capture has been given so far.
    begun: u64,
    /// Whether changes have been taken in since the last step began.
    has_taken: bool,
    affinity_expired: Instant,
    teller: Teller,
}

/// The present conflicts and shortcomings of objects, for people.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// The first conflicts between objects.
    pub(crate) notices: Vec<Notice>,
    /// How many conflicts there are.
    pub(crate) count: usize,
    /// Services with nodePorts, if no address is there to serve them on.
    pub(crate) without_node_port: usize,
}

impl Proxy {
    /// Starts the workers, with nothing to serve yet. What an earlier run left in the kernel stays as it is
    /// until the first changes tell the wanted state.
    ///
    /// # Errors
    /// The system refuses threads or epoll instances, or the capture cannot be started.
    pub fn start(mut config: ProxyConfig) -> Result<Self> {
        if let CaptureConfig::Tproxy(_) = config.capture {
            config.dataplane.marks = Some(capture_listeners::MARKS);
            config.table.frontends_lead_back = false;
        }
        config.table.node_port_addresses = config.node_ports;
        // With captured connections, it matters whether an endpoint is a process of this node.
        let needs_interfaces = config.table.node_port_addresses != NodePortAddresses::Primary
            || matches!(config.capture, CaptureConfig::Tproxy(_));
        let node = Arc::clone(&config.table.node);
        let mut writer = Writer::new(config.table);
        let dataplane = Dataplane::start(config.dataplane, writer.table());
        let dataplane = dataplane.context(
            "cannot start the data plane: lower --workers, or raise the limit on open files (ulimit -n)",
        );
        let dataplane = Arc::new(dataplane?);
        if let Some(recalled) = &config.recalled {
            dataplane.recall(recalled.flows());
        }
        let failures = Failures::default();
        let mut tenure = None;
        let (capture, listeners, captured): (Box<dyn Capture + Send>, _, _) = match config.capture {
            CaptureConfig::Bind => {
                let (table, events) = (writer.table().clone(), config.events.clone());
                let workers = Workers { dataplane: Arc::clone(&dataplane), table, events };
                (Box::new(Bind::new(workers, failures.clone())), None, None)
            }
            CaptureConfig::Tproxy(config) => {
                let listeners = CaptureListeners::new(config.ports);
                let tproxy = Tproxy::start(config).context("cannot capture")?;
                let counters = tproxy.counters();
                tenure = Some(tproxy.tenure());
                (Box::new(tproxy), Some(listeners), Some(counters))
            }
        };
        let at_socket = SocketMode::start(config.at_socket, config.leftovers, &mut writer);
        let capture = Background::start(capture).context("cannot start a thread for the capture")?;
        let interfaces = match NodeAddresses::watch() {
            Err(error) if needs_interfaces => return Err(error).context(CANNOT_WATCH),
            // Without it, only this is lost: that UDP flows end when the address that they are sent from goes.
            watched => watched.ok(),
        };
        let mut proxy = Self {
            writer,
            node,
            capture,
            at_socket,
            under_way: None,
            programming: Arc::default(),
            recalled: config.recalled,
            dataplane,
            listeners,
            tenure,
            is_replaced: false,
            returns: 0,
            captured,
            failures,
            interfaces,
            apiservers: Apiservers::default(),
            routed: Routed::default(),
            node_port_addresses: Arc::default(),
            health_check_addresses: Arc::default(),
            node_eligible: Arc::default(),
            node_pod_cidrs: Arc::default(),
            step_durations: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            has_begun: false,
            has_captured: false,
            has_offered: false,
            begun: 0,
            has_taken: false,
            affinity_expired: Instant::now(),
            teller: Teller::new(config.events),
        };
        proxy.follow_interfaces();
        Ok(proxy)
    }

    /// Makes changes take effect in one step. When it returns, new connections are decided by the new state.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.take(changes);
        self.settle();
    }

    /// Takes in changes. When it returns, endpoints have changed; frontends may still need the kernel:
    /// [`Proxy::advance`].
    pub fn take(&mut self, changes: impl IntoIterator<Item = Change>) {
        let changes = changes.into_iter().inspect(|change| match change {
            Change::Apply(Object::Node(node)) if node.name == self.node => {
                // One that is made anew has none before a controller has given it some.
                if !node.pod_cidrs.is_empty() {
                    self.capture.set_node_pod_cidrs(&node.pod_cidrs);
                    self.at_socket.set_node_pod_cidrs(&node.pod_cidrs);
                    self.node_pod_cidrs.store(Arc::new(node.pod_cidrs.clone()));
                }
                self.node_eligible.store(Arc::new(Some(node.eligible)));
            }
            Change::Delete(ObjectRef::Node(name)) if *name == self.node => {
                self.node_eligible.store(Arc::new(None));
            }
            _ => self.at_socket.note(change),
        });
        self.writer.apply_all(changes);
        self.at_socket.settle();
        (self.has_begun, self.has_taken) = (true, true);
        self.advance();
    }

    /// The number of the step after which everything taken in so far has taken effect, if it needs a step at all.
    pub fn last_step(&self) -> u64 {
        self.begun + u64::from(self.has_taken)
    }

    /// How many steps the capture has completed.
    pub fn steps(&self) -> u64 {
        self.begun - u64::from(self.under_way.is_some())
    }

    /// Brings workers and kernel closer to the state that the writer has, as far as that is possible without
    /// waiting. Returns whether they have reached it.
    pub fn advance(&mut self) -> bool {
        let changed = self.writer.take_changed();
        self.at_socket.change(&changed);
        if let Some(step) = self.capture.take_done() {
            self.finish(&step);
        }
        if self.under_way.is_none() {
            // Between two steps, because steps may follow each other without a pause: only frontends that are
            // in the table and captured may be offered.
            if self.has_offered && !self.is_replaced {
                let serves = self.serves();
                self.at_socket.take_over(Instant::now(), &mut self.writer, serves);
            }
            self.begin_step();
        }
        self.at_socket.report();
        self.under_way.is_none()
    }

    /// Waits until workers and kernel have the state that the writer has.
    fn settle(&mut self) {
        while !self.advance() {
            if let Some(step) = self.capture.wait() {
                self.finish(&step);
            }
        }
    }

    /// Gives the capture its next step if frontends have changed.
    fn begin_step(&mut self) {
        let start = Instant::now();
        self.has_taken = false;
        let show = |shown: &ArcSwap<Vec<IpAddr>>, addresses: Vec<IpAddr>| {
            if **shown.load() != addresses {
                shown.store(Arc::new(addresses));
            }
        };
        show(&self.node_port_addresses, self.writer.node_port_addresses());
        show(&self.health_check_addresses, self.writer.health_check_addresses());
        let mut plan = self.writer.plan();
        self.apiservers.show(self.writer.left_out());
        self.programming.step_begins(self.writer.take_triggers());
        // An earlier run may have left something in the kernel that has to go, even if there is nothing to
        // serve.
        let is_first = !std::mem::replace(&mut self.has_captured, true);
        if plan.is_empty() && !is_first {
            self.programming.step_ends(self.is_in_line());
            return;
        }
        self.teller.tell(&plan.notices, start);
        self.teller.tell_of_node(self.writer.node_address_in_range());
        let frontends: Vec<Frontend> = plan.withdraw.iter().map(|state| state.frontend).collect();
        self.at_socket.withdraw(&frontends);
        self.writer.publish(&mut plan);
        if let Some(recalled) = self.recalled.take() {
            recalled.recall_clients(self.writer.table());
        }
        self.open_listeners();
        self.begun += 1;
        self.capture.begin(Step {
            withdraw: std::mem::take(&mut plan.withdraw),
            offer: std::mem::take(&mut plan.offer),
            cluster_addresses: std::mem::take(&mut plan.cluster_addresses),
        });
        self.under_way = Some((plan, start));
    }

    /// Completes a step of the capture: no connections come any more to the frontends that it has withdrawn.
    fn finish(&mut self, step: &Step) {
        let Some((mut plan, start)) = self.under_way.take() else { return };
        // The first step has all frontends.
        let is_first = !std::mem::replace(&mut self.has_offered, true);
        let rerouted = std::mem::take(&mut plan.rerouted);
        let offered = step.offer.iter().map(|state| state.frontend);
        let frontends: Vec<Frontend> = offered.chain(rerouted.iter().copied()).collect();
        let serves = self.serves();
        self.at_socket.offer(&frontends, is_first, serves);
        let is_udp = |frontend: &Frontend| frontend.protocol == Protocol::Udp;
        let has_rerouted = rerouted.iter().any(is_udp);
        self.writer.finish(&mut plan);
        let has_withdrawn = step.withdraw.iter().any(|state| is_udp(&state.frontend));
        if has_withdrawn {
            self.dataplane.end_flows();
        }
        if is_first || has_withdrawn || has_rerouted {
            self.at_socket.wake_sweeper();
        }
        self.programming.step_ends(self.is_in_line());
        let took = start.elapsed();
        self.step_durations.observe(took.as_secs_f64());
        report(step, took);
    }

    /// Serves nodePorts at other addresses from the next step on.
    ///
    /// # Errors
    /// The node's addresses cannot be watched. Nothing has changed then.
    pub fn set_node_ports(&mut self, node_ports: NodePortAddresses) -> Result<()> {
        if self.interfaces.is_none() && node_ports != NodePortAddresses::Primary {
            self.interfaces = Some(NodeAddresses::watch().context(CANNOT_WATCH)?);
        }
        self.follow_interfaces();
        self.writer.set_node_port_addresses(node_ports);
        Ok(())
    }

    /// Opens the workers' listeners for captured packets, once the table is filled, unless another agent
    /// captures.
    fn open_listeners(&mut self) {
        if let Some(listeners) = &mut self.listeners
            && !self.is_replaced
        {
            listeners.open(&self.dataplane);
        }
    }

    /// Whether a relay serves: packets are captured, and this agent or the one that replaced it takes them.
    fn serves(&self) -> bool {
        let has_relay = self.is_replaced || self.listeners.as_ref().is_some_and(CaptureListeners::are_open);
        self.has_offered && has_relay
    }

    /// Adopts the node's current addresses.
    fn follow_interfaces(&mut self) {
        let mut gone = self.routed.follow(&mut self.writer, Instant::now());
        if let Some(addresses) = self.interfaces.as_mut().and_then(NodeAddresses::changed) {
            self.at_socket.set_interfaces(addresses.clone());
            gone.extend(self.writer.set_interfaces(addresses));
        }
        if !gone.is_empty() {
            self.dataplane.end_flows_from(gone);
        }
    }

    /// Does the periodic work; to be called several times a second. Does nothing before the first changes, and
    /// never waits. Returns what [`Proxy::advance`] does.
    pub fn poll(&mut self) -> bool {
        let now = Instant::now();
        if self.has_begun {
            self.follow_interfaces();
            self.follow_tenure();
            self.open_listeners();
            let serves = self.serves();
            self.at_socket.keep(now, serves);
        } else {
            self.clear_way(now);
        }
        self.teller.sum_up(now);
        if now >= self.affinity_expired + AFFINITY_EXPIRY {
            self.affinity_expired = now;
            self.writer.expire_affinity(now);
        }
        !self.has_begun || self.advance()
    }

    /// Whether socket mode is passing from one agent to another, which should be over soon: poll often.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.at_socket.is_handing_over()
    }

    /// Which changes have taken effect. Whoever hands over changes records them there.
    pub(crate) fn programming(&self) -> &Arc<Programming> {
        &self.programming
    }

    /// Whether the kernel has the rules that it was last given.
    pub fn is_in_line(&self) -> bool {
        self.captured.as_ref().is_none_or(|counters| counters.failing_for().is_none())
    }

    /// Does all that is due, including the capture's own periodic work, and waits for it.
    pub fn tick(&mut self) {
        self.poll();
        if self.has_begun {
            self.settle();
            self.capture.keep();
        }
    }

    /// What happens to connections to an address that no frontend matches.
    pub fn verdict_without_frontend(&self, ip: IpAddr) -> Option<Verdict> {
        self.writer.verdict_without_frontend(ip)
    }

    /// Up to `limit` of the current conflicts between objects, for people, and their total count.
    pub(crate) fn notices(&self, limit: usize) -> Standing {
        let mut notices = self.writer.standing_notices();
        let first: Vec<Notice> = notices.by_ref().take(limit).cloned().collect();
        let count = first.len() + notices.count();
        Standing {
            notices: first,
            count,
            without_node_port: self.writer.services_without_node_port_address(),
        }
    }

    /// A view of the proxy for other threads.
    pub fn observer(&self) -> Observer {
        Observer {
            table: self.writer.table().clone(),
            dataplane: Arc::clone(&self.dataplane),
            tenure: self.tenure.clone(),
            captured: self.captured.clone(),
            failures: self.failures.clone(),
            node_port_addresses: Arc::clone(&self.node_port_addresses),
            health_check_addresses: Arc::clone(&self.health_check_addresses),
            node_eligible: Arc::clone(&self.node_eligible),
            node_pod_cidrs: Arc::clone(&self.node_pod_cidrs),
            step_durations: self.step_durations.clone(),
            left_out: self.apiservers.left_out(),
            view: self.at_socket.view().clone(),
        }
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
        let Self { capture, at_socket, dataplane, .. } = self;
        // The kernel's rules and the BPF programs are left to a successor, which may be of another version.
        drop((capture, at_socket));
        dataplane.drain(grace)
    }
}
