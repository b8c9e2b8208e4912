//! Capture: making packets for Service addresses reach the workers.
//!
//! A mode is told frontends with their verdicts and makes the difference true; it keeps no opinion of
//! its own about who serves what, and does not assume that bytes pass through this process.
//!
//! * [`bind`]: listens on the frontends' own addresses. Needs no privileges.
//! * [`tproxy`]: nftables and policy routing, for all of a node's traffic. Needs CAP_NET_ADMIN.
//! * [`socket`]: beside `tproxy`, what is decided at the clients' sockets, before there is a packet.
//!
//! [`background`] runs one on a thread of its own. [`kube_proxy`] is about whose place is taken: what it leaves on a node, and removing that. [`program`] runs what
//! changes the system.

pub mod background;
pub mod bind;
pub mod kube_proxy;
pub mod program;
pub mod socket;
pub mod tproxy;

use std::time::Instant;

use ipnet::IpNet;
use sluice_table::{ClusterAddressChange, FrontendState};

/// A way of capturing.
pub trait Capture {
    /// Makes a change true: the table knows already what is offered, and still knows what is withdrawn.
    /// Once this returns, no new connection arrives through what was withdrawn.
    fn change(&mut self, change: Change<'_>, now: Instant);

    /// Looks whether what was made true still is, and tries again what did not work, as far as either
    /// is due. To be called several times a second.
    fn keep(&mut self, now: Instant);

    /// Learns what this node's pod networks are (`spec.podCIDRs` of its Node), which is only known once
    /// the apiserver has told.
    fn set_node_pod_cidrs(&mut self, _cidrs: &[IpNet]) {}
}

/// What changes about the frontends in one step.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Frontends that are to go.
    pub withdraw: &'a [FrontendState],
    /// Frontends that are new, or whose verdicts changed.
    pub offer: &'a [FrontendState],
    /// Cluster IPs that came or went, and ranges that they come from.
    pub cluster_addresses: &'a ClusterAddressChange,
}
