//! Metrics under the names that kube-proxy and its libraries use, for existing dashboards and alerts: those
//! that mean the same here. A sync is a step of the capture, which takes all pending changes of frontends to
//! the kernel; changes of endpoints need none.

use std::fmt;
use std::fs;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::time::{ClockId, clock_gettime};
use sluice_model::Family;

use super::{Metrics, counter, gauge};

/// The metrics in kube-proxy's names.
#[derive(Debug)]
pub(super) struct KubeProxy(pub(super) Metrics);

/// `ip_family` has the form of a Service's `ipFamilies`.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// client-go's code for a request without an answer.
const NO_ANSWER: &str = "<error>";

impl Collector for KubeProxy {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_syncs(&mut encoder)?;
        self.encode_requests(&mut encoder)?;
        self.encode_durations(&mut encoder)?;
        self.encode_probes(&mut encoder)?;
        encode_process(&mut encoder, self.0.started)
    }
}

impl KubeProxy {
    fn encode_syncs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let durations = self.0.observer.step_durations();
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        let help = "How long it took to take changes of frontends to the kernel";
        of_each_family(encoder, name, help, durations)?;
        let network = self.0.health.programming().network_durations();
        let name = "kubeproxy_network_programming_duration_seconds";
        let help = "Time from a change of endpoints in the cluster until it has taken effect here";
        of_each_family(encoder, name, help, network)?;
        let numbers = self.0.health.programming().numbers();
        let seconds = |time: Option<Timestamp>| time.map_or(0.0, |time| time.as_duration().as_secs_f64());
        let help = "When changes last took effect, in seconds since 1970";
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        of_each_family(encoder, name, help, &ConstGauge::new(seconds(numbers.updated)))?;
        let help = "When changes were last queued, in seconds since 1970";
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        of_each_family(encoder, name, help, &ConstGauge::new(seconds(numbers.last_queued)))?;
        self.encode_without_local(encoder)?;
        if let Some(stats) = self.0.observer.capture_stats() {
            let name = "kubeproxy_sync_proxy_rules_nftables_sync_failures";
            let help = "Cumulative proxy nftables sync failures";
            of_each_family(encoder, name, help, &ConstCounter::new(stats.table_failures))?;
        }
        for (kind, changes) in [("endpoint", numbers.endpoints), ("service", numbers.services)] {
            let name = format!("kubeproxy_sync_proxy_rules_{kind}_changes");
            counter(encoder, &name, &format!("Changes of {kind}s since the start"), changes.total)?;
            let help = format!("Changes of {kind}s that have not taken effect");
            gauge(encoder, &format!("{name}_pending"), &help, changes.pending as f64)?;
        }
        Ok(())
    }

    fn encode_without_local(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports with traffic policy Local whose endpoints are all on other nodes";
        let mut series = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for family in FAMILIES {
            let count = self.0.observer.table().without_local_endpoints(family);
            for (policy, number) in [("internal", count.internal), ("external", count.external)] {
                let labels = [("ip_family", family.to_string()), ("traffic_policy", policy.to_owned())];
                ConstGauge::new(number as f64).encode(series.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(apiserver) = self.0.health.apiserver() else { return Ok(()) };
        let help = "Requests to apiservers, by status, host and method";
        let mut family =
            encoder.encode_descriptor("rest_client_requests", help, None, MetricType::Counter)?;
        for (outcome, number) in apiserver.answers() {
            let code = outcome.status.map_or_else(|| NO_ANSWER.to_owned(), |status| status.to_string());
            let labels = [("code", code), ("host", outcome.host), ("method", outcome.method)];
            ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl KubeProxy {
    fn encode_durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(apiserver) = self.0.health.apiserver() else { return Ok(()) };
        let (name, help) = (
            "rest_client_request_duration_seconds",
            "Time until the headers of an apiserver's answer were there, by verb and host",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for ((host, verb), durations) in apiserver.durations() {
            let labels = [("verb", verb), ("host", host)];
            let buckets: Vec<_> = durations.buckets().collect();
            let sum = durations.sum().as_secs_f64();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                sum,
                durations.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn encode_probes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (path, numbers) in self.0.probes.numbers() {
            let name = format!("kubeproxy_proxy_{path}");
            let mut family = encoder.encode_descriptor(
                &name,
                &format!("Requests to /{path} of the health check server, by status"),
                None,
                MetricType::Counter,
            )?;
            for (code, number) in numbers {
                let labels = [("code", code.to_string())];
                ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// A metric that kube-proxy has for each family, because it has a proxier for each. Here both families are
/// updated together, so both have the same value.
fn of_each_family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    let mut families = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
    for family in FAMILIES {
        metric.encode(families.encode_family(&[("ip_family", family.to_string())])?)?;
    }
    Ok(())
}

/// The process metrics of Prometheus' client libraries. What cannot be read is left out.
fn encode_process(encoder: &mut DescriptorEncoder<'_>, started: Timestamp) -> fmt::Result {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = ConstCounter::new(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
    let help = "CPU time that all threads of the agent have used";
    cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?)?;
    let help = "When this process began, in seconds since 1970";
    gauge(encoder, "process_start_time_seconds", help, started.as_duration().as_secs_f64())?;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (name, field, help) in [
        ("process_resident_memory_bytes", "VmRSS:", "Resident memory of the agent"),
        ("process_virtual_memory_bytes", "VmSize:", "Virtual memory of the agent"),
    ] {
        if let Some(kibibytes) = number(&status, field) {
            gauge(encoder, name, help, kibibytes as f64 * 1024.0)?;
        }
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // One of them is the descriptor used for reading.
        let open = descriptors.count().saturating_sub(1);
        gauge(encoder, "process_open_fds", "Open file descriptors", open as f64)?;
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(limit) = number(&limits, "Max open files") {
        gauge(encoder, "process_max_fds", "File descriptors that there may be", limit as f64)?;
    }
    Ok(())
}

/// The first number in the line that begins with `field`.
fn number(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct Process;

    impl Collector for Process {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode_process(&mut encoder, "2026-11-24T10:00:00Z".parse().unwrap())
        }
    }

    #[test]
    fn the_process_is_measured() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let mut said = String::new();
        text::encode(&mut said, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = said.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("{name} is not in\n{said}"))
                .split(' ')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        assert_eq!(value("process_start_time_seconds"), 1_795_514_400.0);
    }
}
