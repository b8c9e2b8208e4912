//! Selects the rows of the metrics, and makes their labels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use sluice_model::{Family, Protocol, ServicePortName};
use sluice_table::{DatagramCounts, Datagrams, ServicePort, Table, Times, Traffic, Upstream};

use super::Detail;

/// The subject of one series of each metric.
#[derive(Debug)]
pub(super) struct Row {
    pub name: ServicePortName,
    /// Without braces.
    pub labels: String,
    pub traffic: Traffic,
    /// How long connections took to establish, and how long they lasted.
    pub times: Option<Box<[Times; 2]>>,
    /// UDP only.
    pub datagrams: Option<DatagramCounts>,
}

/// The rows of endpoints, of which there may be far more than fit: those that have carried or failed something
/// come first, and others fill the room.
#[derive(Debug)]
pub(super) struct Endpoints {
    bound: usize,
    seen: usize,
    busy: Vec<(ServicePortName, SocketAddr, Traffic)>,
    idle: Vec<(ServicePortName, SocketAddr, Traffic)>,
}

impl Endpoints {
    fn add(&mut self, name: &ServicePortName, upstream: &Upstream) {
        let traffic = upstream.stats().traffic();
        let rows = if traffic == Traffic::default() { &mut self.idle } else { &mut self.busy };
        self.seen += 1;
        if rows.len() < self.bound {
            rows.push((name.clone(), upstream.address(), traffic));
        }
    }

    /// How many have no row.
    pub(super) fn left_out(&self) -> usize {
        self.seen.saturating_sub(self.bound)
    }

    pub(super) fn rows(self) -> Vec<Row> {
        let kept = self.busy.into_iter().chain(self.idle).take(self.bound);
        let row = |(name, address, traffic)| {
            let labels = format!("{},endpoint=\"{address}\"", labels(&name));
            Row { name, labels, traffic, times: None, datagrams: None }
        };
        kept.map(row).collect()
    }
}

/// A row for each service port in both families and, if wanted, one for each of its endpoints; sorted by name.
pub(super) fn rows(table: &Table, detail: Detail, bound: usize) -> (Vec<Row>, Endpoints) {
    let mut ports: BTreeMap<(ServicePortName, Family), Arc<ServicePort>> = BTreeMap::new();
    for route in table.routes() {
        let port = route.service_port();
        ports.entry((port.name().clone(), port.family())).or_insert_with(|| Arc::clone(port));
    }
    let mut services: Vec<Row> = Vec::new();
    let mut endpoints = Endpoints { bound, seen: 0, busy: Vec::new(), idle: Vec::new() };
    for ((name, _), port) in ports {
        let (current, traffic) = port.endpoints_and_traffic();
        let times = port.times_so_far();
        let times = times.map(|times| Box::new([times.connecting.times(), times.lives.times()]));
        let datagrams = port.datagrams_so_far().map(Datagrams::counts);
        if detail == Detail::Endpoint {
            current.iter().for_each(|upstream| endpoints.add(&name, upstream));
        }
        match services.last_mut().filter(|row| row.name == name) {
            Some(row) => {
                row.traffic += traffic;
                if let Some(datagrams) = datagrams {
                    *row.datagrams.get_or_insert_default() += datagrams;
                }
                row.times = match (row.times.take(), times) {
                    (Some(mut sum), Some(times)) => {
                        sum.iter_mut().zip(*times).for_each(|(sum, times)| *sum += times);
                        Some(sum)
                    }
                    (one, other) => one.or(other),
                };
            }
            None => services.push(Row { labels: labels(&name), name, traffic, times, datagrams }),
        }
    }
    (services, endpoints)
}

/// Keeps at most `bound` rows, first those that have carried or failed something; returns how many are left
/// out.
pub(super) fn keep(rows: &mut Vec<Row>, bound: usize) -> usize {
    let left_out = rows.len().saturating_sub(bound);
    if left_out > 0 {
        rows.sort_by_key(|row| row.traffic == Traffic::default());
        rows.truncate(bound);
    }
    left_out
}

fn labels(name: &ServicePortName) -> String {
    let ServicePortName { service, port, protocol } = name;
    let protocol = match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    let [namespace, service, port] = [&service.namespace, &service.name, port].map(|text| escaped(text));
    format!("namespace=\"{namespace}\",service=\"{service}\",port=\"{port}\",protocol=\"{protocol}\"")
}

/// A label's value. Names of objects need no escaping, but manifests may contain anything.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return text.into();
    }
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_name_ends_no_label() {
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
        assert!(matches!(escaped("web-1"), Cow::Borrowed("web-1")));
    }
}
