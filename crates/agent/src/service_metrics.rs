//! Metrics of each Service and each endpoint: part of `/metrics`.
//!
//! A node may have a hundred thousand endpoints, most of which it never connects to. So the detail is a
//! setting, and the number is bounded: those that have carried something come first.

mod rows;

use std::cmp::Reverse;
use std::fmt::{self, Write as _};

use clap::ValueEnum;
use sluice_model::Protocol;
use sluice_table::{Loss, Table, Times, Traffic};

use self::rows::{Row, keep, rows};

/// The most service ports, and the most endpoints: each has seven series.
const ROWS: usize = 10_000;

/// The most service ports with histograms: each has 22 series.
const HISTOGRAMS: usize = 1_000;

/// `--service-metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Detail {
    /// Nothing of single Services.
    Off,
    /// Each port of each Service.
    Service,
    /// Each endpoint of them, too.
    Endpoint,
}

/// A number, as a metric.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    of: fn(&Traffic) -> u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

const METRICS: [Metric; 7] = [
    Metric {
        name: "connections",
        help: "TCP connections established and UDP flows opened, relayed or translated",
        kind: Kind::Counter,
        of: |traffic| traffic.connections,
    },
    Metric {
        name: "connections_active",
        help: "TCP connections and UDP flows that are open, relayed or translated",
        kind: Kind::Gauge,
        of: |traffic| traffic.active,
    },
    Metric {
        name: "connect_failures",
        help: "Attempts to connect that failed",
        kind: Kind::Counter,
        of: |traffic| traffic.failures,
    },
    Metric {
        name: "connect_retries",
        help: "Attempts to connect that followed a failed attempt at another endpoint",
        kind: Kind::Counter,
        of: |traffic| traffic.retries,
    },
    Metric {
        name: "passed_over",
        help: "Times that an endpoint was ejected because it kept failing",
        kind: Kind::Counter,
        of: |traffic| traffic.passed_over,
    },
    Metric {
        name: "bytes_from_clients",
        help: "Bytes of payload from clients to endpoints",
        kind: Kind::Counter,
        of: |traffic| traffic.bytes_to_endpoint,
    },
    Metric {
        name: "bytes_to_clients",
        help: "Bytes of payload from endpoints to clients",
        kind: Kind::Counter,
        of: |traffic| traffic.bytes_from_endpoint,
    },
];

/// Writes the metrics in OpenMetrics format, with the wanted detail.
///
/// Written by hand: each number of a row has the same labels, and formatting them again each time took most of
/// a scrape.
pub(crate) fn write(text: &mut String, table: &Table, detail: Detail) -> fmt::Result {
    write_bounded(text, table, detail, ROWS)
}

fn write_bounded(text: &mut String, table: &Table, detail: Detail, bound: usize) -> fmt::Result {
    if detail == Detail::Off {
        return Ok(());
    }
    let (mut services, endpoints) = rows(table, detail, bound);
    let left_out = keep(&mut services, bound) + endpoints.left_out();
    let endpoints = endpoints.rows();
    text.reserve((services.len() + endpoints.len()) * METRICS.len() * SERIES_BYTES);
    for metric in &METRICS {
        write_rows(text, "service", metric, &services)?;
    }
    if detail == Detail::Endpoint {
        for metric in &METRICS {
            write_rows(text, "endpoint", metric, &endpoints)?;
        }
    }
    write_translated(text, "service", &services)?;
    write_translated(text, "endpoint", &endpoints)?;
    write_datagrams(text, &services)?;
    let histograms = write_times(text, &services, HISTOGRAMS.min(bound))?;
    let help = "Service ports with traffic that have no histograms of their own, because there are too many";
    describe(text, "service_histograms_left_out", help, "gauge")?;
    writeln!(text, "{PREFIX}service_histograms_left_out {histograms}")?;
    let help = "Service ports and endpoints that have no metrics of their own, because there are too many";
    describe(text, "service_metrics_left_out", help, "gauge")?;
    writeln!(text, "{PREFIX}service_metrics_left_out {left_out}")
}

/// The prefix of all our metrics.
const PREFIX: &str = "sluice_";

