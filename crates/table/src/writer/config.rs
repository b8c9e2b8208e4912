//! What the rules need to know besides the objects.

use std::sync::Arc;

use sluice_model::{Family, Node};

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
    /// Whether pods of this node can be told from other clients.
    pub local_pods: LocalPods,
    /// Whether what we send to a frontend comes back to us: so it is where frontends are listened on, and
    /// not where the capture knows our packets. If so, an endpoint that is a frontend of its own
    /// Service is left out, and all endpoints see the node's address.
    pub frontends_lead_back: bool,
    /// Whether endpoints that keep failing are passed over for a while.
    pub passive_health: bool,
    /// How many clients one service port remembers for session affinity before it forgets the one
    /// unseen for longest. About 100 bytes each, where the map is nearly full. All service ports together remember twice as
    /// many, and 1,024 for each.
    pub affinity_clients: usize,
}

/// Whether there is a way to tell pods of this node from other clients (kube-proxy: whether a local detector
/// is implemented, `--detect-local-mode` and what it needs). Where there is none no client is ever
/// [`Origin::LocalPod`](crate::Origin::LocalPod), and connections to cluster IPs keep their source address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalPods {
    /// There is one for both families.
    Detected,
    /// There is one for these families: those that CIDRs are given of.
    DetectedIn(Vec<Family>),
    /// There is one for the families that the Node has pod CIDRs of.
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
    /// As many as kube-proxy remembers of a service port with 13 endpoints (65,535 of each), a little less than what the map
    /// has room for before it doubles.
    const AFFINITY_CLIENTS: usize = 900_000;

    /// The defaults, on a node of this name.
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
