//! The writer's settings: what the rules depend on besides the objects.

use std::sync::Arc;

use sluice_model::{Family, Node};

use crate::NodePortAddresses;

/// Settings of the [`Writer`](crate::Writer).
#[derive(Debug, Clone)]
pub struct WriterConfig {
    /// Name of this node, as `nodeName` of endpoints and node hints spell it.
    pub node: Arc<str>,
    /// Where nodePorts are served.
    pub node_port_addresses: NodePortAddresses,
    /// Endpoints see the node's address on every connection to a cluster IP (kube-proxy:
    /// `--masquerade-all`).
    pub masquerade_all: bool,
    /// Whether pods of this node can be told from other clients.
    pub local_pods: LocalPods,
    /// Whether what we send to a frontend comes back to us: true in bind mode; false if the capture
    /// recognizes our packets. If true, endpoints that are a frontend of their own Service are left out, and
    /// all endpoints see the node's address.
    pub frontends_lead_back: bool,
    /// Whether endpoints that keep failing are ejected for a while.
    pub passive_health: bool,
    /// How many clients one service port remembers for session affinity before it evicts the one that is the
    /// longest unused. Each takes about 100 bytes if the map is nearly full. All service ports together
    /// remember at most twice as many, plus 1,024 for each service port.
    pub affinity_clients: usize,
}

/// Whether pods of this node can be told from other clients (kube-proxy: whether a local detector is
/// implemented, `--detect-local-mode` and the settings that it needs). If not, no client is ever
/// [`Origin::LocalPod`](crate::Origin::LocalPod), and connections to cluster IPs keep their source address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalPods {
    /// In both families.
    Detected,
    /// In these families: those that have a CIDR in the settings.
    DetectedIn(Vec<Family>),
    /// In the families of the Node's pod CIDRs.
    DetectedByNodeCidrs,
}

impl LocalPods {
    pub(super) fn are_detected(&self, family: Family, node: Option<&Node>) -> bool {
        match self {
            Self::Detected => true,
            Self::DetectedIn(families) => families.contains(&family),
            Self::DetectedByNodeCidrs => {
                node.is_some_and(|node| node.pod_cidrs.iter().any(|cidr| Family::of(cidr.addr()) == family))
            }
        }
    }
}

impl WriterConfig {
    /// As many as kube-proxy remembers for a service port with 13 endpoints (65,535 for each): slightly less
    /// than the map holds before it doubles.
    const AFFINITY_CLIENTS: usize = 900_000;

    /// The default settings, on a node with this name.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            node_port_addresses: NodePortAddresses::Primary,
            masquerade_all: false,
            local_pods: LocalPods::Detected,
            frontends_lead_back: true,
            passive_health: true,
            affinity_clients: Self::AFFINITY_CLIENTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_detector() {
        let node = |cidrs: &[&str]| Node {
            name: "here".into(),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            eligible: true,
        };
        let (v4, none) = (node(&["10.244.1.0/24"]), node(&[]));
        #[rustfmt::skip]
        let cases = [
            ("by interface: both",                    LocalPods::Detected, Some(&none), [true, true]),
            ("by CIDR: the families given",           LocalPods::DetectedIn(vec![Family::V6]), Some(&v4), [false, true]),
            ("no CIDR at all: neither",               LocalPods::DetectedIn(vec![]), Some(&v4), [false, false]),
            ("by the Node: what it has",              LocalPods::DetectedByNodeCidrs, Some(&v4), [true, false]),
            ("by the Node, before it is known",       LocalPods::DetectedByNodeCidrs, None, [false, false]),
        ];
        for (name, local_pods, node, wanted) in cases {
            let found = [Family::V4, Family::V6].map(|family| local_pods.are_detected(family, node));
            assert_eq!(found, wanted, "{name}");
        }
    }
}
