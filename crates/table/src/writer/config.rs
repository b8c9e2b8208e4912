//! What the rules need to know besides the objects.

use std::sync::Arc;

use crate::NodePortAddresses;

/// Settings of the [`Writer`](crate::Writer).
#[derive(Debug, Clone)]
pub struct WriterConfig {
    /// Name of the node this runs on, as `nodeName` of endpoints and node hints spell it.
    pub node: Arc<str>,
    /// Where nodePorts are served.
    pub node_port_addresses: NodePortAddresses,
    /// Endpoints see the node's address on every connection to a cluster IP (kube-proxy:
    /// `--masquerade-all`).
    pub masquerade_all: bool,
    /// Whether there is a way to tell pods of this node from other clients (kube-proxy: a local
    /// detector is implemented, `--detect-local-mode` and what it needs). Without one no client is
    /// ever [`Origin::LocalPod`](crate::Origin::LocalPod), and connections to cluster IPs keep
    /// their source address.
    pub detects_local_pods: bool,
    /// Whether endpoints that failed several connects in a row are passed over for a while.
    pub passive_health: bool,
    /// How many clients one service port remembers for session affinity before it forgets the one
    /// unseen for longest. About 100 bytes each.
    pub affinity_clients: usize,
}

impl WriterConfig {
    /// The defaults, on a node of this name.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            node_port_addresses: NodePortAddresses::Primary,
            masquerade_all: false,
            detects_local_pods: true,
            passive_health: true,
            affinity_clients: 65_536,
        }
    }
}
