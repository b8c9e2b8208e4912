//! TPROXY mode: nftables and policy routing bring all of a node's traffic for Services to the workers.
//!
//! The rules of the nftables table `inet sluice` do not depend on the Services: frontends are elements of its
//! maps, which are changed by difference, one transaction per step. Captured packets are marked, and a policy
//! rule for the mark delivers them on this node whatever their destination. Connections that are refused or
//! dropped never reach a worker. A second table, `bridge sluice`, has no elements of ours.
//!
//! * `elements`, `wanted`, `pods`: which elements there should be. `ruleset`: the rules; `lifetimes`: how long
//!   the entries made by packets live. `marks`: the meaning of marks. `script`, `listing`: the input and output
//!   of nft. None of these does I/O.
//! * `nft`, `netlink`, and based on the latter `generation` and `changes`: access to the kernel.
//! * `table`, `bridge`: maintain the tables. `routing`: maintains policy rules and routes. `mark_rules`: lists
//!   those of others.
//! * `owner`: which of several agents does all this. `shared_listeners`: the sockets of one that hangs.
//!   `settings`: settings of the kernel, and their former values. `bridge_netfilter`: maintains two of them.
//! * `crowding`: checks how full the sets are that packets fill. `counters`: statistics. `lines`: limits the
//!   rate of log lines.
//! * `addresses`: the node's addresses. `leftovers`: removes elements that block a starting agent. `cleanup`:
//!   removes everything.
//!
//! All of it blocks, and belongs on one thread.

mod addresses;
mod bridge;
mod bridge_netfilter;
mod changes;
mod cleanup;
mod conntrack;
mod counters;
mod crowding;
mod elements;
mod error;
mod generation;
mod leftovers;
mod lifetimes;
mod lines;
mod listed;
mod listing;
mod local_routes;
mod mark_rules;
pub mod marks;
mod netlink;
mod nft;
mod owner;
mod pods;
mod retry;
mod routing;
mod ruleset;
mod script;
mod settings;
mod shared_listeners;
mod succession;
mod table;
mod wanted;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{debug, info, warn};

pub use addresses::NodeAddresses;
use bridge_netfilter::BridgeNetfilter;
pub use cleanup::{Cleaned, cleanup};
use conntrack::Conntrack;
use counters::Part;
pub use counters::{Counters, Stats};
use crowding::Crowding;
pub use error::Error;
pub use generation::NftablesWatch;
pub use leftovers::{Leftovers, Released};
use lines::Lines;
pub use local_routes::LocalRoutes;
pub use mark_rules::{MarkRule, others_mark_rules};
pub use owner::Tenure;
use retry::Retry;
use routing::Routing;
pub use routing::{ROUTING_TABLE, RULE_PRIORITY};
use ruleset::TABLE;
use settings::Settings;
pub use settings::{Prepared, prepare};
use table::{Outcome, Table};
use wanted::Wanted;

use crate::{Capture, Change};

/// The configuration of the capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where workers listen.
    pub ports: Ports,
    /// How to tell this node's pods from other clients.
    pub local_pods: LocalPods,
    /// The networks of pods: connections to endpoints there are not tracked.
    pub cluster_cidrs: Vec<IpNet>,
    /// Whether the kernel's connection tracking sees captured traffic.
    pub track: bool,
    /// Whether the rules may use connection tracking for what they cannot know otherwise. Such rules enable it
    /// for the whole network namespace. If this is not set, they use it only once it is found to be enabled, as
    /// it is on most nodes.
    pub asks_conntrack: bool,
    /// Whether to keep `net.bridge.bridge-nf-call-iptables` and `-ip6tables` at 0, for pods on Linux bridges.
    pub bridge_netfilter_off: bool,
    /// The ephemeral ports of pods' kernels. Workers never use them for a socket that has a client's address.
    pub pod_ports: RangeInclusive<u16>,
    /// How long workers keep UDP flows. The rules' entries for them live a little longer.
    pub flow_idle: FlowIdle,
}

