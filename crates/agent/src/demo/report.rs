//! The demo's figures as a table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use indicatif::HumanBytes;
use sluice_model::ServicePortName;
use sluice_table::Upstream;

use super::load::Outcome;
use super::scene::Scene;
use crate::proxy::Observer;

/// The endpoints seen so far; they stay in the demo's tables when the proxy's table has them no more.
#[derive(Default)]
pub(super) struct Report(BTreeMap<(ServicePortName, SocketAddr), Met>);

struct Met {
    name: String,
    upstream: Arc<Upstream>,
    /// The numbers at the last table.
    told: Numbers,
}

/// What an endpoint has carried.
#[derive(Default, Clone, Copy)]
struct Numbers {
    connections: u64,
    sent: u64,
    received: u64,
}

impl Numbers {
    fn of(upstream: &Upstream) -> Self {
        let stats = upstream.stats();
        Self {
            connections: stats.connections.load(Ordering::Relaxed),
            sent: stats.bytes_to_endpoint.load(Ordering::Relaxed),
            received: stats.bytes_from_endpoint.load(Ordering::Relaxed),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            connections: self.connections.saturating_sub(before.connections),
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
        }
    }
}

impl Report {
    /// Adds the endpoints that exist now.
    pub(super) fn meet(&mut self, observer: &Observer, scene: &Scene) {
        for (service, upstream) in observer.endpoints() {
            let name = scene.name_of(upstream.address()).unwrap_or_default().to_owned();
            self.0.entry((service, upstream.address())).or_insert(Met {
                name,
                upstream,
                told: Numbers::default(),
            });
        }
    }

    /// A row for each endpoint that took part: what the proxy has counted since the last table, and how long
    /// the answers in `outcomes` took.
    pub(super) fn table(&mut self, outcomes: &[&Outcome]) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header([
            "Service",
            "Endpoint",
            "Address",
            "Connections",
            "Sent to",
            "Received",
            "p50",
            "p99",
        ]);
        for ((service, address), Met { name, upstream, told }) in &mut self.0 {
            let latencies = outcomes.iter().find_map(|outcome| outcome.latencies.get(name.as_str()));
            let quantile = |q: f64| latencies.map_or_else(|| "-".to_owned(), |h| milliseconds(h, q));
            let now = Numbers::of(upstream);
            let numbers = now.since(std::mem::replace(told, now));
            if numbers.connections == 0 && latencies.is_none() {
                continue;
            }
            table.add_row([
                service.to_string(),
                name.clone(),
                address.to_string(),
                numbers.connections.to_string(),
                HumanBytes(numbers.sent).to_string(),
                HumanBytes(numbers.received).to_string(),
                quantile(0.50),
                quantile(0.99),
            ]);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn milliseconds(histogram: &Histogram<u64>, quantile: f64) -> String {
    let micros = u32::try_from(histogram.value_at_quantile(quantile)).unwrap_or(u32::MAX);
    format!("{:.2} ms", f64::from(micros) / 1_000.0)
}
