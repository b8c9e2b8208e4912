//! Attaching socket mode's programs in the place of those that an earlier agent has left, or removing these.

use std::io;
use std::sync::Arc;

use sluice_capture::socket::{AtSockets, Ledger, Sockets};
use sluice_capture::tproxy;
use sluice_socket::{Census, Links, Programs};
use sluice_socket_maps::Maps;
use sluice_table::Table;
use tracing::{info, warn};

use super::sweep::Sweeper;
use super::{AtSocketConfig, Looks};

/// What decides at sockets, and what looks after these.
pub(super) struct Attached {
    /// What is told of changes.
    pub(super) sockets: Box<dyn AtSockets>,
    /// What is told of what is gone.
    pub(super) sweeper: Sweeper,
    /// Whether it is still there.
    pub(super) links: Links,
    /// Which sockets it has connected.
    pub(super) census: Census,
}

/// Why nothing is decided at sockets.
pub(super) struct NotAttached {
    /// As people are told.
    pub(super) reason: String,
    /// An agent that is about to be replaced still does it.
    pub(super) is_busy: bool,
}

/// Says why sockets may be left that nobody looks after any more, where there is a reason.
pub(crate) fn warn_of_left(left: Option<&str>) {
    if let Some(left) = left {
        warn!("connected UDP sockets may wait for their endpoints once these go: {left}");
    }
}

/// Has programs decide at sockets, in the place of those that an earlier agent has left; or says why not, and takes care
/// that none do.
pub(super) fn attach(config: &AtSocketConfig, table: &Table) -> Result<(Attached, Looks), NotAttached> {
    let not = |reason: String| NotAttached { reason, is_busy: false };
    let attach = || -> Result<(Attached, Looks), NotAttached> {
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
        let io = |error: io::Error| not(error.to_string());
        let (links, census) = (attached.links(), attached.census().map_err(io)?);
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
        let sockets = Box::new(Sockets::new(maps, table, ledger, config.host_only));
        Ok((Attached { sockets, sweeper, links, census }, looks))
    };
    let error = match attach() {
        Ok((attached, looks)) => {
            let cgroup = looks.cgroup.display();
            info!("connections of sockets below {cgroup} are decided when they are made");
            return Ok((attached, looks));
        }
        Err(error) if error.is_busy => return Err(error),
        Err(error) => error,
    };
    match sluice_socket::remove(&config.pins) {
        Ok(removed) => {
            warn_of_left(removed.left.as_deref());
            Err(error)
        }
        Err(left) => Err(not(format!("{}; what is attached cannot be removed: {left}", error.reason))),
    }
}
