//! Pod to [`Pod`], Namespace to [`Namespace`].

use sluice_model::{Namespace, Pod};

use super::{Converted, MAX_LABEL, Problems, Skip, each};
use crate::api::{self, Annotations};

/// The annotation that excludes a pod, or all pods of a namespace, from socket mode; Services have it too.
const AT_SOCKETS: &str = "socket-mode";

/// Converts a Pod.
pub fn pod(pod: &api::Pod) -> Converted<Pod> {
    let mut problems = Problems::default();
    let Some(name) = problems.object_name(&pod.metadata) else { return problems.skip(Skip::Broken) };
    // Its address may be another pod's already (k8s.io/kubernetes/pkg/api/v1/pod, `IsPodTerminal`).
    let is_over = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if is_over || pod.spec.host_network == Some(true) {
        return problems.skip(Skip::NoNetwork);
    }
    let mut addresses: Vec<_> = each(&pod.status.pod_ips)
        .filter_map(|(i, entry)| {
            problems.address(format!("status.podIPs[{i}].ip"), entry.ip.as_deref().unwrap_or_default())
        })
        .collect();
    if let (true, Some(ip)) = (addresses.is_empty(), pod.status.pod_ip.as_deref().filter(|ip| !ip.is_empty()))
    {
        addresses.extend(problems.address("status.podIP", ip));
    }
    let at_sockets = at_sockets(&pod.metadata.annotations);
    problems.object(Pod { name, addresses, at_sockets })
}

/// Converts a Namespace.
pub fn namespace(namespace: &api::Namespace) -> Converted<Namespace> {
    let mut problems = Problems::default();
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let Some(name) = problems.name("metadata.name", name, MAX_LABEL) else {
        return problems.skip(Skip::Broken);
    };
    let at_sockets = at_sockets(&namespace.metadata.annotations);
    problems.object(Namespace { name: name.into(), at_sockets })
}

/// Any value other than `true` excludes: a client that is relayed by mistake is served as well.
fn at_sockets(annotations: &Annotations) -> Option<bool> {
    annotations.own.get(AT_SOCKETS).map(|value| &**value == "true")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::{Value, json};

    use super::*;

    fn convert(value: Value) -> Converted<Pod> {
        pod(&serde_json::from_value(value).unwrap())
    }

    /// A pod's addresses.
    fn addresses(status: Value) -> Result<Vec<IpAddr>, Skip> {
        let metadata = json!({"name": "web-0", "namespace": "shop"});
        convert(json!({"metadata": metadata, "status": status})).result.map(|pod| pod.addresses)
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn a_pod_has_all_its_addresses() {
        let both = json!({"phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}]});
        assert_eq!(addresses(both), Ok(ips(&["10.1.0.2", "fd00::2"])));
        assert_eq!(addresses(json!({"podIP": "10.1.0.2"})), Ok(ips(&["10.1.0.2"])));
        assert_eq!(addresses(json!({"podIP": "", "podIPs": null})), Ok(ips(&[])));
        assert_eq!(addresses(json!({"podIPs": [{}, {"ip": "fd00::2"}]})), Ok(ips(&["fd00::2"])));
    }

    #[test]
    fn one_that_is_over_or_in_the_nodes_network_has_none() {
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(addresses(json!({"phase": phase, "podIP": "10.1.0.2"})), Err(Skip::NoNetwork));
        }
        let metadata = json!({"name": "web-0", "namespace": "shop"});
        let of_node = convert(json!({"metadata": metadata, "spec": {"hostNetwork": true}}));
        assert_eq!(of_node.result, Err(Skip::NoNetwork));
        assert_eq!(convert(json!({})).result, Err(Skip::Broken));
    }

    #[test]
    fn a_pod_and_a_namespace_say_whether_sockets_decide() {
        for (annotations, expected) in [
            (json!({}), None),
            (json!(null), None),
            (json!({"sluice.dev/socket-mode": "true"}), Some(true)),
            (json!({"sluice.dev/socket-mode": "false"}), Some(false)),
            (json!({"sluice.dev/socket-mode": "no"}), Some(false)),
        ] {
            let metadata = json!({"name": "shop", "annotations": annotations});
            let pod = convert(json!({"metadata": metadata})).result.unwrap();
            let namespace = json!({"metadata": metadata});
            let namespace = super::namespace(&serde_json::from_value(namespace).unwrap()).result.unwrap();
            assert_eq!((pod.at_sockets, namespace.at_sockets), (expected, expected));
        }
    }
}
