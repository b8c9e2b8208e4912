//! `/status/data`: the page's data, a bounded number of service ports at a time.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use sluice_model::{Family, ObjectName};
use sluice_table::{Route, ServicePort as Port, Upstream};

use super::super::api::{EndpointState, ServicePort, Status, Traffic};
use super::super::server::{Inside, Refusal, value};
use super::super::services::{self, PortKey};
use super::super::status;
use super::troubles::{OfPort, Troubles, of_port};

/// Service ports in an answer.
const ROWS: usize = 50;

/// Frontends in a row.
const ADDRESSES: usize = 2;

/// The most frontends, endpoints and sources of the service port that is shown in full.
const MOST: usize = 100;

/// In which order service ports are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Sort {
    #[default]
    Name,
    Open,
    Connections,
    Bytes,
    Failed,
}

/// The service port to show in full.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    namespace: String,
    name: String,
    port: String,
    protocol: String,
    family: String,
}

impl Wanted {
    fn is(&self, service: &ObjectName, (port, protocol, family): &PortKey) -> bool {
        *self.namespace == *service.namespace
            && *self.name == *service.name
            && *self.port == **port
            && self.protocol == protocol.to_string()
            && self.family == family.to_string()
    }
}

/// The page's question.
#[derive(Debug)]
pub(super) struct Question {
    /// In lower case.
    filter: String,
    sort: Sort,
    /// Only ports in trouble.
    is_troubled: bool,
    /// From 0 on.
    page: usize,
    in_full: Option<Wanted>,
}

impl Question {
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let bad = |name: &str, why: String| Refusal::BadQuestion(format!("{name}: {why}"));
        let sort = value(query, "sort").map(|text| Sort::from_str(&text, false));
        let page = value(query, "page").map(|text| text.parse::<usize>());
        let get = |name| value(query, name).unwrap_or_default();
        let in_full = value(query, "name").map(|name| Wanted {
            namespace: get("namespace"),
            name,
            port: get("port"),
            protocol: get("protocol"),
            family: get("family"),
        });
        Ok(Self {
            filter: get("filter").trim().to_lowercase(),
            sort: sort.transpose().map_err(|why| bad("sort", why))?.unwrap_or_default(),
            is_troubled: value(query, "troubled").is_some(),
            page: page.transpose().map_err(|why| bad("page", why.to_string()))?.unwrap_or_default(),
            in_full,
        })
    }
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    status: Status,
    /// The sum over all service ports.
    traffic: Traffic,
    troubles: Troubles,
    services: List,
    /// The port that is asked for in full, if it exists.
    in_full: Option<InFull>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    items: Vec<Row>,
    /// How many match.
    matched: usize,
    /// How many exist.
    total: usize,
    /// The number of this page, from 0; the last one if the wanted one does not exist.
    page: usize,
    pages: usize,
}

/// A service port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    port: String,
    protocol: String,
    family: String,
    /// The first frontends.
    addresses: Vec<String>,
    /// How many there are.
    frontends: usize,
    /// Endpoints that take new connections.
    ready: usize,
    endpoints: usize,
    troubles: Vec<String>,
    traffic: Traffic,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InFull {
    #[serde(flatten)]
    port: ServicePort,
    namespace: String,
    /// The Service's name; the port has a name of its own.
    service: String,
    frontends_left_out: usize,
    endpoints_left_out: usize,
}

/// A service port that matches.
struct Entry {
    name: ObjectName,
    routes: Vec<Arc<Route>>,
    troubles: OfPort,
    traffic: Traffic,
}

impl Entry {
    fn port(&self) -> Option<&Arc<Port>> {
        self.routes.first().map(|route| route.service_port())
    }

    fn is_meant(&self, question: &Question) -> bool {
        let filter = question.filter.as_str();
        (!question.is_troubled || !self.troubles.is_empty())
            && (filter.is_empty()
                || self.port().is_some_and(|port| port.name().to_string().to_lowercase().contains(filter))
                || self.routes.iter().any(|route| route.frontend().address.to_string().starts_with(filter)))
    }

    fn row(&self, now: Instant) -> Option<Row> {
        let port = self.port()?;
        let mut addresses: Vec<_> =
            self.routes.iter().map(|route| (route.kind(), route.frontend().address)).collect();
        addresses.sort_unstable();
        let backends = port.backends();
        let endpoints = port.endpoints();
        let is_usable = |upstream: &&Arc<Upstream>| {
            let endpoint = services::endpoint(upstream, &backends, now);
            endpoint.state == EndpointState::Ready && endpoint.passed_over_seconds.is_none()
        };
        Some(Row {
            namespace: self.name.namespace.to_string(),
            name: self.name.name.to_string(),
            port: port.name().port.to_string(),
            protocol: port.name().protocol.to_string(),
            family: port.family().to_string(),
            addresses: addresses.iter().take(ADDRESSES).map(|(_, address)| address.to_string()).collect(),
            frontends: addresses.len(),
            ready: endpoints.iter().filter(is_usable).count(),
            endpoints: endpoints.len(),
            troubles: self.troubles.all(),
            traffic: self.traffic,
        })
    }

