//! Service to [`Service`].

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use sluice_model::{Family, Service, ServicePort, TrafficPolicy};

use super::{Converted, Problems, Skip, each};
use crate::api;

/// The annotation that limits connections, without its prefix.
const MAX_CONNECTIONS: &str = "max-connections";

/// The apiserver's default for `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);
/// The apiserver's upper limit for it: a day.
const MAX_AFFINITY_SECONDS: u64 = 86_400;

/// Converts a Service.
pub fn service(service: &api::Service) -> Converted<Service> {
    let mut problems = Problems::default();
    if service.metadata.labels.proxy_name.0 {
        return problems.skip(Skip::OtherProxy);
    }
    let spec = &service.spec;
    if spec.type_.as_deref() == Some("ExternalName") {
        return problems.skip(Skip::ExternalName);
    }
    let name = problems.object_name(&service.metadata);
    let cluster_ips = match cluster_ips(spec, &mut problems) {
        Ok(cluster_ips) => cluster_ips,
        Err(skip) => return problems.skip(skip),
    };
    let Some(name) = name else { return problems.skip(Skip::Broken) };

    let families: Vec<Family> = cluster_ips.iter().copied().map(Family::of).collect();
    let load_balancer_ips = load_balancer_ips(service, &families, &mut problems);
    let external_policy = policy("externalTrafficPolicy", &spec.external_traffic_policy, &mut problems);
    let object = Service {
        name,
        created: created(service, &mut problems),
        external_ips: external_ips(spec, &families, &mut problems),
        source_ranges: source_ranges(spec, &mut problems),
        internal_policy: policy("internalTrafficPolicy", &spec.internal_traffic_policy, &mut problems),
        external_policy,
        affinity: affinity(spec, &mut problems),
        health_check_node_port: health_check_node_port(spec, external_policy, &mut problems),
        ports: ports(spec, &mut problems),
        max_connections: max_connections(service, &mut problems),
        annotations: service.metadata.annotations.own.clone(),
        cluster_ips,
        load_balancer_ips,
    };
    problems.object(object)
}

/// When it was created; the latest possible time if it does not say.
fn created(service: &api::Service, problems: &mut Problems) -> i64 {
    let Some(text) = &service.metadata.creation_timestamp else { return i64::MAX };
    match text.parse::<Timestamp>() {
        Ok(time) => time.as_second(),
        Err(_) => {
            let mend = "write it as 2026-01-31T12:00:00Z, or leave it out";
            problems.note("metadata.creationTimestamp", format!("{text:?} is not a time"), mend);
            i64::MAX
        }
    }
}

/// One cluster IP per family. With `ipFamilies`, the address at the same index of `clusterIPs` counts for a
/// family (`GetClusterIPByFamily`). Without it, each address counts for its own family.
fn cluster_ips(spec: &api::ServiceSpec, problems: &mut Problems) -> Result<Vec<IpAddr>, Skip> {
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    let list: Vec<&str> = match each(&spec.cluster_ips).next() {
        Some(_) => each(&spec.cluster_ips).map(|(_, text)| text.as_str()).collect(),
        None if single.is_empty() => Vec::new(),
        None => vec![single],
    };
    if single == "None" || list.first() == Some(&"None") {
        return Err(Skip::Headless);
    }
    if list.iter().all(|text| text.is_empty()) {
        return Err(Skip::NoClusterIp);
    }
    let field = |i: usize| match each(&spec.cluster_ips).next() {
        Some(_) => format!("spec.clusterIPs[{i}]"),
        None => "spec.clusterIP".to_owned(),
    };
    if !single.is_empty() && list.first() != Some(&single) {
        let what = format!("differs from spec.clusterIP, which is {single:?}");
        problems.note(field(0), what, "write the same address in both");
    }
    let families: Option<Vec<&str>> = each(&spec.ip_families)
        .next()
        .is_some()
        .then(|| each(&spec.ip_families).map(|(_, family)| family.as_str()).collect());
    let mut found: Vec<IpAddr> = Vec::new();
    for (i, text) in list.into_iter().enumerate() {
        let address = match &families {
            None => problems.address(field(i), text),
            Some(families) => match families.get(i) {
                Some(&"IPv4") => problems.address_of(field(i), text, Family::V4, "spec.ipFamilies says"),
                Some(&"IPv6") => problems.address_of(field(i), text, Family::V6, "spec.ipFamilies says"),
                Some(other) => {
                    let what = format!("{other:?} is not a family");
                    problems.note(format!("spec.ipFamilies[{i}]"), what, "write IPv4 or IPv6");
                    None
                }
                // A remnant of dual-stack: the Service has been made single-stack.
                None => None,
            },
        };
        let Some(address) = address else { continue };
        if found.iter().any(|other| Family::of(*other) == Family::of(address)) {
            let what = format!("{address} is a second {} cluster IP", Family::of(address));
            problems.note(field(i), what, "leave one per family; other addresses belong in spec.externalIPs");
        } else {
            found.push(address);
        }
    }
    if found.is_empty() { Err(Skip::Broken) } else { Ok(found) }
}

/// External IPs of the families in which the Service has a cluster IP: kube-proxy serves no others.
fn external_ips(spec: &api::ServiceSpec, families: &[Family], problems: &mut Problems) -> Vec<IpAddr> {
    each(&spec.external_ips)
        .filter_map(|(i, text)| served_address(format!("spec.externalIPs[{i}]"), text, families, problems))
        .collect()
}

