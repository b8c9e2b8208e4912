//! EndpointSlice (discovery.k8s.io/v1) to [`EndpointSlice`].

use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use sluice_model::{Endpoint, EndpointSlice, Family, ObjectName, SlicePort};

use super::{Converted, MAX_LABEL, Problems, Skip, each};
use crate::api;

/// Converts an EndpointSlice.
pub fn slice(slice: &api::EndpointSlice) -> Converted<EndpointSlice> {
    let mut problems = Problems::default();
    if slice.metadata.labels.headless.0 {
        return problems.skip(Skip::Headless);
    }
    let family = match slice.address_type.as_deref().unwrap_or_default() {
        "FQDN" => return problems.skip(Skip::Fqdn),
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "" => {
            problems.note("addressType", "missing", "write IPv4 or IPv6");
            None
        }
        other => {
            problems.note("addressType", format!("{other:?} is not one"), "write IPv4 or IPv6");
            None
        }
    };
    let name = problems.object_name(&slice.metadata);
    let service = service_name(slice, &mut problems);
    let (Some(name), Some(service), Some(family)) = (name, service, family) else {
        return problems.skip(Skip::Broken);
    };
    let service = ObjectName { namespace: Arc::clone(&name.namespace), name: service };
    let ports = ports(slice, &mut problems);
    let endpoints = each(&slice.endpoints)
        .filter_map(|(i, endpoint)| convert_endpoint(i, endpoint, family, &mut problems))
        .collect();
    let last_change = slice.metadata.annotations.last_change.as_deref();
    let last_change = last_change.and_then(|text| text.parse::<Timestamp>().ok()).map(SystemTime::from);
    problems.object(EndpointSlice { name, service, family, ports, endpoints, last_change })
}

fn service_name(slice: &api::EndpointSlice, problems: &mut Problems) -> Option<Arc<str>> {
    let field = "metadata.labels[kubernetes.io/service-name]";
    match slice.metadata.labels.service_name.as_deref() {
        None | Some("") => {
            problems.note(field, "missing", "write the name of the Service whose endpoints these are");
            None
        }
        Some(label) => problems.name(field, label, MAX_LABEL).map(Arc::from),
    }
}

fn ports(slice: &api::EndpointSlice, problems: &mut Problems) -> Vec<SlicePort> {
    let is_without_ports = slice.ports.as_ref().is_none_or(Vec::is_empty);
    if is_without_ports && slice.endpoints.as_ref().is_some_and(|endpoints| !endpoints.is_empty()) {
        problems.note(
            "ports",
            "none, so that these endpoints serve nothing",
            "write name, port and protocol",
        );
    }
    each(&slice.ports).filter_map(|(i, port)| convert_port(i, port, problems)).collect()
}

fn convert_port(i: usize, port: &api::EndpointPort, problems: &mut Problems) -> Option<SlicePort> {
    let protocol = problems.protocol(format!("ports[{i}].protocol"), port.protocol.as_deref())?;
    let Some(name) = &port.name else {
        let mend = "write the name of the Service's port, or \"\" if that has none";
        problems.note(format!("ports[{i}].name"), "missing", mend);
        return None;
    };
    let number = problems.port(format!("ports[{i}].port"), port.port)?;
    Some(SlicePort { name: name.as_str().into(), protocol, number })
}