    fn in_full(&self, now: Instant) -> InFull {
        let mut port = services::service_port(&self.routes, false, now);
        // Endpoints in trouble come first, then the busiest.
        port.endpoints.sort_by_key(|endpoint| {
            let is_well = endpoint.passed_over_seconds.is_none() && endpoint.state == EndpointState::Ready;
            (is_well, Reverse(endpoint.traffic.open), endpoint.address)
        });
        let frontends_left_out = port.frontends.len().saturating_sub(MOST);
        let endpoints_left_out = port.endpoints.len().saturating_sub(MOST);
        port.frontends.truncate(MOST);
        port.endpoints.truncate(MOST);
        for sources in port.frontends.iter_mut().filter_map(|frontend| frontend.allowed_sources.as_mut()) {
            sources.truncate(MOST);
        }
        InFull {
            port,
            namespace: self.name.namespace.to_string(),
            service: self.name.name.to_string(),
            frontends_left_out,
            endpoints_left_out,
        }
    }
}

/// The answer to a question, as JSON.
pub(super) async fn find(inside: Arc<Inside>, question: Question) -> Result<Vec<u8>, Refusal> {
    let troubles = Troubles::of_objects(&inside).await?;
    let found = tokio::task::spawn_blocking(move || {
        let data = collect(&inside, &question, troubles);
        serde_json::to_vec(&data).map_err(|error| Refusal::Unable(error.to_string()))
    });
    found.await.unwrap_or_else(|error| Err(Refusal::Unable(format!("the answer was not finished: {error}"))))
}

fn collect(inside: &Inside, question: &Question, mut troubles: Troubles) -> Data {
    let now = Instant::now();
    let failures = inside.observer.failures();
    let mut traffic = Traffic::default();
    let mut entries = Vec::new();
    let mut total = 0;
    let mut in_full = None;
    for (name, ports) in services::by_service(inside.observer.table(), |_| true) {
        for (key, routes) in ports {
            let Some(port) = routes.first().map(|route| route.service_port()) else { continue };
            let (endpoints, carried) = port.endpoints_and_traffic();
            let entry = Entry {
                name: name.clone(),
                troubles: of_port(&routes, &endpoints, &failures, now),
                traffic: carried.into(),
                routes,
            };
            total += 1;
            add(&mut traffic, &entry.traffic);
            troubles.add_port(&name, &said(&key), &entry.troubles);
            if question.in_full.as_ref().is_some_and(|wanted| wanted.is(&name, &key)) {
                in_full = Some(entry.in_full(now));
            }
            if entry.is_meant(question) {
                entries.push(entry);
            }
        }
    }
    troubles.finish();
    // They are sorted by name, which stays the order among equals.
    match question.sort {
        Sort::Name => {}
        Sort::Open => entries.sort_by_key(|entry| Reverse(entry.traffic.open)),
        Sort::Connections => entries.sort_by_key(|entry| Reverse(entry.traffic.total)),
        Sort::Failed => entries.sort_by_key(|entry| Reverse(entry.traffic.failed)),
        Sort::Bytes => entries.sort_by_key(|entry| {
            Reverse(entry.traffic.bytes_to_endpoint.saturating_add(entry.traffic.bytes_from_endpoint))
        }),
    }
    let matched = entries.len();
    let pages = matched.div_ceil(ROWS).max(1);
    let page = question.page.min(pages - 1);
    let items = entries.iter().skip(page * ROWS).take(ROWS).filter_map(|entry| entry.row(now)).collect();
    Data {
        // Problems of objects are among the troubles.
        status: status::status(inside, None),
        traffic,
        troubles,
        services: List { items, matched, total, page, pages },
        in_full,
    }
}

/// A port's label for people.
fn said((port, protocol, family): &PortKey) -> String {
    let family = if *family == Family::V6 { " IPv6" } else { "" };
    if port.is_empty() { format!("{protocol}{family}") } else { format!("{port}/{protocol}{family}") }
}

fn add(sum: &mut Traffic, more: &Traffic) {
    sum.open += more.open;
    sum.total += more.total;
    sum.failed += more.failed;
    sum.retried += more.retried;
    sum.bytes_to_endpoint += more.bytes_to_endpoint;
    sum.bytes_from_endpoint += more.bytes_from_endpoint;
}
