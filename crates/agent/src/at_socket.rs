//! Socket mode's programs, as an agent has them: attached in the place of an earlier agent's, or removed.
//!
//! `sweep`: ending sockets that lead nowhere any more. `view`: what others may see.

mod sweep;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_capture::socket::{AtSockets, Ledger, Sockets};
use sluice_capture::tproxy;
use sluice_socket::Programs;
use sluice_socket_maps::{Capacity, Maps};
use sluice_table::Table;
use tracing::info;

/// How long the relay keeps a flow by default that was answered, as conntrack does.
const CONVERSATION_IDLE: Duration = Duration::from_secs(120);

pub(crate) use self::sweep::Sweeper;
pub(crate) use self::view::{Looks, View};

/// Where programs that decide at sockets are attached, and kept.
#[derive(Debug, Clone)]
pub struct AtSocketConfig {
    /// The cgroup: sockets that are made in it and below are decided about. None is the root of all.
    pub cgroup: Option<PathBuf>,
    /// Below this directory of a bpffs is what outlives the agent.
    pub pins: PathBuf,
    /// Whether only sockets of the node's own network are decided about.
    pub host_only: bool,
    /// Pods in which somebody listens at one of these ports are left alone; 0 is none.
    pub sidecar_ports: [u16; 2],
    /// How long an unconnected UDP socket keeps its endpoint while nothing is said.
    pub flow_idle: Duration,
    /// How many endpoints there may be, counted in each service port.
    pub endpoints: u32,
}

impl AtSocketConfig {
    /// Where Istio and Linkerd have what leaves a pod redirected to.
    pub const SIDECAR_PORTS: [u16; 2] = [15_001, 4_140];

    /// Those of 10,000 Services with ten endpoints each, and a tenth more.
    pub const ENDPOINTS: u32 = 110_000;

    /// Everything else as it is by default.
    pub fn new(cgroup: Option<PathBuf>, pins: PathBuf) -> Self {
        Self {
            cgroup,
            pins,
            host_only: false,
            sidecar_ports: Self::SIDECAR_PORTS,
            flow_idle: CONVERSATION_IDLE,
            endpoints: Self::ENDPOINTS,
        }
    }

    /// How much maps for so many endpoints hold. Those that are mapped have all of their memory from the start, 86 bytes
    /// an endpoint; that of frontends has it by use.
    pub fn capacity_for(endpoints: u32) -> Capacity {
        Capacity {
            frontends: (endpoints / 2).max(1 << 16),
            sets: (endpoints / 4).max(1 << 10),
            // Each set has a power of two of them. And the next version of the largest that there may be.
            slots: endpoints.saturating_mul(2).saturating_add(1 << 16),
            endpoints,
        }
    }
}

/// What decides at sockets, and what looks after these.
pub(crate) struct AtSocket {
    /// What is told of changes.
    pub(crate) sockets: Box<dyn AtSockets>,
    /// What is told of what is gone.
    pub(crate) sweeper: Sweeper,
    /// What others may see.
    pub(crate) looks: Looks,
}

/// Why nothing is decided at sockets.
pub(crate) struct NotAttached {
    /// As people are told.
    pub(crate) reason: String,
    /// An agent that is about to be replaced still does it.
    pub(crate) is_busy: bool,
}

/// Has programs decide at sockets, in the place of those that an earlier agent has left; or says why not, and takes care
/// that none do.
pub(crate) fn attach(config: &AtSocketConfig, table: &Table) -> Result<AtSocket, NotAttached> {
    let not = |reason: String| NotAttached { reason, is_busy: false };
    let attach = || -> Result<AtSocket, NotAttached> {
        let root = sluice_socket::cgroup_root;
        let cgroup = config.cgroup.clone().map_or_else(root, Ok).map_err(|error| not(error.to_string()))?;
        let place = sluice_socket::Config {
            cgroup,
            pins: config.pins.clone(),
            capacity: AtSocketConfig::capacity_for(config.endpoints),
        };
        let mut attached = Programs::attach(&place).map_err(|error| NotAttached {
            is_busy: matches!(error, sluice_socket::Error::Busy(_)),
            reason: error.to_string(),
        })?;
        attached.set_relay_mark(tproxy::marks::UPSTREAM);
        attached.set_sidecar_ports(config.sidecar_ports);
        attached.set_flow_idle(config.flow_idle);
        let io = |error: std::io::Error| not(error.to_string());
        let sweeper = Sweeper::start(attached.census().map_err(io)?, table).map_err(io)?;
        let accounts = attached.accounts().map_err(io)?;
        let ledger = Arc::new(Ledger::new(accounts));
        let looks = Looks {
            census: attached.census().map_err(io)?,
            frontends: attached.look_up().map_err(io)?,
            ledger: Arc::clone(&ledger),
            swept: Arc::clone(sweeper.swept()),
            capacity: place.capacity,
            cgroup: place.cgroup,
            host_only: config.host_only,
        };
        let maps = Maps::adopt(attached).map_err(io)?;
        Ok(AtSocket {
            sockets: Box::new(Sockets::new(maps, table, ledger, config.host_only)),
            sweeper,
            looks,
        })
    };
    let error = match attach() {
        Ok(attached) => {
            let cgroup = attached.looks.cgroup.display();
            info!("connections of sockets below {cgroup} are decided when they are made");
            return Ok(attached);
        }
        Err(error) if error.is_busy => return Err(error),
        Err(error) => error,
    };
    match sluice_socket::remove(&config.pins) {
        Ok(_) => Err(error),
        Err(left) => Err(not(format!("{}; what is attached cannot be removed: {left}", error.reason))),
    }
}
