//! Socket mode's programs, as an agent has them: attached in the place of an earlier agent's, or removed.
//!
//! `sweep`: ending sockets that lead nowhere any more. `view`: what others may see.

mod sweep;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

use sluice_capture::socket::{AtSockets, Ledger, Sockets};
use sluice_capture::tproxy;
use sluice_socket::Programs;
use sluice_socket_maps::{Capacity, Maps};
use sluice_table::Table;

pub(crate) use self::sweep::Sweeper;
pub(crate) use self::view::{Looks, View};

/// Where programs that decide at sockets are attached, and kept.
#[derive(Debug, Clone)]
pub struct AtSocketConfig {
    /// The cgroup: sockets that are made in it and below are decided about. None is the root of all.
    pub cgroup: Option<PathBuf>,
    /// Below this directory of a bpffs is what outlives the agent.
    pub pins: PathBuf,
}

/// How much the maps hold: 10,000 Services with ten endpoints take a third of it, and 21 MB are taken in any case.
const CAPACITY: Capacity = Capacity { frontends: 65_536, sets: 32_768, slots: 1 << 19, endpoints: 1 << 17 };

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
        let config = sluice_socket::Config { cgroup, pins: config.pins.clone(), capacity: CAPACITY };
        let mut attached = Programs::attach(&config).map_err(|error| NotAttached {
            is_busy: matches!(error, sluice_socket::Error::Busy(_)),
            reason: error.to_string(),
        })?;
        attached.set_relay_mark(tproxy::marks::UPSTREAM);
        let io = |error: std::io::Error| not(error.to_string());
        let sweeper = Sweeper::start(attached.census().map_err(io)?, table).map_err(io)?;
        let accounts = attached.accounts().map_err(io)?;
        let ledger = Arc::new(Ledger::new(move |id| accounts.account(id)));
        let looks = Looks {
            census: attached.census().map_err(io)?,
            frontends: attached.look_up().map_err(io)?,
            ledger: Arc::clone(&ledger),
            swept: Arc::clone(sweeper.swept()),
            capacity: CAPACITY,
        };
        let maps = Maps::adopt(attached).map_err(io)?;
        Ok(AtSocket { sockets: Box::new(Sockets::new(maps, table, ledger)), sweeper, looks })
    };
    let error = match attach() {
        Ok(attached) => return Ok(attached),
        Err(error) if error.is_busy => return Err(error),
        Err(error) => error,
    };
    match sluice_socket::remove(&config.pins) {
        Ok(_) => Err(error),
        Err(left) => Err(not(format!("{}; what is attached cannot be removed: {left}", error.reason))),
    }
}
