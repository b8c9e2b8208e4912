//! Tables, which `kubectl get` prints. The columns are those of a real apiserver.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::object::{Object, list, text, texts};
use super::resource::Resource;

/// The maximum number of endpoints in a cell.
const ENDPOINTS_SHOWN: usize = 3;

/// What a row contains besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    /// The metadata: the default.
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl Include {
    /// The option `includeObject`.
    pub(crate) fn parse(option: Option<&str>) -> Self {
        match option {
            Some("Object") => Self::Object,
            Some("None") => Self::None,
            _ => Self::Metadata,
        }
    }
}

/// A Table of objects of one resource. `now` is the time for ages.
pub(crate) fn table<'a>(
    resource: Resource,
    objects: impl IntoIterator<Item = &'a Object>,
    metadata: Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let rows: Vec<_> = objects
        .into_iter()
        .map(|object| json!({ "cells": cells(object, now), "object": row_object(object, include) }))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns(resource),
        "rows": rows,
    })
}

fn row_object(object: &Object, include: Include) -> Value {
    match include {
        Include::None => Value::Null,
        Include::Object => object.full_value(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object.metadata(),
        }),
    }
}

/// Column names, and those that are printed only with `-o wide`.
fn columns(resource: Resource) -> Value {
    let (always, wide): (&[&str], &[&str]) = match resource {
        Resource::Services => {
            (&["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"], &["Selector"])
        }
        Resource::EndpointSlices => (&["Name", "AddressType", "Ports", "Endpoints", "Age"], &[]),
        Resource::Nodes => (&["Name", "Status", "Roles", "Age", "Version"], &["Internal-IP", "External-IP"]),
        Resource::ServiceCidrs => (&["Name", "CIDRs", "Age"], &[]),
        Resource::Namespaces | Resource::Pods => (&["Name", "Status", "Age"], &[]),
        Resource::CoreEvents | Resource::Events => (&["Name", "Age"], &[]),
    };
    let column = |name: &&str, priority: u8| {
        let format = if *name == "Name" { "name" } else { "" };
        json!({ "name": name, "type": "string", "format": format, "description": "", "priority": priority })
    };
    always.iter().map(|name| column(name, 0)).chain(wide.iter().map(|name| column(name, 1))).collect()
}

