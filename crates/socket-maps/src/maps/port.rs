//! Service ports as whoever knows the table wants them.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_model::Frontend;
use sluice_table::{AtSocket, SetName, SocketOutcomes};

use crate::layout::set_flags;

/// A service port, by a number of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey(pub u64);

/// A service port as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// Its frontends, and what happens to connections there. What is the same as no entry needs not be here.
    pub frontends: Vec<(Frontend, SocketOutcomes)>,
    /// The endpoints for traffic policy Cluster; looked at only where an outcome names the set.
    pub cluster: Vec<SocketAddr>,
    /// Those for traffic policy Local.
    pub local: Vec<SocketAddr>,
    /// The endpoints that serve whom they have, of UDP: flows to one that no set has any more stay there.
    pub serving: Vec<SocketAddr>,
    /// Whether any is chosen, with equal chances, instead of turns.
    pub is_random: bool,
    /// After how long without a new connection a client loses its endpoint, where clients keep theirs; only of TCP.
    pub affinity: Option<Duration>,
}

impl Port {
    pub(super) fn set(&self, name: SetName) -> &[SocketAddr] {
        match name {
            SetName::Cluster => &self.cluster,
            SetName::Local => &self.local,
        }
    }

    pub(super) fn set_flags(&self) -> u32 {
        if self.is_random { set_flags::RANDOM } else { 0 }
    }

    /// The same in milliseconds, 0 where clients do not. Kubernetes has no more than a day.
    pub(super) fn timeout_ms(&self) -> u32 {
        let millis = |timeout: Duration| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        self.affinity.map_or(0, millis)
    }

    pub(super) fn names(&self, name: SetName) -> bool {
        let is_named = |outcome: AtSocket| outcome == AtSocket::Balance(name);
        self.frontends.iter().any(|(_, outcomes)| is_named(outcomes.node) || is_named(outcomes.pod))
    }
}
