//! The steps of an apiserver before it stores a Service: defaults, addresses and node ports, validation. The
//! rules are those of `pkg/registry/core/service` and `pkg/apis/core/validation`, as far as a proxy can see
//! their effects.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::allocator::Allocator;
use super::object::{list, object_mut, text, texts};
use super::status::Cause;
use super::validation::is_dns_1123_label;

/// The pools of addresses and ports.
pub(crate) struct Pools<'a> {
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) allocator: &'a Allocator,
}

/// Prepares `service` to be stored in place of `old`, or as a new object.
///
/// # Errors
/// The invalid fields.
pub(crate) fn admit(service: &mut Value, old: Option<&Value>, pools: &Pools<'_>) -> Result<(), Vec<Cause>> {
    if let Some(old) = old {
        keep_allocated(service, old);
    }
    set_defaults(service);
    let causes = validate(service);
    if !causes.is_empty() {
        return Err(causes);
    }
    allocate_addresses(service, old, pools)?;
    allocate_node_ports(service, old, pools)
}

/// Whether the type has addresses of its own.
fn has_addresses(service: &Value) -> bool {
    text(service, "/spec/type") != "ExternalName"
}

fn is_headless(service: &Value) -> bool {
    text(service, "/spec/clusterIP") == "None"
}

/// Keeps values that the server has allocated if the replacement leaves them out.
fn keep_allocated(service: &mut Value, old: &Value) {
    let both = |service: &Value, test: fn(&Value) -> bool| test(service) && test(old);
    if both(service, has_addresses) && text(service, "/spec/clusterIP").is_empty() {
        let spec = spec_mut(service);
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old.pointer(&format!("/spec/{field}")) {
                spec.insert(field.to_owned(), value.clone());
            }
        }
    }
    if both(service, has_node_ports) {
        for port in ports_mut(service) {
            let same = |other: &&Value| other["port"] == port["port"] && protocol(other) == protocol(port);
            let kept = list(old, "/spec/ports").iter().find(same).map(|other| other["nodePort"].clone());
            if let (true, Some(kept)) = (number(&port["nodePort"]) == 0, kept) {
                object_mut(port).insert("nodePort".to_owned(), kept);
            }
        }
    }
    if both(service, needs_health_check_port) && number(&service["spec"]["healthCheckNodePort"]) == 0 {
        let kept = old["spec"]["healthCheckNodePort"].clone();
        spec_mut(service).insert("healthCheckNodePort".to_owned(), kept);
    }
}

fn set_defaults(service: &mut Value) {
    let spec = spec_mut(service);
    let mut default = |field: &str, value: Value| {
        let slot = spec.entry(field).or_insert(Value::Null);
        if slot.is_null() || slot == "" {
            *slot = value;
        }
    };
    default("type", "ClusterIP".into());
    default("sessionAffinity", "None".into());
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    let mut default = |field: &str, value: Value| {
        spec.entry(field).or_insert(value);
    };
    if kind != "ExternalName" {
        default("internalTrafficPolicy", "Cluster".into());
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        default("externalTrafficPolicy", "Cluster".into());
    }
    if kind == "LoadBalancer" {
        default("allocateLoadBalancerNodePorts", true.into());
    }
    if spec["sessionAffinity"] == "ClientIP" {
        let config = object_mut(spec.entry("sessionAffinityConfig").or_insert(Value::Null));
        let client = object_mut(config.entry("clientIP").or_insert(Value::Null));
        client.entry("timeoutSeconds").or_insert(10800.into());
    }
    for port in ports_mut(service) {
        let number = port["port"].clone();
        let port = object_mut(port);
        port.entry("protocol").or_insert("TCP".into());
        port.entry("targetPort").or_insert(number);
    }
    object_mut(service).entry("status").or_insert_with(|| json!({ "loadBalancer": {} }));
}

fn validate(service: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &service["spec"];
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&text(service, "/spec/type")) {
        causes.push(Cause::unsupported("spec.type", &spec["type"], &kinds));
    }
    if !["ClientIP", "None"].contains(&text(service, "/spec/sessionAffinity")) {
        let cause =
            Cause::unsupported("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"]);
        causes.push(cause);
    }
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let policy = &spec[field];
        if !policy.is_null() && policy != "Cluster" && policy != "Local" {
            causes.push(Cause::unsupported(format!("spec.{field}"), policy, &["Cluster", "Local"]));
        }
    }
    if !has_addresses(service) && text(service, "/spec/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
    for (i, address) in texts(service, "/spec/externalIPs").into_iter().enumerate() {
        if address.parse::<IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.push(Cause::invalid(format!("spec.externalIPs[{i}]"), &address.into(), why));
        }
    }
    validate_ports(service, &mut causes);
    causes
}