fn cells(object: &Object, now: Timestamp) -> Vec<String> {
    let value = object.value();
    let name = text(value, "/metadata/name").to_owned();
    let age = age(text(value, "/metadata/creationTimestamp"), now);
    match object.resource() {
        Resource::Services => vec![
            name,
            text(value, "/spec/type").to_owned(),
            or_none(text(value, "/spec/clusterIP").to_owned()),
            external_addresses(value),
            or_none(service_ports(value)),
            age,
            or_none(pairs(&value["spec"]["selector"])),
        ],
        Resource::EndpointSlices => {
            vec![name, text(value, "/addressType").to_owned(), slice_ports(value), endpoints(value), age]
        }
        Resource::Nodes => vec![
            name,
            node_status(value),
            roles(value),
            age,
            text(value, "/status/nodeInfo/kubeletVersion").to_owned(),
            node_address(value, "InternalIP"),
            node_address(value, "ExternalIP"),
        ],
        Resource::ServiceCidrs => vec![name, or_none(texts(value, "/spec/cidrs").join(",")), age],
        Resource::Namespaces | Resource::Pods => vec![name, text(value, "/status/phase").to_owned(), age],
        Resource::CoreEvents | Resource::Events => vec![name, age],
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn external_addresses(service: &Value) -> String {
    let kind = text(service, "/spec/type");
    if kind == "ExternalName" {
        return text(service, "/spec/externalName").to_owned();
    }
    let ingress = list(service, "/status/loadBalancer/ingress").iter();
    let mut addresses: Vec<_> = ingress
        .map(|ingress| match text(ingress, "/ip") {
            "" => text(ingress, "/hostname"),
            ip => ip,
        })
        .collect();
    addresses.extend(texts(service, "/spec/externalIPs"));
    if addresses.is_empty() && kind == "LoadBalancer" {
        return "<pending>".to_owned();
    }
    or_none(addresses.join(","))
}

fn service_ports(service: &Value) -> String {
    let ports = list(service, "/spec/ports").iter().map(|port| {
        let (number, protocol) = (&port["port"], text(port, "/protocol"));
        match port["nodePort"].as_u64() {
            Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}

fn slice_ports(slice: &Value) -> String {
    let ports = list(slice, "/ports").iter();
    let ports: Vec<_> =
        ports.map(|port| port["port"].as_u64().map_or("*".to_owned(), |port| port.to_string())).collect();
    if ports.is_empty() { "<unset>".to_owned() } else { ports.join(",") }
}

fn endpoints(slice: &Value) -> String {
    let addresses: Vec<_> =
        list(slice, "/endpoints").iter().flat_map(|endpoint| texts(endpoint, "/addresses")).collect();
    let shown = addresses.iter().take(ENDPOINTS_SHOWN).copied().collect::<Vec<_>>().join(",");
    match addresses.len().saturating_sub(ENDPOINTS_SHOWN) {
        _ if addresses.is_empty() => "<unset>".to_owned(),
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn node_status(node: &Value) -> String {
    let mut conditions = list(node, "/status/conditions").iter();
    let ready = conditions.find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| text(condition, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let keys = labels.into_iter().flat_map(|labels| labels.keys());
    let roles: Vec<_> = keys.filter_map(|key| key.strip_prefix("node-role.kubernetes.io/")).collect();
    or_none(roles.join(","))
}

fn node_address(node: &Value, kind: &str) -> String {
    let mut addresses = list(node, "/status/addresses").iter();
    let address = addresses.find(|address| address["type"] == kind).map(|address| text(address, "/address"));
    let valid = address.filter(|address| address.parse::<IpAddr>().is_ok());
    or_none(valid.unwrap_or_default().to_owned())
}

fn pairs(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten();
    pairs
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(",")
}

/// The time since then in one or two units, as kubectl prints it.
fn age(since: &str, now: Timestamp) -> String {
    let Ok(since) = since.parse::<Timestamp>() else { return "<unknown>".to_owned() };
    let seconds = (now.as_second() - since.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: i64, large_unit: char, small: i64, small_unit: char| match small {
        0 => format!("{large}{large_unit}"),
        small => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(resource: Resource, value: Value) -> Vec<String> {
        cells(&Object::new(resource, value, 1), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_service_shows_its_addresses_and_ports() {
        let service = json!({
            "metadata": { "name": "web", "creationTimestamp": "1969-12-31T23:59:00Z" },
            "spec": { "type": "LoadBalancer", "clusterIP": "10.96.0.1", "selector": { "app": "web" },
                      "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30000 }, { "port": 53, "protocol": "UDP" }] },
        });
        assert_eq!(
            row(Resource::Services, service),
            ["web", "LoadBalancer", "10.96.0.1", "<pending>", "80:30000/TCP,53/UDP", "60s", "app=web"]
        );
    }

    #[test]
    fn a_slice_shows_the_first_endpoints() {
        let endpoints: Vec<_> = (1..=5).map(|i| json!({ "addresses": [format!("10.0.0.{i}")] })).collect();
        let slice = json!({ "metadata": { "name": "web-1" }, "addressType": "IPv4", "ports": [{ "port": 8080 }], "endpoints": endpoints });
        assert_eq!(
            row(Resource::EndpointSlices, slice),
            ["web-1", "IPv4", "8080", "10.0.0.1,10.0.0.2,10.0.0.3 + 2 more...", "<unknown>"]
        );
        let empty = json!({ "metadata": { "name": "web-1" }, "addressType": "IPv4" });
        assert_eq!(row(Resource::EndpointSlices, empty)[2..4], ["<unset>", "<unset>"]);
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for resource in Resource::ALL {
            let cells = row(resource, json!({ "metadata": { "name": "a" } }));
            assert_eq!(columns(resource).as_array().unwrap().len(), cells.len(), "{resource}");
        }
    }

    #[test]
    fn ages_are_short() {
        let told = |seconds: i64| age("1970-01-01T00:00:00Z", Timestamp::from_second(seconds).unwrap());
        let cases =
            [(7, "7s"), (119, "119s"), (130, "2m10s"), (700, "11m"), (10_800, "3h"), (11_000, "3h3m")];
        for (seconds, expected) in
            cases.into_iter().chain([(86_400, "24h"), (176_400, "2d1h"), (864_000, "10d")])
        {
            assert_eq!(told(seconds), expected);
        }
    }
}
