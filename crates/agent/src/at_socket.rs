//! Socket mode's programs, as an agent has them: attached in the place of an earlier agent's, or removed.
//!
//! `sweep`: ending sockets that lead nowhere any more.

mod sweep;

use std::path::PathBuf;

use sluice_capture::socket::{AtSockets, Sockets};
use sluice_capture::tproxy;
use sluice_socket::Programs;
use sluice_socket_maps::{Capacity, Maps};
use sluice_table::Table;

pub(crate) use self::sweep::Sweeper;

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

/// Why nothing is decided at sockets.
pub(crate) struct NotAttached {
    /// As people are told.
    pub(crate) reason: String,
    /// An agent that is about to be replaced still does it.
    pub(crate) is_busy: bool,
}

/// Has programs decide at sockets, in the place of those that an earlier agent has left; or says why not, and takes care
/// that none do.
pub(crate) fn attach(
    config: &AtSocketConfig,
    table: &Table,
) -> Result<(Box<dyn AtSockets>, Sweeper), NotAttached> {
    let not = |reason: String| NotAttached { reason, is_busy: false };
    let attach = || -> Result<(Box<dyn AtSockets>, Sweeper), NotAttached> {
        let root = sluice_socket::cgroup_root;
        let cgroup = config.cgroup.clone().map_or_else(root, Ok).map_err(|error| not(error.to_string()))?;
        let config = sluice_socket::Config { cgroup, pins: config.pins.clone(), capacity: CAPACITY };
        let mut attached = Programs::attach(&config).map_err(|error| NotAttached {
            is_busy: matches!(error, sluice_socket::Error::Busy(_)),
            reason: error.to_string(),
        })?;
        attached.set_relay_mark(tproxy::marks::UPSTREAM);
        let sweeper = attached.census().and_then(|census| Sweeper::start(census, table));
        let sweeper = sweeper.map_err(|error| not(error.to_string()))?;
        let maps = Maps::adopt(attached).map_err(|error| not(error.to_string()))?;
        Ok((Box::new(Sockets::new(maps, table)), sweeper))
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