/// The approximate size of a series.
const SERIES_BYTES: usize = 128;

fn describe(text: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    write!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n")
}

/// The end of a description, which says what has a series.
fn each(of: &str) -> &'static str {
    if of == "endpoint" { "of each endpoint" } else { "of each Service port" }
}

fn write_rows(text: &mut String, of: &str, metric: &Metric, rows: &[Row]) -> fmt::Result {
    let Metric { name, help, kind, of: value } = metric;
    let (kind, suffix) = match kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
    };
    let name = format!("{of}_{name}");
    describe(text, &name, &format!("{help}, {}", each(of)), kind)?;
    let before = format!("{PREFIX}{name}{suffix}{{");
    for row in rows {
        text.push_str(&before);
        text.push_str(&row.labels);
        writeln!(text, "}} {}", value(&row.traffic))?;
    }
    Ok(())
}

/// Writes how many connections were translated, for rows that had any; the other numbers include them.
fn write_translated(text: &mut String, of: &str, rows: &[Row]) -> fmt::Result {
    let counted = || rows.iter().filter(|row| row.traffic.translated > 0);
    if counted().next().is_none() {
        return Ok(());
    }
    let name = format!("{of}_connections_translated");
    let each = each(of);
    let help = format!("TCP connections and UDP flows translated at the client's socket, {each}");
    describe(text, &name, &help, "counter")?;
    for row in counted() {
        writeln!(text, "{PREFIX}{name}_total{{{}}} {}", row.labels, row.traffic.translated)?;
    }
    let name = format!("{of}_connections_translated_closed");
    let help = format!("Translated TCP connections that have ended, whose bytes are counted, {each}");
    describe(text, &name, &help, "counter")?;
    for row in counted() {
        writeln!(text, "{PREFIX}{name}_total{{{}}} {}", row.labels, row.traffic.translated_closed)?;
    }
    let name = format!("{of}_connections_translated_closed_seconds");
    let help = format!("Time that translated TCP connections which have ended lasted in total, {each}");
    describe(text, &name, &help, "counter")?;
    for row in counted() {
        let seconds = row.traffic.translated_micros as f64 / 1e6;
        writeln!(text, "{PREFIX}{name}_total{{{}}} {seconds:?}", row.labels)?;
    }
    Ok(())
}

/// Writes what became of UDP datagrams, for rows that had any.
fn write_datagrams(text: &mut String, rows: &[Row]) -> fmt::Result {
    let counted = || rows.iter().filter_map(|row| Some((&row.labels, row.datagrams?)));
    let name = "service_datagrams_from_clients";
    describe(text, name, "UDP datagrams delivered to endpoints, of each Service port", "counter")?;
    for (labels, datagrams) in counted() {
        writeln!(text, "{PREFIX}{name}_total{{{labels}}} {}", datagrams.forwarded)?;
    }
    let name = "service_datagrams_to_clients";
    describe(text, name, "UDP datagrams delivered to clients, of each Service port", "counter")?;
    for (labels, datagrams) in counted() {
        writeln!(text, "{PREFIX}{name}_total{{{labels}}} {}", datagrams.returned)?;
    }
    let name = "service_datagrams_lost";
    describe(text, name, "UDP datagrams that were dropped, of each Service port, by reason", "counter")?;
    for (labels, datagrams) in counted() {
        for (loss, count) in Loss::ALL.iter().zip(datagrams.lost) {
            writeln!(text, "{PREFIX}{name}_total{{{labels},reason=\"{}\"}} {count}", loss.name())?;
        }
    }
    Ok(())
}

