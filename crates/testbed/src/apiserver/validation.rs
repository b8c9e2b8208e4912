//! Validates names, metadata and EndpointSlices like an apiserver.

use std::net::IpAddr;

use serde_json::Value;

use super::object::{list, text, texts};
use super::resource::Resource;
use super::status::Cause;

/// The maximum number of endpoints in an EndpointSlice.
const MAX_ENDPOINTS: usize = 1000;

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63 characters.
pub(crate) fn is_dns_1123_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 63
        && name.starts_with(inner)
        && name.ends_with(inner)
        && name.chars().all(|c| inner(c) || c == '-')
}

/// Labels separated by dots, at most 253 characters in total.
fn is_dns_1123_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_1123_label)
}

/// The errors in the metadata.
pub(crate) fn metadata(resource: Resource, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = text(value, "/metadata/name");
    let (valid, why) = match resource {
        Resource::Services => (
            is_dns_1123_label(name) && !name.starts_with(|c: char| c.is_ascii_digit()),
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
             alphabetic character, and end with an alphanumeric character",
        ),
        Resource::Namespaces => (
            is_dns_1123_label(name),
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
             start and end with an alphanumeric character",
        ),
        _ => (
            is_dns_1123_subdomain(name),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
        ),
    };
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if !valid {
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    }
    causes
}

/// The errors in an Event of events.k8s.io/v1, or in a change of `old` to it (`ValidateEventCreate` and
/// `ValidateEventUpdate`).
pub(crate) fn event(event: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(old) = old {
        for field in
            ["regarding", "reportingController", "reportingInstance", "action", "reason", "type", "eventTime"]
        {
            if event[field] != old[field] {
                causes.push(Cause::invalid(field, &event[field], "field is immutable"));
            }
        }
    }
    let placed = match text(event, "/regarding/namespace") {
        "" => "default",
        namespace => namespace,
    };
    if text(event, "/metadata/namespace") != placed {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &event["regarding"]["namespace"], why));
    }
    for (field, most) in [
        ("eventTime", usize::MAX),
        ("reportingController", usize::MAX),
        ("reportingInstance", 128),
        ("action", 128),
        ("reason", 128),
    ] {
        match text(event, &format!("/{field}")) {
            "" => causes.push(Cause::required(field, "")),
            long if long.len() > most => {
                causes.push(Cause::invalid(
                    field,
                    &long.into(),
                    &format!("can have at most {most} characters"),
                ));
            }
            _ => {}
        }
    }
    if text(event, "/note").len() > 1_024 {
        causes.push(Cause::invalid("note", &event["note"], "can have at most 1024 characters"));
    }
    if !["Normal", "Warning"].contains(&text(event, "/type")) {
        causes.push(Cause::invalid("type", &event["type"], "has invalid value"));
    }
    if let Some(series) = event.get("series").filter(|series| !series.is_null()) {
        if series["count"].as_i64().unwrap_or_default() < 2 {
            causes.push(Cause::invalid("series.count", &series["count"], "should be at least 2"));
        }
        if text(series, "/lastObservedTime").is_empty() {
            causes.push(Cause::required("series.lastObservedTime", ""));
        }
    }
    causes
}

/// The errors in an EndpointSlice, or in a change of `old` to it.
pub(crate) fn endpoint_slice(slice: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let families = ["FQDN", "IPv4", "IPv6"];
    let family = text(slice, "/addressType");
    if family.is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else if !families.contains(&family) {
        causes.push(Cause::unsupported("addressType", &family.into(), &families));
    }
    if old.is_some_and(|old| text(old, "/addressType") != family) {
        causes.push(Cause::invalid("addressType", &family.into(), "field is immutable"));
    }
    let endpoints = list(slice, "/endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        let message = format!("Too many: {}: must have at most {MAX_ENDPOINTS} items", endpoints.len());
        causes.push(Cause { reason: "FieldValueTooMany", field: "endpoints".to_owned(), message });
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let addresses = texts(endpoint, "/addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(
                format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            ));
        }
        for (j, address) in addresses.into_iter().enumerate() {
            let valid = match (family, address.parse::<IpAddr>()) {
                ("IPv4", Ok(ip)) => ip.is_ipv4(),
                ("IPv6", Ok(ip)) => ip.is_ipv6(),
                ("IPv4" | "IPv6", Err(_)) => false,
                _ => true,
            };
            if !valid {
                let why = format!("must be a valid {family} address");
                causes.push(Cause::invalid(format!("endpoints[{i}].addresses[{j}]"), &address.into(), &why));
            }
        }
    }
    let ports = list(slice, "/ports");
    for (i, port) in ports.iter().enumerate() {
        let name = text(port, "/name");
        if ports.iter().take(i).any(|other| text(other, "/name") == name) {
            causes.push(Cause::duplicate(format!("ports[{i}].name"), &name.into()));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_resource() {
        let causes =
            |resource, name: &str| metadata(resource, &json!({ "metadata": { "name": name } })).len();
        assert_eq!(causes(Resource::Services, "web-1"), 0);
        assert_eq!(causes(Resource::Services, "1web"), 1);
        assert_eq!(causes(Resource::Services, "web.a"), 1);
        assert_eq!(causes(Resource::EndpointSlices, "web.a-1"), 0);
        assert_eq!(causes(Resource::EndpointSlices, "Web"), 1);
        assert_eq!(causes(Resource::Nodes, ""), 1);
        assert_eq!(causes(Resource::Namespaces, &"a".repeat(64)), 1);
    }

    #[test]
    fn a_slice_has_one_family_and_keeps_it() {
        let slice = |family: &str, address: &str| json!({ "addressType": family, "endpoints": [{ "addresses": [address] }], "ports": [{}] });
        assert!(endpoint_slice(&slice("IPv4", "10.0.0.1"), None).is_empty());
        assert_eq!(endpoint_slice(&slice("IPv4", "fd00::1"), None)[0].field, "endpoints[0].addresses[0]");
        assert_eq!(endpoint_slice(&slice("", "10.0.0.1"), None)[0].field, "addressType");
        let old = slice("IPv6", "fd00::1");
        assert!(endpoint_slice(&slice("IPv4", "10.0.0.1"), Some(&old))[0].message.contains("immutable"));
        let no_address = json!({ "addressType": "IPv4", "endpoints": [{}], "ports": [{}, {}] });
        assert_eq!(endpoint_slice(&no_address, None).len(), 2);
    }
}
