//! Metrics of how much is served, how busy each worker is, and the agent's version.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use super::{Metrics, gauge};
use crate::proxy::Size;

impl Metrics {
    /// Build information in the usual form: a label for each item.
    pub(super) fn encode_build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = vec![("version", env!("CARGO_PKG_VERSION"))];
        let help = "The agent's version";
        Info::new(labels).encode(encoder.encode_descriptor("build", help, None, MetricType::Info)?)
    }

    /// How many Services and endpoints there are.
    pub(super) fn encode_size(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Size { services, endpoints } = self.observer.size();
        gauge(encoder, "services", "Services that are to be served", services as f64)?;
        let help = "Endpoints that can be chosen, counted in each port of each Service";
        gauge(encoder, "endpoints", help, endpoints as f64)
    }

    /// The connections and the processor time of each worker.
    pub(super) fn encode_workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let loads = self.observer.loads();
        let help = "Time that a worker has had a processor, to 10 ms";
        let mut family = encoder.encode_descriptor("worker_cpu_seconds", help, None, MetricType::Counter)?;
        for (worker, load) in loads.iter().enumerate() {
            ConstCounter::new(load.cpu.as_secs_f64()).encode(family.encode_family(&[("worker", worker)])?)?;
        }
        let sessions: Vec<u64> = loads.iter().map(|load| load.tcp_sessions).collect();
        of_each(encoder, "worker_tcp_sessions", "TCP sessions that a worker has", &sessions)?;
        let flows: Vec<u64> = loads.iter().map(|load| load.udp_flows).collect();
        of_each(encoder, "worker_udp_flows", "UDP flows that a worker has", &flows)
    }
}

/// A gauge with one value for each worker.
fn of_each(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, numbers: &[u64]) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (worker, number) in numbers.iter().enumerate() {
        ConstGauge::new(*number).encode(family.encode_family(&[("worker", worker)])?)?;
    }
    Ok(())
}