/// How long a UDP flow may be silent in both directions before a worker ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowIdle {
    /// Any flow.
    pub any: Duration,
    /// A flow that was answered and has lasted for two seconds.
    pub conversation: Duration,
}

/// The ports on 127.0.0.1 and ::1 at which workers receive captured packets, by the client's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// For all other clients.
    pub outside: u16,
    /// For this node's pods.
    pub local_pod: u16,
    /// For this node's processes.
    pub node: u16,
}

/// `10265, 10266 and 10267`
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} and {}", self.outside, self.local_pod, self.node)
    }
}

impl Ports {
    /// Three consecutive ports.
    pub fn from_first(first: u16) -> Self {
        Self { outside: first, local_pod: first.saturating_add(1), node: first.saturating_add(2) }
    }

    /// The three ports that follow these (1), the three after that (2), and so on.
    fn beyond(self, number: u16) -> Option<Self> {
        let on = |port: u16| port.checked_add(number.checked_mul(3)?);
        Some(Self { outside: on(self.outside)?, local_pod: on(self.local_pod)?, node: on(self.node)? })
    }
}

/// How this node's pods are told from other clients (kube-proxy: `--detect-local-mode`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalPods {
    /// Not at all.
    None,
    /// By address.
    Cidrs(Vec<IpNet>),
    /// By address, in the CIDRs given to [`Capture::set_node_pod_cidrs`].
    NodeCidrs,
    /// By the interface on which their packets arrive.
    Interface {
        /// Its name or a prefix of names: `cni0`, `veth*`.
        pattern: String,
    },
}

/// The TPROXY mode. Dropping it leaves everything in the kernel as it is; see [`cleanup()`].
#[derive(Debug)]
pub struct Tproxy {
    config: Config,
    wanted: Wanted,
    table: Table,
    table_retry: Retry,
    routing: Routing,
    routing_retry: Retry,
    /// Whether the wanted state is known.
    has_begun: bool,
    bridge_netfilter: Option<BridgeNetfilter>,
    conntrack: Conntrack,
    settings: Settings,
    crowding: Crowding,
    counters: Arc<Counters>,
    /// Log lines about damage by others that was repaired.
    repairs: Lines,
    /// Log lines about failures and recoveries.
    troubles: Lines,
    addresses: NodeAddresses,
}

impl Tproxy {
    /// Prepares the capture: captured packets are delivered from now on, but none are captured yet, and settings
    /// of the kernel are applied. Leftovers of an earlier run stay until the first [`Capture::change`].
    ///
    /// # Errors
    /// The kernel or nft does not support it, or does not allow it.
    pub fn start(mut config: Config) -> Result<Self, Error> {
        check_interface(&config.local_pods)?;
        let version = nft::run(&["--version"], "")?;
        debug!(version = %String::from_utf8_lossy(&version).trim(), "nft is here");
        let mut conntrack = Conntrack::default();
        config.asks_conntrack |= conntrack.is_on(Instant::now()) || Conntrack::was_asked();
        let counters = Arc::<Counters>::default();
        let table = Table::open(&config, Arc::clone(&counters))?;
        let crowding = Crowding::open(Arc::clone(&counters))?;
        let mut routing = Routing::open()?;
        let (mut repairs, troubles) = (Lines::default(), Lines::default());
        routing.ensure(&mut repairs, Instant::now()).1?;
        let mut settings = Settings::open()?;
        settings.keep(Instant::now());
        let mut wanted = Wanted::default();
        wanted.set_untracked(&config.cluster_cidrs);
        if let LocalPods::Cidrs(cidrs) = &config.local_pods {
            wanted.set_local_pods(cidrs);
        }
        let (table_retry, routing_retry) = (Retry::default(), Retry::default());
        let bridge_netfilter = config.bridge_netfilter_off.then(BridgeNetfilter::default);
        Ok(Self {
            config,
            wanted,
            table,
            table_retry,
            routing,
            routing_retry,
            has_begun: false,
            bridge_netfilter,
            conntrack,
            settings,
            crowding,
            counters,
            repairs,
            troubles,
            addresses: NodeAddresses::watch()?,
        })
    }