/// Writes the histograms of the rows with the most connections; returns how many are left out.
fn write_times(text: &mut String, rows: &[Row], bound: usize) -> Result<usize, fmt::Error> {
    let mut timed: Vec<(&Row, &[Times; 2])> =
        rows.iter().filter_map(|row| Some((row, row.times.as_deref()?))).collect();
    let left_out = timed.len().saturating_sub(bound);
    if left_out > 0 {
        timed.sort_by_key(|(row, _)| Reverse(row.traffic.connections));
        timed.truncate(bound);
    }
    let metrics = [
        (
            "connect",
            "Time from the first attempt to connect until an endpoint has answered, of relayed TCP, of each Service port",
        ),
        ("connection", "How long relayed connections and flows lasted that have ended, of each Service port"),
    ];
    for (index, (of, help)) in metrics.into_iter().enumerate() {
        let name = format!("service_{of}_duration_seconds");
        describe(text, &name, help, "histogram")?;
        for (row, times) in &timed {
            // No UDP flow is ever connecting.
            if index == 0 && row.name.protocol == Protocol::Udp {
                continue;
            }
            let (labels, times) = (&row.labels, &times[index]);
            let mut count = 0;
            for (bound, more) in times.buckets() {
                count += more;
                let bound = bound.map_or("+Inf".to_owned(), |bound| format!("{:?}", bound.as_secs_f64()));
                writeln!(text, "{PREFIX}{name}_bucket{{{labels},le=\"{bound}\"}} {count}")?;
            }
            let sum = times.sum().as_secs_f64();
            writeln!(
                text,
                "{PREFIX}{name}_sum{{{labels}}} {sum:?}\n{PREFIX}{name}_count{{{labels}}} {count}"
            )?;
        }
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use sluice_capture::socket::{AtSockets, Ledger, Sockets};

    use sluice_model::{
        Change, Endpoint, EndpointSlice, Family, ObjectName, Service, ServicePort, SlicePort,
    };
    use sluice_socket_maps::{Account, Capacity, Maps, Memory};
    use sluice_table::{Client, FrontendKey, Origin, Writer, WriterConfig};

    use super::*;

    fn text_of(table: &Table, detail: Detail, bound: usize) -> String {
        let mut text = String::new();
        write_bounded(&mut text, table, detail, bound).unwrap();
        text
    }

    fn cluster_ip(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a60_0000 + n).into()
    }

    /// A table of so many Services with so many endpoints each.
    fn table(services: u32, endpoints: u32) -> Writer {
        let mut writer = Writer::new(WriterConfig::new("here"));
        for n in 0..services {
            let name = ObjectName::new("default", format!("web-{n}"));
            let port =
                ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
            writer.apply(Change::Apply(Service::new(name.clone(), vec![cluster_ip(n)], vec![port]).into()));
            writer.apply(Change::Apply(slice(name, n, endpoints).into()));
        }
        let mut plan = writer.plan();
        writer.publish(&mut plan);
        writer.finish(&mut plan);
        writer
    }

    fn slice(service: ObjectName, n: u32, endpoints: u32) -> EndpointSlice {
        let address = |m| Ipv4Addr::from_bits(0x0af4_0000 + n * endpoints + m).into();
        EndpointSlice {
            last_change: None,
            name: service.clone(),
            service,
            family: Family::V4,
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }],
            endpoints: (0..endpoints).map(|m| Endpoint::ready(address(m))).collect(),
        }
    }

    fn connect(table: &Table, n: u32) {
        let route =
            table.reader().lookup(FrontendKey::new(cluster_ip(n), 80, Protocol::Tcp)).cloned().unwrap();
        let client = Client { ip: [10, 0, 0, 1].into(), origin: Origin::Outside };
        let mut selection = route.select(client, Instant::now()).unwrap();
        let upstream = selection.next(Instant::now()).unwrap();
        drop(selection.connected(&upstream, Instant::now()));
        let times = route.service_port().times();
        times.connecting.add(Duration::from_millis(3));
        times.lives.add(Duration::from_secs(3));
    }

    #[test]
    fn sums_stay_when_an_endpoint_leaves_and_its_own_series_goes() {
        let mut writer = table(1, 1);
        connect(writer.table(), 0);
        let told = text_of(writer.table(), Detail::Endpoint, 10);
        let labels = r#"namespace="default",service="web-0",port="http",protocol="TCP""#;
        let sum = format!("sluice_service_connections_total{{{labels}}} 1\n");
        assert!(told.contains(&sum), "{told}");
        let own = format!("sluice_endpoint_connections_total{{{labels},endpoint=\"10.244.0.0:8080\"}} 1\n");
        assert!(told.contains(&own), "{told}");
        let times = [
            format!("sluice_service_connect_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1\n"),
            format!("sluice_service_connect_duration_seconds_bucket{{{labels},le=\"0.001\"}} 0\n"),
            format!("sluice_service_connection_duration_seconds_sum{{{labels}}} 3.0\n"),
        ];
        times.iter().for_each(|line| assert!(told.contains(line), "{line} is not in\n{told}"));
        writer.apply(Change::Apply(slice(ObjectName::new("default", "web-0"), 7, 1).into()));
        let told = text_of(writer.table(), Detail::Endpoint, 10);
        assert!(told.contains(&sum) && !told.contains("10.244.0.0"), "{told}");
        times.iter().for_each(|line| assert!(told.contains(line), "{line} is gone from\n{told}"));
        assert!(!text_of(writer.table(), Detail::Service, 10).contains("endpoint="));
        assert!(!text_of(writer.table(), Detail::Off, 10).contains("sluice_"));
    }

    #[test]
    fn over_the_bound_those_that_carry_nothing_are_left_out_and_counted() {
        let writer = table(5, 1);
        connect(writer.table(), 3);
        let told = text_of(writer.table(), Detail::Endpoint, 2);
        let count = |name: &str| told.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(count("sluice_service_connections_total{"), 2);
        assert_eq!(count("sluice_endpoint_connections_total{"), 2);
        assert!(told.contains(r#"service="web-3",port="http",protocol="TCP"} 1"#), "{told}");
        assert!(told.contains("sluice_service_metrics_left_out 6\n"), "{told}");
        connect(writer.table(), 1);
        connect(writer.table(), 1);
        let told = text_of(writer.table(), Detail::Service, 1);
        let histogram = "sluice_service_connection_duration_seconds_count{";
        assert!(told.lines().any(|line| line.starts_with(histogram) && line.contains("web-1")), "{told}");
        assert!(told.contains("sluice_service_metrics_left_out 4\n"), "{told}");
        let told = text_of(writer.table(), Detail::Endpoint, 5);
        assert!(told.contains("sluice_service_metrics_left_out 0\n"), "{told}");
    }

    #[test]
    #[ignore = "a measurement: run it alone, in release mode, with --nocapture"]
    fn what_ten_thousand_services_cost() {
        let writer = table(10_000, 10);
        (0..10_000).for_each(|n| connect(writer.table(), n));
        for detail in [Detail::Off, Detail::Service, Detail::Endpoint] {
            measure(&format!("{detail:?}"), || text_of(writer.table(), detail, ROWS).len());
        }
        let connections = Arc::new(AtomicU32::new(1));
        let made = Arc::clone(&connections);
        let account = move |_| Account { connections: made.load(Ordering::Relaxed), ..Account::default() };
        let ledger = Arc::new(Ledger::new(account));
        let room = Capacity { frontends: 65_536, sets: 32_768, slots: 1 << 18, endpoints: 110_000 };
        let maps = Maps::new(Memory::new(room));
        let mut sockets = Sockets::new(maps, writer.table(), Arc::clone(&ledger), false);
        let frontends: Vec<_> = writer.table().routes().iter().map(|route| route.frontend()).collect();
        sockets.offer(&frontends);
        measure("settling what has changed of each endpoint", || {
            connections.fetch_add(1, Ordering::Relaxed);
            ledger.settle();
            ledger.sum().connections
        });
        measure("settling nothing", || {
            ledger.settle();
            0_u8
        });
        for detail in [Detail::Service, Detail::Endpoint] {
            measure(&format!("{detail:?}, all translated"), || text_of(writer.table(), detail, ROWS).len());
        }
    }

    fn measure<T: fmt::Debug + Ord>(what: &str, mut work: impl FnMut() -> T) {
        let mut times: Vec<_> = (0..9)
            .map(|_| {
                let start = Instant::now();
                let done = work();
                (start.elapsed(), done)
            })
            .collect();
        times.sort_unstable();
        println!("{what}: median {:?}, {:?}", times[4].0, times[4].1);
    }
}
