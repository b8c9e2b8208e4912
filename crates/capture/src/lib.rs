//! Capture: makes packets for Service addresses reach the workers.
//!
//! A mode receives frontends with their verdicts and applies the difference. It does not decide who serves what,
//! and does not assume that bytes pass through this process.
//!
//! * [`bind`]: listens on the frontends' own addresses. Needs no privileges.
//! * [`tproxy`]: nftables and policy routing, for all of a node's traffic. Needs CAP_NET_ADMIN.
//! * [`socket`]: in addition to `tproxy`, decisions at the clients' sockets, before there is a packet.
//!
//! [`background`] runs a capture on a thread of its own. [`kube_proxy`] finds and removes what kube-proxy leaves
//! on a node. [`program`] runs the programs that change the system.

pub mod background;
pub mod bind;
pub mod kube_proxy;
pub mod program;
pub mod socket;
pub mod tproxy;

use std::time::Instant;

use ipnet::IpNet;
use sluice_table::{ClusterAddressChange, FrontendState};

/// A mode of capturing.
pub trait Capture {
    /// Applies a change. The table already has the offered frontends, and still has the withdrawn ones. Once
    /// this returns, no new connection arrives through a withdrawn one.
    fn change(&mut self, change: Change<'_>, now: Instant);

    /// Checks that the applied state is still in place, and retries failed changes, if either is due. Must be
    /// called several times a second.
    fn keep(&mut self, now: Instant);

    /// Sets this node's pod networks (`spec.podCIDRs` of its Node), which are known only after the apiserver has
    /// answered.
    fn set_node_pod_cidrs(&mut self, _cidrs: &[IpNet]) {}
}

/// The changes of the frontends in one step.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Frontends to remove.
    pub withdraw: &'a [FrontendState],
    /// Frontends that are new, or whose verdicts changed.
    pub offer: &'a [FrontendState],
    /// Cluster IPs that were added or removed, and the ranges that they come from.
    pub cluster_addresses: &'a ClusterAddressChange,
}
