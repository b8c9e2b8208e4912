//! The proxy as one piece: objects in, traffic carried. Table, capture, data plane, and the order in which a change goes through.
//!
//! Belongs to one thread, the controller; nothing here waits for the network. What the capture has to do it does on a
//! thread of its own, one step after the other: endpoints change meanwhile, and what else changes waits for the next step.

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

/// What fails if the kernel does not tell of addresses.
const CANNOT_WATCH: &str = "cannot watch the node's addresses";

/// How often clients that session affinity has forgotten are looked for.
const AFFINITY_EXPIRY: Duration = Duration::from_secs(1);

/// A running proxy. Dropping it cuts every connection off; see [`Proxy::shut_down`].
pub struct Proxy {
    writer: Writer,
    node: Arc<str>,
    capture: Background,
    /// What decides at clients' sockets.
    at_socket: SocketMode,
    /// What the capture is about to make true, and since when; the table is not finished with it.
    under_way: Option<(Plan, Instant)>,
    programming: Arc<Programming>,
    /// Who has which endpoint by the agent before, until there is something to serve.
    recalled: Option<Memory>,
    dataplane: Arc<Dataplane>,
    /// Where captured packets are handed over; none where frontends are listened on.
    listeners: Option<CaptureListeners>,
    /// Whether it is this agent that captures.
    tenure: Option<Arc<Tenure>>,
    /// Whether another one does, and has what is captured.
    is_replaced: bool,
    /// How often this one had become the agent that does when that was last looked at.
    returns: u64,
    /// What the capture has done; bind mode has nothing to do with the kernel's rules.
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
    /// Whether there were changes: from then on it is known what there is to be.
    has_begun: bool,
    /// Whether the capture has been told.
    has_captured: bool,
    /// Whether everything that there was at first is decided at sockets.
    has_offered: bool,
    /// Steps that the capture was asked to make so far.
    begun: u64,
    /// Something was taken in since.
    has_taken: bool,
    affinity_expired: Instant,
    teller: Teller,
}

/// What there is to tell about objects as they are.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Objects that do not fit together: the first ones.
    pub(crate) notices: Vec<Notice>,
    /// How many of those there are.
    pub(crate) count: usize,
    /// Services with nodePorts, where no address is there to serve them on.
    pub(crate) without_node_port: usize,
}

impl Proxy {
    /// Starts the workers, with nothing to serve yet. What an earlier run left in the kernel stays as it is
    /// until the first changes say what there is to be.
    ///
    /// # Errors
    /// The system refuses threads or epoll instances; the capture cannot be had.
    pub fn start(mut config: ProxyConfig) -> Result<Self> {
        if let CaptureConfig::Tproxy(_) = config.capture {
            config.dataplane.marks = Some(capture_listeners::MARKS);
            config.table.frontends_lead_back = false;
        }
        config.table.node_port_addresses = config.node_ports;
        // Whether an endpoint is a process of this node matters where connections are captured.
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
            // What is left to depend on it: that UDP flows end with the address that they are sent from.
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

    /// Makes changes take effect, all of them in one step. When it returns new connections are decided by the new state.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.take(changes);
        self.settle();
    }

    /// Takes changes in. When it returns endpoints are the new ones; frontends may need the kernel: [`Proxy::advance`].
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

    /// The number of the step after which all that was taken in so far has taken effect, unless that needs none.
    pub fn last_step(&self) -> u64 {
        self.begun + u64::from(self.has_taken)
    }

    /// How many steps the capture has made.
    pub fn steps(&self) -> u64 {
        self.begun - u64::from(self.under_way.is_some())
    }

    /// Goes on with bringing workers and kernel in line with what the writer knows, as far as that does not mean to wait.
    /// Returns whether they are.
    pub fn advance(&mut self) -> bool {
        let changed = self.writer.take_changed();
        self.at_socket.change(&changed);
        if let Some(step) = self.capture.take_done() {
            self.finish(&step);
        }
        if self.under_way.is_none() {
            // Between two steps, as there may be no moment without one: what is offered then is in the table and captured.
            if self.has_offered && !self.is_replaced {
                let serves = self.serves();
                self.at_socket.take_over(Instant::now(), &mut self.writer, serves);
            }
            self.begin_step();
        }
        self.at_socket.report();
        self.under_way.is_none()
    }

    /// Waits until workers and kernel are in line with what the writer knows.
    fn settle(&mut self) {
        while !self.advance() {
            if let Some(step) = self.capture.wait() {
                self.finish(&step);
            }
        }
    }

    /// Has the capture do what there is to do about frontends, if there is anything.
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
        // The kernel may have to be rid of what an earlier run left, even if there is nothing now.
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

    /// The capture has made a step: nobody comes any more by what it has withdrawn.
    fn finish(&mut self, step: &Step) {
        let Some((mut plan, start)) = self.under_way.take() else { return };
        // The first step has everything that there is.
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

    /// Serves nodePorts elsewhere from the next step on.
    ///
    /// # Errors
    /// The node's addresses cannot be watched; nothing has changed.
    pub fn set_node_ports(&mut self, node_ports: NodePortAddresses) -> Result<()> {
        if self.interfaces.is_none() && node_ports != NodePortAddresses::Primary {
            self.interfaces = Some(NodeAddresses::watch().context(CANNOT_WATCH)?);
        }
        self.follow_interfaces();
        self.writer.set_node_port_addresses(node_ports);
        Ok(())
    }

    /// Has the workers take what the kernel hands over: once they know what to do with it, unless it is another agent's.
    fn open_listeners(&mut self) {
        if let Some(listeners) = &mut self.listeners
            && !self.is_replaced
        {
            listeners.open(&self.dataplane);
        }
    }

    /// Whether there is a way for what is left to the relay, and somebody who takes it: this agent or the one that has its place.
    fn serves(&self) -> bool {
        let has_relay = self.is_replaced || self.listeners.as_ref().is_some_and(CaptureListeners::are_open);
        self.has_offered && has_relay
    }

    /// Goes by the addresses that the node has now.
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

    /// Does what is due from time to time: call it several times a second. Nothing before the first changes. Waits for
    /// nothing; returns what [`Proxy::advance`] does.
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

    /// Whether what decides at sockets is passing from one agent to another, which is to be soon over: poll it often.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.at_socket.is_handing_over()
    }

    /// Which changes have taken effect. Whoever hands some over says there which.
    pub(crate) fn programming(&self) -> &Arc<Programming> {
        &self.programming
    }

    /// Whether the kernel is as it was last asked to be.
    pub fn is_in_line(&self) -> bool {
        self.captured.as_ref().is_none_or(|counters| counters.failing_for().is_none())
    }

    /// Does all that is due, what the capture looks after by itself included, and waits for it.
    pub fn tick(&mut self) {
        self.poll();
        if self.has_begun {
            self.settle();
            self.capture.keep();
        }
    }

    /// What happens to connections to an address where no frontend matches.
    pub fn verdict_without_frontend(&self, ip: IpAddr) -> Option<Verdict> {
        self.writer.verdict_without_frontend(ip)
    }

    /// What there is to tell a person about objects that do not fit together: so many of them, and how many there are.
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

    /// What others may look at while the proxy runs.
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
        // The kernel's rules, and its programs, are left to a successor, which may be of another version.
        drop((capture, at_socket));
        dataplane.drain(grace)
    }
}
