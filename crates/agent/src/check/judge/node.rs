//! Judges the Node object: whether the cluster has one under the name that an agent would use.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::facts::{Facts, NodeObject};
use super::super::finding::Finding;

/// The finding that an address of the node is in a Service range. (kube-proxy's nftables mode drops packets to
/// it too: chain `cluster-ips-check`.)
pub(in crate::check) fn address_in_range(ip: IpAddr, range: IpNet) -> Finding {
    Finding::warning(
        "node",
        format!(
            "the Node's address {ip} lies in the ServiceCIDR {range}: connections to it are dropped on nodes that take \
             it for an address that no Service has"
        ),
        "give nodes addresses outside of the ranges of Services, or Services another range (kubectl get servicecidrs)",
    )
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "node";
    let Some((name, node)) = &facts.node else { return Vec::new() };
    if let NodeObject::There(inside) = node
        && !inside.is_empty()
    {
        return inside.iter().map(|(ip, range)| address_in_range(*ip, *range)).collect();
    }
    vec![match node {
        NodeObject::There(_) => Finding::ok(ABOUT, format!("the cluster has the Node {name:?}")),
        NodeObject::Missing => Finding::warning(
            ABOUT,
            format!("the cluster has no Node {name:?}: nodePorts, health checks and zones will not work"),
            "see kubectl get nodes, and give the agent this one's name with --hostname-override",
        ),
        NodeObject::NobodyToAsk => Finding::ok(
            ABOUT,
            format!(
                "is to be {name:?}, which was not looked for: give --kubeconfig or --master as the agent gets it, \
                 and --hostname-override"
            ),
        ),
        NodeObject::Unknown(error) => Finding::problem(
            ABOUT,
            format!("it cannot be seen whether the cluster has the Node {name:?}: {error}"),
            "see that the agent has an apiserver: its --kubeconfig, --context and --master may be given here, too",
        ),
    }]
}
