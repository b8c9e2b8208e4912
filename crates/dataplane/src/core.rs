//! State that every part of a worker uses: one value, owned by the worker and lent to its TCP and UDP sides.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;
use sluice_model::{Family, Protocol};
use sluice_table::{FrontendKey, Reader};

use crate::client::{ClientKey, ListenerKind};
use crate::connection_log::ConnectionLog;
use crate::descriptors::Descriptors;
use crate::local_ports::LocalPorts;
use crate::stats::WorkerStats;
use crate::tcp::exhausted::Exhausted;
use crate::tcp::orphans::Orphans;
use crate::tcp::port_shares::PortShares;
use crate::throttle::{OnceAMinute, Throttle};
use crate::timers::Timers;
use crate::token::SlotId;
use crate::transparent::Marks;
use crate::udp::recall::Recall;

/// The owner of a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerOwner {
    Session(SlotId),
    AcceptRetry,
    UnusedPipes,
    UdpHousekeeping,
}

/// Rate limits for log messages about single connections, by kind.
#[derive(Debug, Default)]
pub(crate) struct Says {
    /// No endpoint answers.
    pub(crate) unanswered: Throttle,
    /// A connection to an endpoint or a flow cannot be started.
    pub(crate) unstarted: Throttle,
    /// No port is left towards an endpoint.
    pub(crate) exhausted: Throttle,
    /// A socket cannot be registered.
    pub(crate) unregistered: Throttle,
    /// There is no port towards an endpoint, or a client has used up its share of those ports.
    pub(crate) no_port: OnceAMinute,
}

/// State that every part of a worker uses.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) registry: Registry,
    pub(crate) timers: Timers<TimerOwner>,
    pub(crate) reader: Reader,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) descriptors: Arc<Descriptors>,
    pub(crate) local_ports: LocalPorts,
    /// Which clients hold the local ports towards endpoints that see this node's address.
    pub(crate) port_shares: PortShares,
    /// The paths on which no port was left a moment ago.
    pub(crate) exhausted: Exhausted,
    /// The machine's orphaned TCP sockets: they decide how much ended sessions may leave to the kernel.
    pub(crate) orphans: Orphans,
    /// The marks of our sockets if traffic is captured.
    pub(crate) marks: Option<Marks>,
    /// How long a half-closed TCP session may be idle.
    pub(crate) half_closed_idle: Duration,
    /// The log of ended connections.
    pub(crate) log: Option<ConnectionLog>,
    /// Whether Service ports have their own counts of times and datagrams.
    pub(crate) service_times: bool,
    /// The endpoints of flows that come from another worker or agent.
    pub(crate) recall: Arc<Recall>,
    pub(crate) says: Says,
    /// The time at which the current turn of the loop began, or a later one: see [`Core::refresh`].
    pub(crate) now: Instant,
}

impl Core {
    /// Reads the clock. A turn of the loop may be long, so delays must not be measured from its beginning.
    pub(crate) fn refresh(&mut self) -> Instant {
        self.now = Instant::now();
        self.now
    }

    /// The client that an address counts as.
    pub(crate) fn client_key(&self, kind: ListenerKind, ip: IpAddr) -> ClientKey {
        kind.client_key(ip, self.reader.detects_local_pods(Family::V6))
    }

    /// Whether a connection to an endpoint would come back to us as a new one, in a loop until resources run
    /// out: the endpoint is a frontend, and our own packets cannot be told from others.
    pub(crate) fn leads_back(&mut self, endpoint: SocketAddr, protocol: Protocol) -> bool {
        let key = FrontendKey::new(endpoint.ip(), endpoint.port(), protocol);
        let leads_back = self.marks.is_none() && self.reader.lookup(key).is_some();
        self.stats.endpoint_loops.add(leads_back.into());
        leads_back
    }
}