    /// Whether this agent is the owner of the rules.
    pub fn tenure(&self) -> Arc<Tenure> {
        Arc::clone(self.table.owner().tenure())
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// The counters, shared with other threads.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Checks whether this agent is the owner, and becomes the owner if it is its turn.
    fn is_owner(&mut self, now: Instant) -> bool {
        let was_owner = self.table.owner().is_current();
        if !self.has_begun || !(was_owner || self.table_retry.is_due(now)) {
            return false;
        }
        let looked = self.table.look_for_owner();
        let ports = self.table.owner().ports();
        if ports != self.config.ports {
            self.config.ports = ports;
            self.table.reconfigure(&self.config);
        }
        match looked {
            Ok(true) => true,
            Ok(false) => {
                self.leave();
                false
            }
            Err(error) => {
                self.note_table(Err(error), now);
                was_owner
            }
        }
    }

    /// Another agent's state is not this agent's failure.
    fn leave(&mut self) {
        self.counters.success(Part::Table);
        self.counters.success(Part::Routing);
        self.table_retry.succeeded();
        self.routing_retry.succeeded();
    }

    /// Updates the node's own addresses. Returns whether they have changed.
    fn look_at_addresses(&mut self) -> bool {
        let changed = self.addresses.changed();
        if let Some(addresses) = &changed {
            self.wanted.set_node_addresses(addresses);
        }
        changed.is_some()
    }

    /// Whether connection tracking has just been found to be enabled, so that the rules change.
    fn notices_conntrack(&mut self, now: Instant) -> bool {
        let is_news = !self.config.asks_conntrack && self.conntrack.is_on(now);
        if is_news {
            info!(
                "this node's connections are tracked by now, and the rules ask connection tracking about those of others"
            );
            self.config.asks_conntrack = true;
            self.table.reconfigure(&self.config);
        }
        is_news
    }

    /// Applies the wanted state, unless that has failed and the retry is not due.
    fn apply(&mut self, now: Instant) {
        self.wanted.settle_pods();
        if self.table_retry.is_due(now) {
            let outcome = self.table.apply(&mut self.wanted);
            self.note_table(outcome, now);
        }
    }

    fn note_table(&mut self, outcome: Result<Outcome, Error>, now: Instant) {
        match outcome {
            Ok(outcome) => {
                match outcome {
                    Outcome::Nothing => {}
                    Outcome::Edited(elements) => debug!(elements, "nftables changed"),
                    Outcome::Written(why) => info!("the nftables table inet {TABLE} is written: {why}"),
                    Outcome::Repaired(damage) => {
                        self.counters.repair();
                        let what = format_args!("the nftables table inet {TABLE} is repaired: {damage}");
                        self.repairs.warn(now, what);
                        self.settings.may_be_lost();
                    }
                }
                self.counters.success(Part::Table);
                if self.table_retry.succeeded() && self.troubles.admit(now) {
                    info!("nftables is as it is to be again");
                }
            }
            // The transaction came too late. Ownership is checked again first, next time.
            Err(Error::Replaced) => {}
            Err(error) => {
                self.counters.failure(Part::Table);
                if self.table_retry.failed(now, &error) && self.troubles.admit(now) {
                    warn!("changes of Services wait: {error}");
                }
            }
        }
    }

    /// Logs how many lines were suppressed.
    fn sum_up(&mut self, now: Instant) {
        if let Some(left_out) = self.repairs.sum_up(now) {
            warn!("{left_out} more lines about what others have changed on this node, and was mended");
        }
        if let Some(left_out) = self.troubles.sum_up(now) {
            warn!("{left_out} more lines about what could not be changed on this node, or could be later");
            // The line about a persistent failure may have been among them.
            if let Some(reason) = self.table_retry.reason() {
                warn!("changes of Services still wait: {reason}");
            }
            if let Some(reason) = self.routing_retry.reason() {
                warn!("captured packets are still lost: {reason}");
            }
        }
    }

    fn keep_settings(&mut self, now: Instant) {
        self.settings.keep(now);
        if let Some(bridge_netfilter) = &mut self.bridge_netfilter {
            bridge_netfilter.keep_off(&mut self.settings, &self.counters, now);
        }
    }

    fn keep_routing(&mut self, now: Instant) {
        if !(self.routing.has_changed() || self.routing_retry.is_pending()) || !self.routing_retry.is_due(now)
        {
            return;
        }
        let (added, outcome) = self.routing.ensure(&mut self.repairs, now);
        for item in &added {
            let what = format_args!("the {item} for captured packets was gone, and is back");
            self.repairs.warn(now, what);
        }
        if !added.is_empty() {
            self.counters.repair();
        }
        match outcome {
            Ok(()) => {
                self.counters.success(Part::Routing);
                if self.routing_retry.succeeded() && self.troubles.admit(now) {
                    info!("policy rules and routes are as they are to be again");
                }
            }
            Err(error) => {
                self.counters.failure(Part::Routing);
                if self.routing_retry.failed(now, &error) && self.troubles.admit(now) {
                    warn!("captured packets are lost: {error}");
                }
            }
        }
    }
}

impl Capture for Tproxy {
    fn change(&mut self, change: Change<'_>, now: Instant) {
        for state in change.withdraw {
            self.wanted.withdraw(state.frontend);
        }
        for state in change.offer {
            self.wanted.offer(state);
        }
        self.wanted.change_cluster_addresses(change.cluster_addresses);
        self.has_begun = true;
        self.look_at_addresses();
        if self.is_owner(now) {
            self.keep_settings(now);
            self.apply(now);
        }
    }

