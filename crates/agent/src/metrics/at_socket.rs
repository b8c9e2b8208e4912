//! What is decided at clients' sockets, as metrics: how much the programs in the kernel know, and what they did.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::info::Info;

use super::{Metrics, counter, gauge};

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
        let (stats, capacity) = (view.stats(), looks.capacity);
        let parts = [
            ("frontends", "Frontends", stats.frontends, capacity.frontends),
            ("sets", "Sets of endpoints", stats.sets, capacity.sets),
            ("endpoints", "Endpoints, once for each set", stats.endpoints, capacity.endpoints),
            ("slots", "Places in sets", stats.slots, capacity.slots),
        ];
        for (name, what, number, capacity) in parts {
            let help = format!("{what} that the programs know, or that wait to be used again");
            gauge(encoder, &format!("socket_{name}"), &help, number as f64)?;
            let help = format!("{what} that there is room for");
            gauge(encoder, &format!("socket_{name}_capacity"), &help, f64::from(capacity))?;
        }
        let help = "Service ports of which something has no room there, and is relayed";
        gauge(encoder, "socket_waiting", help, stats.waiting as f64)?;
        let help = "How often something had no room there, or the kernel refused a change";
        counter(encoder, "socket_map_failures", help, stats.failures)?;
        let help = "Connected UDP sockets that were ended, as their endpoint or Service is gone";
        counter(encoder, "socket_ended", help, looks.swept.ended())?;
        let help = "Looks after which such a socket was left, or at which the kernel told nothing";
        counter(encoder, "socket_end_failures", help, looks.swept.failed())?;

        let sum = looks.ledger.sum();
        let help = "Connections and flows that were led to an endpoint at the client's socket";
        counter(encoder, "socket_connections", help, sum.connections)?;
        let help = "Of those of TCP, the ones that are over";
        counter(encoder, "socket_connections_closed", help, sum.closed)?;
        let help = "Of those of TCP, the ones that the endpoint or the network did not let come about";
        counter(encoder, "socket_connections_failed", help, sum.failed)?;
        let help = "Of those of TCP, the ones that the client gave up before they came about";
        counter(encoder, "socket_connections_aborted", help, sum.aborted)?;
        let help = "Of those of TCP, the ones whose first packet was not answered within a second";
        counter(encoder, "socket_connections_slow", help, sum.timeouts)?;
        let help = "Bytes from clients to endpoints, of those of TCP that are over";
        counter(encoder, "socket_bytes_from_clients", help, sum.bytes_to)?;
        let help = "Bytes from endpoints to clients, of those of TCP that are over";
        counter(encoder, "socket_bytes_to_clients", help, sum.bytes_from)?;
        let help = "How long those lasted together that are over";
        let seconds = ConstCounter::new(sum.duration_us as f64 / 1e6);
        let name = "socket_connections_closed_seconds";
        seconds.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}
