//! `/v1/services`: Services with an address here, from the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Family, ObjectName};
use sluice_table::{self as table, Backends, Origin, Route, SourceAddress, Table, Upstream};

use super::api::{
    Endpoint, EndpointState, Frontend, Outcome, Service, ServiceList, ServicePort, Traffic, Verdict,
};
use super::server::{Refusal, value};

/// The requested Services: by `name`, by `namespace`, by both, or all; without endpoints if the question is
/// `brief`.
pub(super) fn services(table: &Table, query: &str) -> Result<ServiceList, Refusal> {
    let (namespace, name) = (value(query, "namespace"), value(query, "name"));
    let is_meant = |service: &ObjectName| {
        namespace.as_deref().is_none_or(|namespace| *service.namespace == *namespace)
            && name.as_deref().is_none_or(|name| *service.name == *name)
    };
    let is_brief = value(query, "brief").is_some();
    let now = Instant::now();
    let items = by_service(table, is_meant).into_iter().map(|(name, ports)| Service {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        ports: ports.into_values().map(|routes| service_port(&routes, is_brief, now)).collect(),
    });
    let items: Vec<Service> = items.collect();
    match name {
        Some(name) if items.is_empty() => Err(unknown(namespace.as_deref(), &name)),
        _ => Ok(ServiceList { items }),
    }
}

/// The error that there is no such Service.
pub(super) fn unknown(namespace: Option<&str>, name: &str) -> Refusal {
    let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    Refusal::NotFound(format!(
        "no Service {name}{place} has an address here: it does not exist, has no cluster IP, or another \
         Service has its addresses (the log of the agent says so)"
    ))
}

/// A port's name, protocol and family, in sorting order.
pub(super) type PortKey = (Arc<str>, sluice_model::Protocol, Family);

/// All routes of each service port of each requested Service.
pub(super) fn by_service(
    table: &Table,
    is_meant: impl Fn(&ObjectName) -> bool,
) -> BTreeMap<ObjectName, BTreeMap<PortKey, Vec<Arc<Route>>>> {
    let mut services: BTreeMap<ObjectName, BTreeMap<PortKey, Vec<Arc<Route>>>> = BTreeMap::new();
    for route in table.routes() {
        let port = route.service_port();
        let name = port.name();
        if is_meant(&name.service) {
            let key = (Arc::clone(&name.port), name.protocol, port.family());
            services.entry(name.service.clone()).or_default().entry(key).or_default().push(route);
        }
    }
    services
}

/// A service port, from all routes to it; there is at least one.
pub(super) fn service_port(routes: &[Arc<Route>], is_brief: bool, now: Instant) -> ServicePort {
    let mut frontends: Vec<Frontend> = routes.iter().map(|route| frontend(route)).collect();
    frontends.sort_by(|a, b| a.kind.cmp(&b.kind).then(a.address.cmp(&b.address)));
    let Some(port) = routes.first().map(|route| route.service_port()) else {
        return ServicePort {
            name: String::new(),
            protocol: String::new(),
            family: String::new(),
            balance: String::new(),
            affinity_seconds: None,
            frontends,
            endpoints: Vec::new(),
            traffic: Traffic::default(),
        };
    };
    let backends = port.backends();
    let (endpoints, traffic) =
        if is_brief { (Vec::new(), port.traffic()) } else { port.endpoints_and_traffic() };
    ServicePort {
        name: port.name().port.to_string(),
        protocol: port.name().protocol.to_string(),
        family: port.family().to_string(),
        balance: backends.balance().to_string(),
        affinity_seconds: backends.affinity().map(|timeout| timeout.as_secs()),
        frontends,
        endpoints: endpoints.iter().map(|upstream| endpoint(upstream, &backends, now)).collect(),
        traffic: traffic.into(),
    }
}

fn frontend(route: &Route) -> Frontend {
    let outcome = |origin| {
        let (verdict, why) = route.outlook(origin);
        Outcome { verdict: verdict.into(), why: why.to_string() }
    };
    let sources = route.allowed_sources();
    Frontend {
        address: route.frontend().address,
        kind: route.kind().to_string(),
        inside: outcome(Origin::LocalPod),
        outside: outcome(Origin::Outside),
        allowed_sources: sources.map(|sources| sources.iter().map(ToString::to_string).collect()),
    }
}

/// An endpoint, by the version of the sets in which it is looked up.
pub(super) fn endpoint(upstream: &Arc<Upstream>, backends: &Backends, now: Instant) -> Endpoint {
    let condition = upstream.condition();
    let sources = [SourceAddress::Client, SourceAddress::Node];
    let passed_over = sources.into_iter().filter_map(|source| upstream.passed_over_for(source, now)).max();
    Endpoint {
        address: upstream.address(),
        state: match condition {
            _ if condition.ready => EndpointState::Ready,
            _ if condition.terminating && condition.serving => EndpointState::Serving,
            _ if condition.terminating => EndpointState::Terminating,
            _ => EndpointState::NotReady,
        },
        passed_over_seconds: passed_over.map(|time| time.as_secs_f64()),
        is_here: condition.here,
        in_cluster_set: backends.cluster().contains(upstream),
        in_local_set: backends.local().contains(upstream),
        traffic: upstream.stats().traffic().into(),
    }
}

impl From<table::Traffic> for Traffic {
    fn from(traffic: table::Traffic) -> Self {
        Self {
            open: traffic.active,
            total: traffic.connections,
            failed: traffic.failures,
            retried: traffic.retries,
            bytes_to_endpoint: traffic.bytes_to_endpoint,
            bytes_from_endpoint: traffic.bytes_from_endpoint,
            translated: traffic.translated,
        }
    }
}

impl From<table::Verdict> for Verdict {
    fn from(verdict: table::Verdict) -> Self {
        match verdict {
            table::Verdict::Relay => Self::Relay,
            table::Verdict::Refuse(_) => Self::Refuse,
            table::Verdict::Drop(_) => Self::Drop,
        }
    }
}
