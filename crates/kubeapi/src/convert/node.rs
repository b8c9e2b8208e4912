//! Node to [`Node`].

use std::sync::Arc;

use sluice_model::Node;

use super::{Converted, MAX_SUBDOMAIN, Problems, Skip, each};
use crate::api;

/// The cluster autoscaler is about to delete the node: load balancers should stop sending to it.
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a Node.
pub fn node(node: &api::Node) -> Converted<Node> {
    let mut problems = Problems::default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let Some(name) = problems.name("metadata.name", name, MAX_SUBDOMAIN) else {
        return problems.skip(Skip::Broken);
    };
    let zone = node.metadata.labels.zone.as_deref();
    let mut taints = each(&node.spec.taints).map(|(_, taint)| taint.key.as_deref());
    let is_to_be_deleted = taints.any(|key| key == Some(TAINT_TO_BE_DELETED));
    let object = Node {
        name: name.into(),
        zone: zone.filter(|zone| !zone.is_empty()).map(Arc::from),
        addresses: addresses(node, &mut problems),
        pod_cidrs: pod_cidrs(node, &mut problems),
        eligible: node.metadata.deletion_timestamp.is_none() && !is_to_be_deleted,
    };
    problems.object(object)
}

/// The node's addresses: internal before external ones, each in the object's order (`GetNodeHostIPs`), without
/// host names.
fn addresses(node: &api::Node, problems: &mut Problems) -> Vec<std::net::IpAddr> {
    let mut found = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (i, entry) in each(&node.status.addresses) {
            if entry.type_.as_deref() == Some(wanted) {
                let address = entry.address.as_deref().unwrap_or_default();
                found.extend(problems.address(format!("status.addresses[{i}].address"), address));
            }
        }
    }
    found
}

/// `podCIDRs`, or the older `podCIDR` if that is the only one.
fn pod_cidrs(node: &api::Node, problems: &mut Problems) -> Vec<ipnet::IpNet> {
    let spec = &node.spec;
    let cidrs: Vec<_> = each(&spec.pod_cidrs)
        .filter_map(|(i, text)| problems.cidr(format!("spec.podCIDRs[{i}]"), text))
        .collect();
    match &spec.pod_cidr {
        Some(text) if spec.pod_cidrs.as_ref().is_none_or(Vec::is_empty) && !text.is_empty() => {
            problems.cidr("spec.podCIDR", text).into_iter().collect()
        }
        _ => cidrs,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn convert(value: Value) -> Converted<Node> {
        node(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn everything_a_node_says() {
        let converted = convert(json!({
            "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "Hostname", "address": "node-1"},
                {"type": "InternalIP", "address": "192.168.0.1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "nonsense"},
            ]},
        }));
        assert_eq!(
            converted.result,
            Ok(Node {
                name: "node-1".into(),
                zone: Some("z1".into()),
                addresses: ["192.168.0.1", "fd00::1", "203.0.113.1"].map(|ip| ip.parse().unwrap()).into(),
                pod_cidrs: ["10.244.1.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
                eligible: true,
            })
        );
        assert_eq!(converted.problems.len(), 1);
        assert_eq!(converted.problems[0].field, "status.addresses[4].address");
    }

    #[test]
    fn what_is_absent_stays_empty() {
        let node = convert(json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": ""}}}))
            .result
            .unwrap();
        assert_eq!((node.zone, node.addresses, node.pod_cidrs, node.eligible), (None, vec![], vec![], true));
    }

    #[test]
    fn the_single_pod_cidr_counts_where_there_is_no_list() {
        let node = convert(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}}));
        assert_eq!(node.result.unwrap().pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_node_on_its_way_out_is_not_eligible() {
        for value in [
            json!({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"metadata": {"name": "n"},
                "spec": {"taints": [{"key": TAINT_TO_BE_DELETED, "effect": "NoSchedule"}]}}),
        ] {
            assert!(!convert(value).result.unwrap().eligible);
        }
    }

    #[test]
    fn a_node_without_a_name_is_broken() {
        let converted = convert(json!({}));
        assert_eq!(converted.result, Err(Skip::Broken));
        assert_eq!(converted.problems[0].field, "metadata.name");
    }
}
