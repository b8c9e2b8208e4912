//! Service ports as the owner of the table wants them.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_model::Frontend;
use sluice_table::{AtSocket, SetName, SocketOutcomes};

use crate::layout::set_flags;

/// Identifies a service port, by a number of the caller's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey(pub u64);

/// The wanted state of a service port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// Its frontends and their outcomes. A frontend whose outcome equals that of no entry may be left out.
    pub frontends: Vec<(Frontend, SocketOutcomes)>,
    /// The endpoints for traffic policy Cluster; used only if an outcome names the set.
    pub cluster: Vec<SocketAddr>,
    /// The endpoints for traffic policy Local.
    pub local: Vec<SocketAddr>,
    /// The UDP endpoints that still serve: flows to one that no set contains any more stay with it.
    pub serving: Vec<SocketAddr>,
    /// Whether endpoints are chosen at random, with equal probability, instead of round robin.
    pub is_random: bool,
    /// How long a client may make no new connection before it loses its endpoint, with session affinity; TCP
    /// only.
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

    /// The affinity timeout in milliseconds; 0 without affinity. Kubernetes allows at most a day.
    pub(super) fn timeout_ms(&self) -> u32 {
        let millis = |timeout: Duration| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        self.affinity.map_or(0, millis)
    }

    pub(super) fn names(&self, name: SetName) -> bool {
        let is_named = |outcome: AtSocket| outcome == AtSocket::Balance(name);
        self.frontends.iter().any(|(_, outcomes)| is_named(outcomes.node) || is_named(outcomes.pod))
    }
}