fn convert_endpoint(
    i: usize,
    endpoint: &api::Endpoint,
    family: Family,
    problems: &mut Problems,
) -> Option<Endpoint> {
    let Some((_, text)) = each(&endpoint.addresses).next() else {
        problems.note(format!("endpoints[{i}].addresses"), "empty", "write the endpoint's address");
        return None;
    };
    let field = format!("endpoints[{i}].addresses[0]");
    let address = problems.address_of(field, text, family, "the slice's addressType is")?;
    let (conditions, hints) = (&endpoint.conditions, &endpoint.hints);
    let names = |hints: &api::List<api::Hint>| {
        each(hints).map(|(_, hint)| hint.name.as_deref().unwrap_or_default().into()).collect()
    };
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from),
        zone_hints: names(&hints.for_zones),
        node_hints: names(&hints.for_nodes),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sluice_model::Protocol;

    use super::*;

    const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
    const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

    /// A valid slice with `patch` laid over it.
    fn convert(patch: Value) -> Converted<EndpointSlice> {
        let mut value = json!({
            "metadata": {"name": "web-a", "namespace": "shop", "labels": {LABEL_SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"]}],
        });
        for (key, patch) in patch.as_object().unwrap() {
            value[key] = patch.clone();
        }
        slice(&serde_json::from_value(value).unwrap())
    }

    fn fields(converted: &Converted<EndpointSlice>) -> Vec<&str> {
        converted.problems.iter().map(|problem| problem.field.as_str()).collect()
    }

    #[test]
    fn everything_a_slice_says() {
        let converted = convert(json!({
            "ports": [{"name": "", "port": 53, "protocol": "UDP"}, {"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.9"]},
                {
                    "addresses": ["10.0.0.2"],
                    "conditions": {"ready": false, "serving": true, "terminating": true},
                    "nodeName": "node-1",
                    "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "node-1"}]},
                },
            ],
        }));
        assert_eq!(converted.problems, []);
        assert_eq!(
            converted.result,
            Ok(EndpointSlice {
                last_change: None,
                name: ObjectName::new("shop", "web-a"),
                service: ObjectName::new("shop", "web"),
                family: Family::V4,
                ports: vec![
                    SlicePort { name: "".into(), protocol: Protocol::Udp, number: 53 },
                    SlicePort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 },
                ],
                endpoints: vec![
                    Endpoint::ready([10, 0, 0, 1].into()),
                    Endpoint {
                        ready: false,
                        terminating: true,
                        node: Some("node-1".into()),
                        zone_hints: ["z1".into(), "z2".into()].into(),
                        node_hints: ["node-1".into()].into(),
                        ..Endpoint::ready([10, 0, 0, 2].into())
                    },
                ],
            })
        );
    }

    #[test]
    fn when_it_came_about_is_read_and_what_is_no_time_costs_nothing() {
        let at = |time: Value| {
            let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
            let labels = json!({LABEL_SERVICE_NAME: "web"});
            convert(json!({"metadata": {"name": "web-a", "labels": labels, "annotations": annotations}}))
        };
        let converted = at(json!("2026-11-24T10:00:00.5Z"));
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_795_514_400_500);
        assert_eq!((converted.result.unwrap().last_change, converted.problems), (Some(time), vec![]));
        let converted = at(json!("yesterday"));
        assert_eq!((converted.result.unwrap().last_change, converted.problems), (None, vec![]));
    }

    #[test]
    fn absent_conditions_mean_ready_and_serving_and_not_terminating() {
        for conditions in
            [json!(null), json!({}), json!({"ready": null, "serving": null, "terminating": null})]
        {
            let endpoint = json!([{"addresses": ["10.0.0.1"], "conditions": conditions, "nodeName": ""}]);
            let converted = convert(json!({"endpoints": endpoint}));
            assert_eq!(converted.result.unwrap().endpoints, [Endpoint::ready([10, 0, 0, 1].into())]);
        }
    }

    /// Patch, reason for the skip, fields with problems.
    #[test]
    fn slices_that_do_not_count() {
        let meta = |labels: Value| json!({"metadata": {"name": "web-a", "labels": labels}});
        let cases = [
            (json!({"addressType": "FQDN"}), Skip::Fqdn, vec![]),
            (json!({"addressType": null}), Skip::Broken, vec!["addressType"]),
            (json!({"addressType": "ipv4"}), Skip::Broken, vec!["addressType"]),
            (meta(json!({LABEL_SERVICE_NAME: "web", LABEL_HEADLESS: ""})), Skip::Headless, vec![]),
            (meta(json!({})), Skip::Broken, vec!["metadata.labels[kubernetes.io/service-name]"]),
            (
                meta(json!({LABEL_SERVICE_NAME: ""})),
                Skip::Broken,
                vec!["metadata.labels[kubernetes.io/service-name]"],
            ),
            (
                json!({"metadata": {"labels": {LABEL_SERVICE_NAME: "web"}}}),
                Skip::Broken,
                vec!["metadata.name"],
            ),
            (
                json!({"metadata": {"name": "a\nb", "namespace": "UP", "labels": {LABEL_SERVICE_NAME: "web"}}}),
                Skip::Broken,
                vec!["metadata.namespace", "metadata.name"],
            ),
        ];
        for (patch, skip, wanted) in cases {
            let converted = convert(patch.clone());
            assert_eq!(converted.result, Err(skip), "{patch}");
            assert_eq!(fields(&converted), wanted, "{patch}");
        }
    }

    /// Patch, ports left, endpoints left, fields with problems.
    #[test]
    fn a_wrong_element_is_left_out_and_the_rest_counts() {
        let cases = [
            (
                json!({"ports": [{"name": null, "port": 1}, {"name": "b", "port": 2}]}),
                1,
                1,
                vec!["ports[0].name"],
            ),
            (json!({"ports": [{"name": "a", "port": null}]}), 0, 1, vec!["ports[0].port"]),
            (json!({"ports": [{"name": "a", "port": 0}]}), 0, 1, vec!["ports[0].port"]),
            (json!({"ports": [{"name": "a", "port": 65536}]}), 0, 1, vec!["ports[0].port"]),
            (json!({"ports": [{"name": "a", "port": -1}]}), 0, 1, vec!["ports[0].port"]),
            (
                json!({"ports": [{"name": "a", "port": 1, "protocol": "SCTP"}]}),
                0,
                1,
                vec!["ports[0].protocol"],
            ),
            (
                json!({"ports": [{"name": "a", "port": 1, "protocol": "tcp"}]}),
                0,
                1,
                vec!["ports[0].protocol"],
            ),
            (json!({"ports": null}), 0, 1, vec!["ports"]),
            (json!({"ports": null, "endpoints": null}), 0, 0, vec![]),
            (json!({"endpoints": []}), 1, 0, vec![]),
            (
                json!({"endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.1"]}]}),
                1,
                1,
                vec!["endpoints[0].addresses[0]"],
            ),
            (json!({"endpoints": [{"addresses": []}]}), 1, 0, vec!["endpoints[0].addresses"]),
            (json!({"endpoints": [{"addresses": ["web.local"]}]}), 1, 0, vec!["endpoints[0].addresses[0]"]),
            (json!({"endpoints": [{"addresses": ["0.0.0.0"]}]}), 1, 0, vec!["endpoints[0].addresses[0]"]),
            (json!({"endpoints": [{"addresses": ["::ffff:10.0.0.1"]}]}), 1, 1, vec![]),
            (
                json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fe80::1%eth0"]}, {"addresses": ["fd00::1"]}]}),
                1,
                1,
                vec!["endpoints[0].addresses[0]"],
            ),
        ];
        for (patch, ports, endpoints, wanted) in cases {
            let converted = convert(patch.clone());
            assert_eq!(fields(&converted), wanted, "{patch}");
            let slice = converted.result.unwrap();
            assert_eq!((slice.ports.len(), slice.endpoints.len()), (ports, endpoints), "{patch}");
        }
    }

    #[test]
    fn a_family_mismatch_says_both_families() {
        let converted = convert(json!({"endpoints": [{"addresses": ["fd00::1"]}]}));
        assert_eq!(
            converted.problems[0].to_string(),
            "endpoints[0].addresses[0]: fd00::1 is an IPv6 address, but the slice's addressType is IPv4: \
             write an IPv4 address here"
        );
    }
}