/// Load balancer addresses that are still in the packets when they reach the node (`ipMode: VIP`).
fn load_balancer_ips(service: &api::Service, families: &[Family], problems: &mut Problems) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (i, ingress) in each(&service.status.load_balancer.ingress) {
        let field = format!("status.loadBalancer.ingress[{i}]");
        let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => {
                found.extend(served_address(field + ".ip", text, families, problems));
            }
            Some("Proxy") => {}
            Some(other) => {
                let what = format!("{other:?} is not a mode");
                problems.note(field + ".ipMode", what, "write VIP or Proxy; this address is left out");
            }
        }
    }
    found
}

fn served_address(field: String, text: &str, families: &[Family], problems: &mut Problems) -> Option<IpAddr> {
    let address = problems.address(field.clone(), text)?;
    let family = Family::of(address);
    if families.contains(&family) {
        return Some(address);
    }
    let what = format!("the Service has no {family} cluster IP, so that {address} is not served");
    problems.note(field, what, format!("give it an {family} address in spec.clusterIPs"));
    None
}

/// The ranges that may use load balancer addresses; `None` if everybody may.
///
/// kube-proxy handles each family separately: a family without any valid range, or with a `/0`, is open. A
/// Service that has only invalid ranges is therefore open, too (`MapCIDRsByIPFamily` leaves them out, and no
/// firewall chain is made for an empty list).
fn source_ranges(spec: &api::ServiceSpec, problems: &mut Problems) -> Option<Vec<IpNet>> {
    let field = "spec.loadBalancerSourceRanges";
    let ranges: Vec<IpNet> = each(&spec.load_balancer_source_ranges)
        .filter_map(|(i, text)| problems.cidr(format!("{field}[{i}]"), text))
        .collect();
    if ranges.is_empty() && each(&spec.load_balancer_source_ranges).next().is_some() {
        problems.note(
            field,
            "none is valid: load-balancer addresses are open to everybody",
            "mend the ranges",
        );
    }
    let is_open = |family: Family| {
        let mut prefixes = ranges.iter().filter(|range| Family::of(range.addr()) == family).peekable();
        prefixes.peek().is_none() || prefixes.any(|range| range.prefix_len() == 0)
    };
    let is_restricted = !is_open(Family::V4) || !is_open(Family::V6);
    is_restricted.then_some(ranges)
}

fn policy(field: &str, policy: &Option<String>, problems: &mut Problems) -> TrafficPolicy {
    match policy.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let mend = "write Cluster or Local; Cluster is assumed";
            problems.note(format!("spec.{field}"), format!("{other:?} is not a policy"), mend);
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &api::ServiceSpec, problems: &mut Problems) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let mend = "write ClientIP or None; None is assumed";
            problems.note("spec.sessionAffinity", format!("{other:?} is not one"), mend);
            return None;
        }
    }
    let Some(seconds) = spec.session_affinity_config.client_ip.timeout_seconds else {
        return Some(DEFAULT_AFFINITY);
    };
    let valid = u64::try_from(seconds).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds));
    if valid.is_none() {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let mend = "write 1 to 86400 seconds; 10800 is assumed";
        problems.note(field, format!("{seconds} is out of range"), mend);
    }
    Some(valid.map_or(DEFAULT_AFFINITY, Duration::from_secs))
}

/// The health check port. Only load balancers use it, and only policy Local makes nodes answer differently
/// (`NeedsHealthCheck`).
fn health_check_node_port(
    spec: &api::ServiceSpec,
    policy: TrafficPolicy,
    problems: &mut Problems,
) -> Option<u16> {
    if spec.type_.as_deref() != Some("LoadBalancer") || policy != TrafficPolicy::Local {
        return None;
    }
    optional_port("spec.healthCheckNodePort", spec.health_check_node_port, problems)
}

fn optional_port(field: impl Into<String>, number: Option<i32>, problems: &mut Problems) -> Option<u16> {
    number.filter(|number| *number != 0)?;
    problems.port(field, number)
}

fn ports(spec: &api::ServiceSpec, problems: &mut Problems) -> Vec<ServicePort> {
    if each(&spec.ports).next().is_none() {
        problems.note("spec.ports", "none: nothing to serve", "write at least one port");
    }
    let mut found: Vec<ServicePort> = Vec::new();
    // Sets, because a Service may have as many ports as fit into an object.
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (i, port) in each(&spec.ports) {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let Some(protocol) = problems.protocol(field("protocol"), port.protocol.as_deref()) else { continue };
        let Some(number) = problems.port(field("port"), port.port) else { continue };
        let name = port.name.as_deref().unwrap_or_default();
        if names.contains(&(name, protocol)) {
            let what = format!("a port before it has the same name {name:?} and protocol");
            problems.note(field("name"), what, "give every port a name of its own");
            continue;
        }
        if !numbers.insert((number, protocol)) {
            problems.note(field("port"), format!("{number}/{protocol} is there twice"), "leave one of them");
            continue;
        }
        names.insert((name, protocol));
        let node_port = optional_port(field("nodePort"), port.node_port, problems);
        found.push(ServicePort { name: name.into(), protocol, port: number, node_port });
    }
    found
}

/// The maximum number of connections to the Service on a node.
fn max_connections(service: &api::Service, problems: &mut Problems) -> Option<NonZeroU32> {
    let text = service.metadata.annotations.own.get(MAX_CONNECTIONS)?;
    let number = text.trim().parse().ok();
    if number.is_none() {
        let field = format!("metadata.annotations[sluice.dev/{MAX_CONNECTIONS}]");
        let mend = "write a number from 1, or leave it out; no limit is assumed";
        problems.note(field, format!("{text:?} is no number of connections"), mend);
    }
    number
}

#[cfg(test)]
mod tests;