fn validate_ports(service: &Value, causes: &mut Vec<Cause>) {
    let ports = list(service, "/spec/ports");
    if ports.is_empty() && has_addresses(service) && !is_headless(service) {
        causes.push(Cause::required("spec.ports", ""));
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let name = text(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(field("name"), ""));
            }
        } else if !is_dns_1123_label(name) {
            causes.push(Cause::invalid(field("name"), &port["name"], "must be a DNS label (RFC 1123)"));
        } else if !names.insert(name) {
            causes.push(Cause::duplicate(field("name"), &port["name"]));
        }
        if !(1..=65535).contains(&number(&port["port"])) {
            let why = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(field("port"), &port["port"], why));
        }
        if !["SCTP", "TCP", "UDP"].contains(&protocol(port)) {
            causes.push(Cause::unsupported(field("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]));
        }
        if !numbers.insert((number(&port["port"]), protocol(port))) {
            let told = json!({ "port": port["port"], "protocol": port["protocol"] });
            causes.push(Cause::duplicate(format!("spec.ports[{i}]"), &told));
        }
    }
}

/// Allocates missing addresses, and checks those that are given.
fn allocate_addresses(service: &mut Value, old: Option<&Value>, pools: &Pools<'_>) -> Result<(), Vec<Cause>> {
    if !has_addresses(service) {
        let spec = spec_mut(service);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
        return Ok(());
    }
    let named = named_addresses(service);
    let had = old.filter(|old| has_addresses(old)).map(named_addresses).unwrap_or_default();
    if let (Some(had), Some(named)) = (had.first(), named.first())
        && had != named
    {
        return Err(vec![Cause::invalid("spec.clusterIPs[0]", &json!([named]), "may not change once set")]);
    }
    if is_headless(service) {
        return set_addresses(service, vec!["None".to_owned()], &pools.ranges);
    }
    let mut addresses = Vec::new();
    for address in named {
        if !had.contains(&address) {
            check_address(&address, pools)?;
        }
        addresses.push(address);
    }
    let mut families = texts(service, "/spec/ipFamilies").into_iter().map(str::to_owned).collect::<Vec<_>>();
    if families.is_empty() {
        families.extend(addresses.iter().map(|address| family(address).to_owned()));
        let served = pools.ranges.iter().map(|range| family(&range.addr().to_string()));
        let wanted = match text(service, "/spec/ipFamilyPolicy") {
            "PreferDualStack" | "RequireDualStack" => 2,
            _ => 1,
        };
        for family in served {
            if families.len() < wanted && !families.iter().any(|other| other == family) {
                families.push(family.to_owned());
            }
        }
    }
    for wanted in families.iter().skip(addresses.len()) {
        let ranges = pools.ranges.iter().filter(|range| family(&range.addr().to_string()) == wanted);
        let free = ranges.filter_map(|range| pools.allocator.free_address(*range)).next();
        let Some(free) = free else {
            let why = format!("failed to allocate a serviceIP: no free {wanted} address in any ServiceCIDR");
            return Err(vec![Cause::invalid("spec.clusterIPs", &Value::Null, &why)]);
        };
        addresses.push(free.to_string());
    }
    set_addresses(service, addresses, &pools.ranges)
}

/// `clusterIPs`, or `clusterIP` if there is no list.
fn named_addresses(service: &Value) -> Vec<String> {
    let mut addresses: Vec<_> = texts(service, "/spec/clusterIPs").into_iter().map(str::to_owned).collect();
    let first = text(service, "/spec/clusterIP");
    if addresses.is_empty() && !first.is_empty() {
        addresses.push(first.to_owned());
    }
    addresses
}

fn check_address(address: &str, pools: &Pools<'_>) -> Result<(), Vec<Cause>> {
    let invalid = |why: &str| Err(vec![Cause::invalid("spec.clusterIPs", &json!([address]), why)]);
    let Ok(parsed) = address.parse::<IpAddr>() else {
        return invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    };
    if !pools.ranges.iter().any(|range| range.contains(&parsed)) {
        let ranges = pools.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return invalid(&format!(
            "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. \
             The range of valid IPs is {ranges}"
        ));
    }
    if pools.allocator.is_address_taken(parsed) {
        return invalid(&format!("failed to allocate IP {address}: provided IP is already allocated"));
    }
    Ok(())
}

fn set_addresses(service: &mut Value, addresses: Vec<String>, ranges: &[IpNet]) -> Result<(), Vec<Cause>> {
    let mut families: Vec<_> = addresses
        .iter()
        .filter(|address| *address != "None")
        .map(|address| family(address).to_owned())
        .collect();
    if families.is_empty() {
        families.extend(ranges.first().map(|range| family(&range.addr().to_string()).to_owned()));
    }
    let spec = spec_mut(service);
    spec.entry("ipFamilyPolicy").or_insert("SingleStack".into());
    spec.entry("ipFamilies").or_insert(json!(families));
    spec.insert("clusterIP".to_owned(), json!(addresses.first()));
    spec.insert("clusterIPs".to_owned(), json!(addresses));
    Ok(())
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

/// Whether the type has node ports.
fn has_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn needs_health_check_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn allocate_node_ports(
    service: &mut Value,
    old: Option<&Value>,
    pools: &Pools<'_>,
) -> Result<(), Vec<Cause>> {
    let mut had: Vec<u16> = old
        .map(|old| list(old, "/spec/ports").iter().map(|port| number(&port["nodePort"])).collect())
        .unwrap_or_default();
    let old_health = old.map(|old| number(&old["spec"]["healthCheckNodePort"])).unwrap_or_default();
    had.push(old_health);
    let mut causes = Vec::new();
    let mut mine = Vec::new();
    let mut check = |field: String, port: u16| {
        let range = pools.allocator.node_port_range();
        let why = if !range.contains(&port) {
            let (low, high) = (range.start(), range.end());
            format!("provided port is not in the valid range. The range of valid ports is {low}-{high}")
        } else if pools.allocator.is_node_port_taken(port) && !had.contains(&port) {
            "provided port is already allocated".to_owned()
        } else {
            return;
        };
        causes.push(Cause::invalid(field, &port.into(), &why));
    };
    for (i, port) in list(service, "/spec/ports").iter().enumerate() {
        let port = number(&port["nodePort"]);
        if port != 0 {
            check(format!("spec.ports[{i}].nodePort"), port);
            mine.push(port);
        }
    }
    let health = number(&service["spec"]["healthCheckNodePort"]);
    if health != 0 {
        check("spec.healthCheckNodePort".to_owned(), health);
        mine.push(health);
    }
    if !causes.is_empty() {
        return Err(causes);
    }
    let mut next = |field: &str| {
        let free = pools.allocator.free_node_port(&mine);
        mine.extend(free);
        free.ok_or_else(|| {
            vec![Cause::invalid(field, &Value::Null, "failed to allocate a nodePort: range is full")]
        })
    };
    if needs_health_check_port(service) {
        if health == 0 {
            let port = next("spec.healthCheckNodePort")?;
            spec_mut(service).insert("healthCheckNodePort".to_owned(), port.into());
        }
    } else if health != 0 && health == old_health {
        // A port that the server has allocated is removed with the type that needed it.
        spec_mut(service).remove("healthCheckNodePort");
    }
    let wanted = has_node_ports(service);
    for port in ports_mut(service) {
        let number = number(&port["nodePort"]);
        if wanted && number == 0 {
            let free = next("spec.ports")?;
            object_mut(port).insert("nodePort".to_owned(), free.into());
        } else if !wanted && had.contains(&number) {
            object_mut(port).remove("nodePort");
        }
    }
    Ok(())
}

fn spec_mut(service: &mut Value) -> &mut Map<String, Value> {
    object_mut(object_mut(service).entry("spec").or_insert(Value::Null))
}

fn ports_mut(service: &mut Value) -> &mut [Value] {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
}

/// A port number; 0 if there is none, or if it is invalid.
fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or_default()
}

fn protocol(port: &Value) -> &str {
    match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Server {
        allocator: Allocator,
        ranges: Vec<IpNet>,
    }

    fn server() -> Server {
        let ranges = vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        Server { allocator: Allocator::new(30000..=30010), ranges }
    }

    impl Server {
        fn admit(&mut self, spec: Value, old: Option<&Value>) -> Result<Value, Vec<String>> {
            let mut service = json!({ "metadata": { "name": "a" }, "spec": spec });
            let pools = Pools { ranges: self.ranges.clone(), allocator: &self.allocator };
            admit(&mut service, old, &pools).map_err(|causes| {
                causes
                    .into_iter()
                    .map(|cause| format!("{}: {}", cause.field, cause.message))
                    .collect::<Vec<_>>()
            })?;
            if let Some(old) = old {
                self.allocator.release(old);
            }
            self.allocator.claim(&service);
            Ok(service)
        }
    }

    #[test]
    fn a_plain_service_gets_an_address_and_the_defaults() {
        let mut server = server();
        let service = server.admit(json!({ "ports": [{ "port": 80 }] }), None).unwrap();
        assert_eq!(
            service["spec"],
            json!({
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP" }],
            })
        );
        let dual = json!({ "ipFamilyPolicy": "PreferDualStack", "ports": [{ "port": 80 }] });
        let dual = server.admit(dual, None).unwrap();
        assert_eq!(dual["spec"]["clusterIPs"], json!(["10.96.0.3", "fd00:96::2"]));
        let six = json!({ "ipFamilies": ["IPv6"], "ports": [{ "port": 80 }] });
        assert_eq!(server.admit(six, None).unwrap()["spec"]["clusterIP"], "fd00:96::3");
    }

    #[test]
    fn a_load_balancer_gets_node_ports_and_loses_them_with_the_type() {
        let mut server = server();
        let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }]);
        let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports });
        let service = server.admit(spec, None).unwrap();
        assert_eq!(service["spec"]["healthCheckNodePort"], 30000);
        assert_eq!(service["spec"]["ports"][0]["nodePort"], 30001);
        assert_eq!(service["spec"]["ports"][1]["nodePort"], 30002);
        // A value that is left out is kept.
        let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports });
        let service = server.admit(spec, Some(&service)).unwrap();
        assert_eq!(service["spec"]["healthCheckNodePort"], 30000);
        assert_eq!(service["spec"]["ports"][1]["nodePort"], 30002);
        let mut spec = service["spec"].clone();
        spec["type"] = "ClusterIP".into();
        let service = server.admit(spec, Some(&service)).unwrap();
        assert!(service["spec"].get("healthCheckNodePort").is_none());
        assert!(service["spec"]["ports"][0].get("nodePort").is_none());
        assert!(!server.allocator.is_node_port_taken(30001));
    }

    #[test]
    fn the_cluster_ip_stays_in_range_unique_and_unchanged() {
        let mut server = server();
        let with = |address: &str| json!({ "clusterIP": address, "ports": [{ "port": 80 }] });
        let service = server.admit(with("10.96.0.10"), None).unwrap();
        let taken = server.admit(with("10.96.0.10"), None).unwrap_err();
        assert!(taken[0].ends_with("provided IP is already allocated"), "{taken:?}");
        let outside = server.admit(with("10.1.0.1"), None).unwrap_err();
        assert!(outside[0].contains("is not in the valid range"), "{outside:?}");
        let changed = server.admit(with("10.96.0.11"), Some(&service)).unwrap_err();
        assert!(changed[0].ends_with("may not change once set"), "{changed:?}");
        let kept = server.admit(json!({ "ports": [{ "port": 81 }] }), Some(&service)).unwrap();
        assert_eq!(kept["spec"]["clusterIP"], "10.96.0.10");
        let external = json!({ "type": "ExternalName", "externalName": "a.example" });
        let external = server.admit(external, Some(&kept)).unwrap();
        assert!(external["spec"].get("clusterIP").is_none());
        assert!(server.admit(with("10.96.0.10"), None).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let mut server = server();
        let mut fields = |spec: Value| {
            let causes = server.admit(spec, None).unwrap_err();
            causes.into_iter().map(|cause| cause.split(": ").next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(fields(json!({})), ["spec.ports"]);
        assert_eq!(fields(json!({ "ports": [{}] })), ["spec.ports[0].port"]);
        let twice = json!({ "ports": [{ "port": 80 }, { "port": 80, "protocol": "ICMP" }] });
        assert_eq!(fields(twice), ["spec.ports[0].name", "spec.ports[1].name", "spec.ports[1].protocol"]);
        assert_eq!(fields(json!({ "type": "Odd", "ports": [{ "port": 80 }] })), ["spec.type"]);
        assert_eq!(fields(json!({ "type": "ExternalName" })), ["spec.externalName"]);
        let outside = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] });
        assert_eq!(fields(outside), ["spec.ports[0].nodePort"]);
        assert!(server.admit(json!({ "clusterIP": "None" }), None).is_ok());
    }
}
