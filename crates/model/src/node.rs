//! The node the agent runs on, as far as the rules need it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// A Node object, reduced to what decides topology, nodePorts and health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; absent or empty means the node has no zone.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type `InternalIP`, then `ExternalIP`, as kube-proxy orders them
    /// (`GetNodeHostIPs`): the first of each family is the node's primary address.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`: where pods of this node live.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether load balancers may send to this node: not being deleted and without the taint
    /// `ToBeDeletedByClusterAutoscaler` (kube-proxy `NodeEligibleHandler`).
    pub eligible: bool,
}

impl Node {
    /// This Node, with addresses and ranges that it lacks taken from `before`. A Node that is created anew
    /// has none until a controller has assigned them; they are not gone (kube-proxy:
    /// `NodeManager.OnNodeChange` ignores such a Node).
    #[must_use]
    pub fn or_as(mut self, before: &Self) -> Self {
        if self.addresses.is_empty() {
            self.addresses.clone_from(&before.addresses);
        }
        if self.pod_cidrs.is_empty() {
            self.pod_cidrs.clone_from(&before.pod_cidrs);
        }
        self
    }
}
