//! Metrics of socket mode: how much the maps hold, and what the programs did.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use sluice_socket_maps::{Capacity, Stats};

use super::{Metrics, counter, gauge, histogram};
use crate::at_socket::Looks;

impl Metrics {
    /// The mode, and why socket mode is off if it was asked for.
    pub(super) fn encode_mode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let reason = self.observer.at_socket().reason().map_or_else(String::new, |reason| (*reason).clone());
        let labels = [
            ("mode", self.observer.mode().to_owned()),
            ("wanted", self.wanted.to_owned()),
            ("reason", reason),
        ];
        let help = "How connections get to endpoints (mode), what was asked for (wanted), and why it is not that (reason)";
        Info::new(labels.to_vec()).encode(encoder.encode_descriptor(
            "capture",
            help,
            None,
            MetricType::Info,
        )?)
    }

    /// Writes nothing if socket mode is off.
    pub(super) fn encode_at_socket(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.observer.at_socket();
        let Some(looks) = view.looks() else { return Ok(()) };
        let stats = view.stats();
        encode_sizes(encoder, stats, looks.capacity)?;
        let help = "Service ports that are relayed, at least in part, because socket mode's maps have no room for them";
        gauge(encoder, "socket_waiting", help, stats.waiting as f64)?;
        let help =
            "Network namespaces of pods that the programs know; 0 if they take all namespaces for pods";
        gauge(encoder, "socket_namespaces", help, looks.names.known() as f64)?;
        let help = "Network namespaces that are left to the relay because of an annotation or of their addresses, or because their pod is unknown";
        gauge(encoder, "socket_namespaces_kept_out", help, looks.names.kept_out() as f64)?;
        encode_counters(encoder, stats, &looks)?;
        let help = "How long translated TCP connections lasted that have ended";
        histogram(encoder, "socket_connection_duration_seconds", help, &looks.ledger.lives())
    }
}

/// How much the maps hold, and their capacity.
fn encode_sizes(encoder: &mut DescriptorEncoder<'_>, stats: Stats, capacity: Capacity) -> fmt::Result {
    let parts = [
        ("frontends", "Frontends", stats.frontends, capacity.frontends),
        ("sets", "Sets of endpoints", stats.sets, capacity.sets),
        ("endpoints", "Endpoints, counted in each set,", stats.endpoints, capacity.endpoints),
        ("slots", "Slots of endpoint sets", stats.slots, capacity.slots),
        (
            "affinity_clients",
            "Clients with session affinity, counted in each set,",
            stats.clients,
            stats.most_clients,
        ),
    ];
    for (name, what, number, capacity) in parts {
        let help = format!("{what} in the maps of socket mode");
        gauge(encoder, &format!("socket_{name}"), &help, number as f64)?;
        let help = format!("{what} that the maps of socket mode have room for");
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
            "Changes of socket mode's maps that failed because a map was full or the kernel refused",
            stats.failures,
        ),
        (
            "socket_affinity_refused",
            "Times that a client with session affinity was left to the relay because its Service had used its share of the map",
            stats.refused_clients,
        ),
        (
            "socket_ended",
            "Connected UDP sockets that were destroyed because their endpoint or Service is gone",
            looks.swept.ended(),
        ),
        (
            "socket_end_failures",
            "Sweeps that left a connected UDP socket whose endpoint or Service is gone, or that could not list sockets",
            looks.swept.failed(),
        ),
        (
            "socket_connections",
            "TCP connections and UDP flows that were translated to an endpoint at the client's socket and established",
            sum.connections,
        ),
        ("socket_connections_closed", "Translated TCP connections that have ended", sum.closed),
        (
            "socket_connections_failed",
            "Translated TCP connections that failed because the endpoint refused or could not be reached",
            sum.failed,
        ),
        (
            "socket_connections_aborted",
            "Translated TCP connections that the client gave up before they were established",
            totals.aborted,
        ),
        (
            "socket_connections_slow",
            "Translated TCP connections whose first packet was not answered within a second",
            totals.timeouts,
        ),
        (
            "socket_bytes_from_clients",
            "Bytes from clients to endpoints on translated TCP connections that have ended",
            sum.bytes_to,
        ),
        (
            "socket_bytes_to_clients",
            "Bytes from endpoints to clients on translated TCP connections that have ended",
            sum.bytes_from,
        ),
    ];
    for (name, help, value) in counters {
        counter(encoder, name, help, value)?;
    }
    Ok(())
}
