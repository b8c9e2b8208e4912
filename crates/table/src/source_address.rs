//! The source address that an endpoint sees.

use sluice_model::{FrontendKind, TrafficPolicy};

use crate::{Client, Origin, Upstream};

/// Whose address a connection to an endpoint comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceAddress {
    /// The client's own address.
    Client,
    /// An address of the node, as the kernel chooses it (kube-proxy: masquerade).
    Node,
}

/// The node's settings about source addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Masquerade {
    /// Bind mode: replies to any address but the node's would not come back.
    pub(crate) always: bool,
    /// `--masquerade-all`: applies to cluster IPs only.
    pub(crate) all: bool,
    /// There is a local detector.
    pub(crate) detects_local_pods: bool,
}

/// The source address for a client at a kind of frontend, before the endpoint is known (see
/// [`SourceAddress::towards`]).
///
/// * Cluster IPs: the client's own, unless the client is known not to be a pod of this node, because replies
///   might then not come back through this node.
/// * External addresses, policy Cluster: the node's, because the endpoint may be on another node.
/// * External addresses, policy Local: the client's own; for a process of the node the node's, because its
///   source may be the load balancer's address.
/// * In bind mode always the node's.
pub(crate) fn source_address(
    kind: FrontendKind,
    origin: Origin,
    external_policy: TrafficPolicy,
    masquerade: Masquerade,
) -> SourceAddress {
    let rewritten = match (kind, external_policy) {
        _ if masquerade.always => true,
        (FrontendKind::ClusterIp, _) => {
            masquerade.all || (masquerade.detects_local_pods && origin != Origin::LocalPod)
        }
        (_, TrafficPolicy::Cluster) => true,
        (_, TrafficPolicy::Local) => origin == Origin::Node,
    };
    if rewritten { SourceAddress::Node } else { SourceAddress::Client }
}