    fn keep(&mut self, now: Instant) {
        self.sum_up(now);
        let was_owner = self.table.owner().is_current();
        let has_other_addresses = self.look_at_addresses();
        if !self.is_owner(now) {
            return;
        }
        self.keep_routing(now);
        self.keep_settings(now);
        self.settings.keep_records(now);
        self.crowding.look(now);
        // The state that another agent left is no damage.
        if !was_owner || has_other_addresses || self.notices_conntrack(now) || self.table_retry.is_pending() {
            self.apply(now);
        } else {
            let outcome = self.table.check(&mut self.wanted, now);
            self.note_table(outcome, now);
        }
    }

    fn set_node_pod_cidrs(&mut self, cidrs: &[IpNet]) {
        let pod_networks: Vec<IpNet> = self.config.cluster_cidrs.iter().chain(cidrs).copied().collect();
        self.wanted.set_untracked(&pod_networks);
        if self.config.local_pods == LocalPods::NodeCidrs {
            self.wanted.set_local_pods(cidrs);
        }
        let now = Instant::now();
        if self.is_owner(now) {
            self.apply(now);
        }
    }
}

impl Drop for Tproxy {
    fn drop(&mut self) {
        self.table.owner().tenure().end();
    }
}

/// Checks that a pattern can be written into a rule unchanged.
fn check_interface(local_pods: &LocalPods) -> Result<(), Error> {
    let LocalPods::Interface { pattern } = local_pods else { return Ok(()) };
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    let is_allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '*' | '\\' | '/' | '$');
    // IFNAMSIZ, including the terminating zero.
    if (1..16).contains(&name.len()) && name.chars().all(is_allowed) {
        Ok(())
    } else {
        Err(Error::Interface(pattern.clone()))
    }
}
