//! Attaches socket mode's programs in place of those of an earlier agent.

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

/// Attached programs, and the threads that look after their sockets.
pub(super) struct Attached {
    // Threads first, because fields are dropped in this order: `sockets` holds the lock on the pins, and
    // without it the maps belong to another agent; nobody here may write to them then.
    /// Learns which endpoints and frontends are gone.
    pub(super) sweeper: Sweeper,
    /// Tells the programs which namespaces are pods', for as long as it is held.
    _watcher: Watcher,
    /// Learns of changes.
    pub(super) sockets: Box<dyn AtSockets>,
    /// Tells whether the programs are still attached.
    pub(super) links: Links,
    /// Knows which sockets the programs have connected.
    pub(super) census: Census,
}

/// The result of an attempt to attach.
pub(super) enum Attempt {
    Done,
    /// An agent that is about to be replaced still holds the programs.
    Busy(String),
    /// Nothing is to be attached, or not here.
    None,
}

/// Why the programs were not attached.
pub(super) struct NotAttached {
    /// The reason, for people.
    pub(super) reason: String,
    pub(super) hindrance: Hindrance,
}

/// Warns of sockets that nobody looks after any more, if `left` has a reason for that.
pub(crate) fn warn_of_left(left: Option<&str>) {
    if let Some(left) = left {
        warn!("connected UDP sockets may wait for their endpoints once these go: {left}");
    }
}

/// What kind of obstacle was in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// An agent that is about to be replaced still holds the programs.
    Busy,
    /// The system is short of something or was disturbed: the same attempt may succeed in a moment.
    Passing,
    /// The same attempt would fail again.
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

/// Whether taking over an earlier agent's programs would stop all translation until the table is complete.
pub(super) fn would_begin_anew(config: &AtSocketConfig) -> bool {
    place_of(config).is_ok_and(|place| Programs::would_begin_anew(&place))
}

/// Attaches the programs in place of those of an earlier agent. On failure, an earlier agent's programs go on
/// with what their maps hold: a caller that does not try again has to remove them.
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
