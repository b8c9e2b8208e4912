//! Attaching socket mode's programs in the place of those that an earlier agent has left.

use std::error::Error;
use std::io;
use std::sync::Arc;

use sluice_capture::socket::{AtSockets, Ledger, Sockets};
use sluice_capture::tproxy;
use sluice_socket::{Census, Links, Programs};
use sluice_socket_maps::Maps;
use sluice_table::Table;
use tracing::{info, warn};

use super::namespaces::Watcher;
use super::sweep::Sweeper;
use super::{AtSocketConfig, Looks};

/// What decides at sockets, and what looks after these.
pub(super) struct Attached {
    // The threads first, as fields are dropped in this order: with the sockets goes the lock on the pins, and from then on the maps
    // are another agent's, into which nobody here is to write.
    /// What is told of what is gone.
    pub(super) sweeper: Sweeper,
    /// Tells it whose sockets they are, for as long as it is held.
    _watcher: Watcher,
    /// What is told of changes.
    pub(super) sockets: Box<dyn AtSockets>,
    /// Whether it is still there.
    pub(super) links: Links,
    /// Which sockets it has connected.
    pub(super) census: Census,
}

/// What came of attaching.
pub(super) enum Attempt {
    Done,
    /// An agent that is about to be replaced still has it.
    Busy(String),
    /// Nothing is to be attached, or not here.
    None,
}

/// Why nothing is decided at sockets.
pub(super) struct NotAttached {
    /// As people are told.
    pub(super) reason: String,
    pub(super) hindrance: Hindrance,
}

/// Says why sockets may be left that nobody looks after any more, where there is a reason.
pub(crate) fn warn_of_left(left: Option<&str>) {
    if let Some(left) = left {
        warn!("connected UDP sockets may wait for their endpoints once these go: {left}");
    }
}

/// How it is with what is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// An agent that is about to be replaced still decides.
    Busy,
    /// The system is short of something now, or was disturbed: the same may work in a moment.
    Passing,
    /// The same would fail again.
    Lasting,
}

impl NotAttached {
    fn new(error: &(dyn Error + 'static)) -> Self {
        let hindrance = match error.downcast_ref() {
            Some(sluice_socket::Error::Busy(_)) => Hindrance::Busy,
            _ if sluice_socket::passes(error) => Hindrance::Passing,
            _ => Hindrance::Lasting,
        };
        Self { reason: error.to_string(), hindrance }
    }
}

/// Where programs are attached and pinned, and how much their maps hold.
fn place_of(config: &AtSocketConfig) -> io::Result<sluice_socket::Config> {
    Ok(sluice_socket::Config {
        cgroup: config.cgroup.clone().map_or_else(sluice_socket::cgroup_root, Ok)?,
        pins: config.pins.clone(),
        capacity: AtSocketConfig::capacity_for(config.endpoints),
    })
}

/// Whether what an earlier agent has attached would decide nothing from now on, until all is known anew.
pub(super) fn would_begin_anew(config: &AtSocketConfig) -> bool {
    place_of(config).is_ok_and(|place| Programs::would_begin_anew(&place))
}

/// Has programs decide at sockets, in the place of those that an earlier agent has left; or says why not. What such an
/// agent has left goes on then by what is in its maps: whoever does not try again has to remove it.
pub(super) fn attach(config: &AtSocketConfig, table: &Table) -> Result<(Attached, Looks), NotAttached> {
    fn not(error: impl Error + 'static) -> NotAttached {
        NotAttached::new(&error)
    }
    let place = place_of(config).map_err(not)?;
    let mut attached = Programs::attach(&place).map_err(not)?;
    attached.set_relay_mark(tproxy::marks::UPSTREAM);
    attached.set_sidecar_ports(config.sidecar_ports);
    attached.set_flow_idle(config.flow_idle);
    let (links, census) = (attached.links(), attached.census().map_err(not)?);
    let ending = attached.census().map_err(not)?.with_names_in(&config.namespaces);
    let sweeper = Sweeper::start(ending, table).map_err(not)?;
    let watcher = Watcher::start(&attached, config).map_err(not)?;
    let host_only = watcher.is_node_alone();
    let accounts = attached.accounts().map_err(not)?;
    let ledger = Arc::new(Ledger::new(accounts));
    let looks = Looks {
        census: attached.census().map_err(not)?,
        frontends: attached.look_up().map_err(not)?,
        ledger: Arc::clone(&ledger),
        swept: Arc::clone(sweeper.swept()),
        names: Arc::clone(watcher.names()),
        pods: config.pods.clone(),
        detector: config.detector.clone(),
        capacity: place.capacity,
        cgroup: place.cgroup,
        host_only,
    };
    let maps = Maps::adopt(attached).map_err(not)?;
    let sockets = Box::new(Sockets::new(maps, table, ledger, host_only));
    info!("connections of sockets below {} are decided when they are made", looks.cgroup.display());
    Ok((Attached { sweeper, _watcher: watcher, sockets, links, census }, looks))
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_the_system_is_short_of_passes_and_what_it_lacks_lasts() {
        let answer = |errno: Errno| io::Error::from(errno);
        let map = |errno| sluice_socket::Error::Map { map: "sets".into(), source: answer(errno) };
        let program = |errno| sluice_socket::Error::Program {
            program: "sluice_connect4".into(),
            source: answer(errno),
            log: String::new(),
        };
        let no_cgroup = |errno| sluice_socket::Error::NoCgroup { path: "/sys".into(), source: answer(errno) };
        let cases = [
            (map(Errno::NOMEM), Hindrance::Passing),
            (map(Errno::PERM), Hindrance::Lasting),
            (program(Errno::AGAIN), Hindrance::Passing),
            (program(Errno::INVAL), Hindrance::Lasting),
            (no_cgroup(Errno::NFILE), Hindrance::Passing),
            (no_cgroup(Errno::NOENT), Hindrance::Lasting),
            (sluice_socket::Error::Busy("/pins".into()), Hindrance::Busy),
            (
                sluice_socket::Error::Foreign { path: "/pins".into(), found: "a file".into() },
                Hindrance::Lasting,
            ),
            (sluice_socket::Error::Object("no BTF".into()), Hindrance::Lasting),
        ];
        for (error, wanted) in cases {
            assert_eq!(NotAttached::new(&error).hindrance, wanted, "{error}");
        }
        assert_eq!(NotAttached::new(&answer(Errno::MFILE)).hindrance, Hindrance::Passing);
    }
}
