//! `/metrics` and `/healthz` over HTTP: every counter of the data plane, and how the source is doing.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use sluice_kubeapi::apiserver::{Health, Resource};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::health::{Health as ProxyHealth, Unhealthy};
use crate::health_checks;
use crate::http_server::{self, Connections, Settings};
use crate::proxy::Observer;
use crate::service_metrics::{self, Detail};

/// What prometheus-client writes.
const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// A scraper may keep its connection.
const SETTINGS: Settings = Settings { patience: Duration::from_secs(10), keep_alive: true };

/// Pause before an address that could not be had is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Connections at a time: a few scrapers, and a person.
const CONNECTIONS: usize = 64;

/// Everything that can be asked for.
#[derive(Debug, Clone)]
struct Metrics {
    observer: Observer,
    health: Option<Arc<Health>>,
    health_checks: health_checks::Stats,
    detail: Detail,
}

/// Serves on an address from a task of its own, for good. An address that cannot be had is said once and tried again:
/// the agent that this one replaces has it until it ends, and traffic matters more.
pub fn serve(
    address: SocketAddr,
    observer: Observer,
    health: Option<Arc<Health>>,
    health_checks: health_checks::Stats,
    detail: Detail,
) {
    let metrics = Metrics { observer, health, health_checks, detail };
    tokio::spawn(async move {
        let listener = listen(address).await;
        info!(address = %listener.local_addr().unwrap_or(address), "serving metrics");
        let answer = move |request: &_| metrics.answer(request);
        http_server::serve(listener, Connections::new(CONNECTIONS), SETTINGS, answer).await
    });
}

/// Returns when the address can be had.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut has_complained = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !has_complained => {
                has_complained = true;
                warn!(
                    "no metrics on {address}: {error}: it is tried again; another address can be chosen with \
                     --metrics-bind-address"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Metrics {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => return self.metrics(),
            (&Method::GET | &Method::HEAD, "/healthz") => match self.verdict() {
                Ok(()) => (StatusCode::OK, "ok\n".into()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "try /metrics or /healthz\n".into()),
            _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response
    }

    fn verdict(&self) -> Result<(), Unhealthy> {
        ProxyHealth::new(self.observer.clone(), self.health.clone()).verdict()
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut registry = Registry::with_prefix("sluice");
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        let status = match text::encode(&mut text, &registry) {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, OPENMETRICS);
        response
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, value) in self.observer.stats().named() {
            // What is there now, rather than what has been so far.
            if name.ends_with("_active") {
                gauge(&mut encoder, name, "Now, over all workers", value as f64)?;
            } else {
                counter(&mut encoder, name, "Since the start, over all workers", value)?;
            }
        }
        gauge(
            &mut encoder,
            "frontends",
            "Addresses and ports that are served",
            self.observer.frontends() as f64,
        )?;
        let help = "Addresses and ports that cannot be listened on";
        gauge(&mut encoder, "frontends_failed", help, self.observer.unserved() as f64)?;
        self.encode_capture(&mut encoder)?;
        service_metrics::encode(&mut encoder, self.observer.table(), self.detail)?;
        self.encode_health_checks(&mut encoder)?;
        self.encode_apiserver(&mut encoder)
    }
}

impl Metrics {
    fn encode_capture(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(stats) = self.observer.capture_stats() else { return Ok(()) };
        gauge(encoder, "nftables_elements", "Elements in sets and maps", stats.elements as f64)?;
        counter(encoder, "nftables_transactions", "Transactions that took effect", stats.transactions)?;
        counter(encoder, "nftables_failures", "Attempts to look or to change that failed", stats.failures)?;
        counter(encoder, "nftables_repairs", "Times that others' changes were undone", stats.repairs)
    }

    fn encode_health_checks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.health_checks;
        let (open, failed) = (stats.open() as f64, stats.failed() as f64);
        gauge(
            encoder,
            "health_check_ports",
            "Addresses and ports of healthCheckNodePorts that answer",
            open,
        )?;
        let help = "Addresses and ports of healthCheckNodePorts that cannot be listened on";
        gauge(encoder, "health_check_ports_failed", help, failed)?;
        let help = "Connections to healthCheckNodePorts that were cut off for newer ones";
        counter(encoder, "health_check_connections_cut_off", help, stats.cut_off())?;
        let help = "Connections to healthCheckNodePorts that could not be accepted";
        counter(encoder, "health_check_accepts_failed", help, stats.failed_accepts())
    }

    fn encode_apiserver(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(health) = &self.health else { return Ok(()) };
        gauge(encoder, "apiserver_synced", "1 once everything was listed", f64::from(health.is_synced()))?;
        if let Some(age) = health.last_contact() {
            let help =
                "Seconds since the apiserver was last known to be there: how old what is served may be";
            gauge(encoder, "apiserver_last_contact_seconds", help, age.as_secs_f64())?;
        }
        if let Some(has_node) = health.has_node() {
            let help =
                "1 while the cluster has a Node of this agent's name: without it there are no nodePorts";
            gauge(encoder, "apiserver_has_node", help, f64::from(has_node))?;
        }
        let total = |of: fn(&sluice_kubeapi::apiserver::ResourceHealth) -> u64| -> u64 {
            Resource::ALL.iter().map(|resource| of(health.of(*resource))).sum()
        };
        counter(encoder, "apiserver_requests", "Lists and watches asked for", total(|h| h.requests()))?;
        counter(encoder, "apiserver_lists", "Full lists", total(|h| h.lists()))?;
        counter(encoder, "apiserver_watch_restarts", "Watches started again", total(|h| h.watch_restarts()))?;
        counter(encoder, "apiserver_errors", "Requests and watches that failed", total(|h| h.errors()))?;
        counter(encoder, "apiserver_skipped_objects", "Objects that do not count", total(|h| h.skipped()))?;
        let help = "Elements of objects that do not count; the rest of the object does";
        counter(encoder, "apiserver_skipped_elements", help, total(|h| h.left_out()))
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}