impl SourceAddress {
    /// The source address towards one endpoint.
    ///
    /// * The node's if the endpoint is the client itself, which would not answer a connection from its own
    ///   address (hairpin).
    /// * The client's if the endpoint is a process of this node (a pod in its network). kube-proxy only marks
    ///   packets that are to be masqueraded. That happens in the postrouting hook, which packets that are
    ///   delivered on this node do not pass. Packets of the node's own processes do, on their way to lo.
    pub(crate) fn towards(self, client: Client, endpoint: &Upstream) -> Self {
        if client.ip == endpoint.address().ip() {
            Self::Node
        } else if endpoint.is_in_node_network() && client.origin != Origin::Node {
            Self::Client
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    use Origin::{LocalPod, Node, Outside};
    use SourceAddress as Source;
    use TrafficPolicy::{Cluster, Local};

    use super::*;
    use crate::upstream::tests::test_port;

    /// Name of the case, settings, kind of frontend, external policy, client, whether the endpoint
    /// is the client itself (`self`), a process of this node (`here`) or neither, the source address.
    type Case =
        (&'static str, &'static str, FrontendKind, TrafficPolicy, Origin, &'static str, SourceAddress);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("cluster IP: a local pod keeps its address",        "detector", ClusterIp, Cluster, LocalPod, "other", Source::Client),
        ("cluster IP: the node's processes get the node's",  "detector", ClusterIp, Cluster, Node, "other", Source::Node),
        ("cluster IP: outside clients get the node's",       "detector", ClusterIp, Cluster, Outside, "other", Source::Node),
        ("cluster IP: the external policy plays no part",    "detector", ClusterIp, Local, LocalPod, "other", Source::Client),
        ("cluster IP: masquerade-all covers local pods",     "detector masquerade-all", ClusterIp, Cluster, LocalPod, "other", Source::Node),
        ("cluster IP: masquerade-all without a detector",    "masquerade-all", ClusterIp, Cluster, Outside, "other", Source::Node),
        ("cluster IP without detector: outside keeps its",   "", ClusterIp, Cluster, Outside, "other", Source::Client),
        ("cluster IP without detector: the node keeps its",  "", ClusterIp, Cluster, Node, "other", Source::Client),
        ("cluster IP: hairpin of a local pod",               "detector", ClusterIp, Cluster, LocalPod, "self", Source::Node),
        ("cluster IP: hairpin without a detector",           "", ClusterIp, Cluster, Outside, "self", Source::Node),
        ("external Cluster: outside (nodePort)",             "detector", NodePort, Cluster, Outside, "other", Source::Node),
        ("external Cluster: outside (externalIP)",           "detector", ExternalIp, Cluster, Outside, "other", Source::Node),
        ("external Cluster: outside (loadBalancer)",         "detector", LoadBalancer, Cluster, Outside, "other", Source::Node),
        ("external Cluster: a local pod gets the node's too","detector", LoadBalancer, Cluster, LocalPod, "other", Source::Node),
        ("external Cluster: the node's processes",           "detector", NodePort, Cluster, Node, "other", Source::Node),
        ("external Cluster without detector",                "", NodePort, Cluster, Outside, "other", Source::Node),
        ("external Local: outside keeps its (nodePort)",     "detector", NodePort, Local, Outside, "other", Source::Client),
        ("external Local: outside keeps its (externalIP)",   "detector", ExternalIp, Local, Outside, "other", Source::Client),
        ("external Local: outside keeps its (loadBalancer)", "detector", LoadBalancer, Local, Outside, "other", Source::Client),
        ("external Local: a local pod keeps its",            "detector", LoadBalancer, Local, LocalPod, "other", Source::Client),
        ("external Local: the node's processes get the node's", "detector", LoadBalancer, Local, Node, "other", Source::Node),
        ("external Local: masquerade-all plays no part",     "detector masquerade-all", NodePort, Local, Outside, "other", Source::Client),
        ("external Local: hairpin of a short-circuited pod", "detector", LoadBalancer, Local, LocalPod, "self", Source::Node),
        ("frontends are listened on: no client keeps its",   "listens detector", ClusterIp, Cluster, LocalPod, "other", Source::Node),
        ("frontends are listened on: under policy Local neither", "listens", NodePort, Local, Outside, "other", Source::Node),
        ("external Local without detector: outside keeps its", "", NodePort, Local, Outside, "other", Source::Client),
        ("a process of this node: outside keeps its (nodePort)", "detector", NodePort, Cluster, Outside, "here", Source::Client),
        ("a process of this node: outside keeps its (loadBalancer)", "detector", LoadBalancer, Cluster, Outside, "here", Source::Client),
        ("a process of this node: outside keeps its (cluster IP)", "detector", ClusterIp, Cluster, Outside, "here", Source::Client),
        ("a process of this node: a local pod keeps its",    "detector", ExternalIp, Cluster, LocalPod, "here", Source::Client),
        ("a process of this node: masquerade-all or not",    "detector masquerade-all", ClusterIp, Cluster, LocalPod, "here", Source::Client),
        ("a process of this node: its own processes get the node's", "detector", NodePort, Cluster, Node, "here", Source::Node),
    ];

    #[test]
    fn cases() {
        for (name, settings, kind, policy, origin, endpoint, wanted) in CASES {
            let masquerade = Masquerade {
                always: settings.contains("listens"),
                all: settings.contains("masquerade-all"),
                detects_local_pods: settings.contains("detector"),
            };
            let client = Client { ip: [10, 1, 0, 1].into(), origin: *origin };
            let ip = if *endpoint == "self" { client.ip } else { [10, 1, 0, 2].into() };
            let upstream = Upstream::new((ip, 80).into(), test_port());
            upstream.set_in_node_network(*endpoint == "here");
            let source = source_address(*kind, *origin, *policy, masquerade).towards(client, &upstream);
            assert_eq!(source, *wanted, "{name}");
        }
    }
}
