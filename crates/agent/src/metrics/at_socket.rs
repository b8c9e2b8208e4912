//! What is decided at clients' sockets, as metrics: how much the programs in the kernel know, and what they did.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use sluice_socket_maps::{Capacity, Stats};

use super::{Metrics, counter, gauge, histogram};
use crate::at_socket::Looks;

impl Metrics {
    /// How connections get to endpoints, and why not at the socket where that was asked for.
    pub(super) fn encode_mode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let reason = self.observer.at_socket().reason().map_or_else(String::new, |reason| (*reason).clone());
        let labels = [
            ("mode", self.observer.mode().to_owned()),
            ("wanted", self.wanted.to_owned()),
            ("reason", reason),
        ];
        let help = "How connections get to endpoints, and why not as they were to";
        Info::new(labels.to_vec()).encode(encoder.encode_descriptor(
            "capture",
            help,
            None,
            MetricType::Info,
        )?)
    }

    /// Nothing, where nothing is decided at sockets.
    pub(super) fn encode_at_socket(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.observer.at_socket();
        let Some(looks) = view.looks() else { return Ok(()) };
        let stats = view.stats();
        encode_sizes(encoder, stats, looks.capacity)?;
        let help = "Service ports of which something has no room there, and is relayed";
        gauge(encoder, "socket_waiting", help, stats.waiting as f64)?;
        let help = "Network namespaces of pods that the programs know; 0 where all are taken for that";
        gauge(encoder, "socket_namespaces", help, looks.names.known() as f64)?;
        let help = "Network namespaces of pods that are left to the relay by an annotation, or as nobody knows whose they are";
        gauge(encoder, "socket_namespaces_kept_out", help, looks.names.kept_out() as f64)?;
        encode_counters(encoder, stats, &looks)?;
        let help = "How long those of TCP lasted that are over";
        histogram(encoder, "socket_connection_duration_seconds", help, &looks.ledger.lives())
    }
}

/// How much the maps hold, and could.
fn encode_sizes(encoder: &mut DescriptorEncoder<'_>, stats: Stats, capacity: Capacity) -> fmt::Result {
    let parts = [
        ("frontends", "Frontends", stats.frontends, capacity.frontends),
        ("sets", "Sets of endpoints", stats.sets, capacity.sets),
        ("endpoints", "Endpoints, once for each set", stats.endpoints, capacity.endpoints),
        ("slots", "Places in sets", stats.slots, capacity.slots),
        (
            "affinity_clients",
            "Clients that keep their endpoint, or are about to be forgotten, once for each set",
            stats.clients,
            stats.most_clients,
        ),
    ];
    for (name, what, number, capacity) in parts {
        let help = format!("{what} that the programs know");
        gauge(encoder, &format!("socket_{name}"), &help, number as f64)?;
        let help = format!("{what} that there is room for");
        gauge(encoder, &format!("socket_{name}_capacity"), &help, f64::from(capacity))?;
    }
    Ok(())
}

/// What the programs did, and what was done for them.
fn encode_counters(encoder: &mut DescriptorEncoder<'_>, stats: Stats, looks: &Looks) -> fmt::Result {
    let (sum, totals) = (looks.ledger.sum(), looks.ledger.totals());
    let counters = [
        (
            "socket_map_failures",
            "How often something had no room there, or the kernel refused a change",
            stats.failures,
        ),
        (
            "socket_affinity_refused",
            "How often a client that keeps its endpoint was left to the relay, as its Service had its share of the room",
            stats.refused_clients,
        ),
        (
            "socket_ended",
            "Connected UDP sockets that were ended, as their endpoint or Service is gone",
            looks.swept.ended(),
        ),
        (
            "socket_end_failures",
            "Looks after which such a socket was left, or at which the kernel told nothing",
            looks.swept.failed(),
        ),
        (
            "socket_connections",
            "TCP connections that were led to an endpoint at the client's socket and came about, and flows",
            sum.connections,
        ),
        ("socket_connections_closed", "Of those of TCP, the ones that are over", sum.closed),
        (
            "socket_connections_failed",
            "TCP connections led there that the endpoint or the network did not let come about",
            sum.failed,
        ),
        (
            "socket_connections_aborted",
            "TCP connections led there that the client gave up before they came about",
            totals.aborted,
        ),
        (
            "socket_connections_slow",
            "TCP connections led there whose first packet was not answered within a second",
            totals.timeouts,
        ),
        (
            "socket_bytes_from_clients",
            "Bytes from clients to endpoints, of those of TCP that are over",
            sum.bytes_to,
        ),
        (
            "socket_bytes_to_clients",
            "Bytes from endpoints to clients, of those of TCP that are over",
            sum.bytes_from,
        ),
    ];
    for (name, help, value) in counters {
        counter(encoder, name, help, value)?;
    }
    Ok(())
}
