//! `:10249`, kube-proxy's port for those who look after it: `/metrics` with every counter of the data plane and how the
//! source is doing, the status page (`admin`), `/healthz` (whether the process is live), `/proxyMode`, `/configz`; with `--profiling` the log level, `/debug/flags/v`.

mod at_socket;
mod exposition;
mod kube_proxy;
mod load;
mod scrapes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use kube_proxy::KubeProxy;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text as openmetrics,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use scrapes::Scrapes;
use sluice_dataplane::{Counted, Kind};
use sluice_kubeapi::apiserver::Resource;
use sluice_table::Times;
use tracing::info;

use crate::admin::Page;
use crate::check::InTheWay;
use crate::events::Events;
use crate::health::Health;
use crate::health_checks;
use crate::healthz::Probes;
use crate::http_server::{self, ANSWER_TIME, Connections, Settings};
use crate::listen::Opening;
use crate::logging::{self, Logging};
use crate::proxy::Observer;
use crate::service_metrics::{self, Detail};

/// Scrapers may keep their connection.
const SETTINGS: Settings =
    Settings { patience: Duration::from_secs(10), answer_time: ANSWER_TIME, keep_alive: true };

/// The path that Kubernetes' components use (`DebugFlags`).
const LEVEL: &str = "/debug/flags/v";

/// The most bytes of a number, generously.
const LEVEL_BYTES: usize = 64;

/// The most connections at a time: a few scrapers, and a person.
const CONNECTIONS: usize = 64;

/// Everything that this port can answer.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// The proxy.
    pub observer: Observer,
    /// The agent's health.
    pub health: Health,
    /// The health check node ports.
    pub health_checks: health_checks::Stats,
    /// The mode that was asked for. `/proxyMode` answers with the actual one, which is none of kube-proxy's
    /// modes: the agent would be taken for a kube-proxy otherwise.
    pub wanted: &'static str,
    /// The answer of `/configz`: the settings in effect.
    pub configz: Arc<ArcSwap<String>>,
    /// When this process started.
    pub started: Timestamp,
    /// How much detail there is about Services.
    pub detail: Detail,
    /// The Events.
    pub events: Events,
    /// Counts of probes of the node's health.
    pub probes: Probes,
    /// Present obstacles on this node.
    pub in_the_way: InTheWay,
    /// The log.
    pub lines: Logging,
    /// Set if the log level may be changed.
    pub logging: Option<Logging>,
    /// The status page.
    pub page: Page,
}

impl Metrics {
    /// Serves for good in a task of its own, once the port is open.
    pub(crate) fn serve(self, opening: Opening) {
        tokio::spawn(async move {
            let listener = opening.wait().await;
            if let Ok(address) = listener.local_addr() {
                info!(%address, "serving metrics");
            }
            let scraped = self.clone();
            let scrapes = Scrapes::start(move |is_openmetrics| scraped.metrics(is_openmetrics));
            let answer = move |request| self.clone().answer_later(scrapes.clone(), request);
            http_server::serve_later(listener, Connections::new(CONNECTIONS), SETTINGS, answer).await
        });
    }

    async fn answer_later(self, scrapes: Scrapes, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path(), &self.logging) {
            (&Method::PUT, LEVEL, Some(logging)) => set_level(logging, request.into_body()).await,
            (&Method::PUT, LEVEL, None) => {
                text(StatusCode::FORBIDDEN, "the agent was started without --profiling\n".to_owned())
            }
            (_, LEVEL, _) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "only PUT, of a number as --v has it\n".to_owned())
            }
            (&Method::GET | &Method::HEAD, "/metrics", _) => {
                let is_openmetrics = exposition::takes_openmetrics(request.headers());
                scrapes.next(is_openmetrics).await.unwrap_or_else(unable)
            }
            _ => match self.page.answer(&request).await {
                Some(response) => response,
                None => self.answer(&request),
            },
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match request.uri().path() {
            // A failed probe may restart the agent, so it only reports what a restart would help.
            "/healthz" | "/healthz/ping" => match self.health.is_live() {
                true => text(StatusCode::OK, "ok".to_owned()),
                false => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "changes are held up by a thread that hangs\n".to_owned(),
                ),
            },
            "/proxyMode" => text(StatusCode::OK, self.observer.mode().to_owned()),
            "/configz" => {
                let mut response = text(StatusCode::OK, self.configz.load().to_string());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            _ => text(
                StatusCode::NOT_FOUND,
                format!("try {}/metrics, /healthz, /proxyMode or /configz\n", self.page.hint()),
            ),
        }
    }

    fn metrics(&self, is_openmetrics: bool) -> Response<Bytes> {
        self.observer.at_socket().settle();
        let mut registry = Registry::with_prefix("sluice");
        registry.register_collector(Box::new(self.clone()));
        let mut theirs = Registry::default();
        theirs.register_collector(Box::new(KubeProxy(self.clone())));
        let mut metrics = String::new();
        let encoded = openmetrics::encode_registry(&mut metrics, &registry);
        let encoded =
            encoded.and_then(|()| service_metrics::write(&mut metrics, self.observer.table(), self.detail));
        let status = match encoded.and_then(|()| openmetrics::encode(&mut metrics, &theirs)) {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let (metrics, kind) = match is_openmetrics {
            true => (metrics, exposition::OPENMETRICS),
            false => (exposition::classic(&metrics), exposition::CLASSIC),
        };
        let mut response = text(status, metrics);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Counted { name, kind, help, value } in self.observer.stats().named() {
            match kind {
                Kind::Counter => counter(&mut encoder, name, help, value)?,
                Kind::Gauge => gauge(&mut encoder, name, help, value as f64)?,
            }
        }
        gauge(
            &mut encoder,
            "frontends",
            "Addresses and ports that are served",
            self.observer.frontends() as f64,
        )?;
        let help = "Addresses and ports of Services that cannot be listened on";
        gauge(&mut encoder, "frontends_failed", help, self.observer.unserved() as f64)?;
        let help =
            "Addresses and ports of Services that are not served, as the agent reaches the apiserver there";
        gauge(&mut encoder, "frontends_left_out", help, self.observer.left_out().len() as f64)?;
        self.encode_build(&mut encoder)?;
        self.encode_size(&mut encoder)?;
        self.encode_workers(&mut encoder)?;
        let help = "Lines of the log that were lost, as whoever reads it had stopped";
        counter(&mut encoder, "log_lines_dropped", help, self.lines.lost())?;
        self.encode_mode(&mut encoder)?;
        self.encode_capture(&mut encoder)?;
        self.encode_at_socket(&mut encoder)?;
        self.encode_times(&mut encoder)?;
        self.encode_health_checks(&mut encoder)?;
        self.encode_apiserver(&mut encoder)
    }
}

impl Metrics {
    fn encode_times(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let times = self.observer.times();
        let help = "Time from the first attempt to connect until an endpoint has answered, of TCP sessions";
        histogram(encoder, "tcp_connect_duration_seconds", help, &times.tcp_connecting)?;
        let help = "How long TCP sessions lasted, from the first attempt to connect to their end";
        histogram(encoder, "tcp_session_duration_seconds", help, &times.tcp_sessions)?;
        let help = "Time from the first to the last datagram of UDP flows that have ended";
        histogram(encoder, "udp_flow_duration_seconds", help, &times.udp_flows)
    }

    fn encode_capture(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(stats) = self.observer.capture_stats() else { return Ok(()) };
        gauge(
            encoder,
            "nftables_elements",
            "Elements in the sets and maps of the nftables table",
            stats.elements as f64,
        )?;
        counter(
            encoder,
            "nftables_transactions",
            "Transactions of nftables that took effect",
            stats.transactions,
        )?;
        counter(
            encoder,
            "nftables_failures",
            "Attempts to read or to change nftables, policy rules or routes that failed",
            stats.failures,
        )?;
        counter(
            encoder,
            "nftables_repairs",
            "Times that changes by other programs to the rules were undone",
            stats.repairs,
        )?;
        let bounds = [
            (
                "host_flows_full",
                "Packets to endpoints in this node's network namespace that were dropped because the set host_flows was full",
                stats.host_flows_full,
            ),
            (
                "fast_clients",
                "Packets to endpoints in this node's network namespace that were dropped because their client opens flows too fast",
                stats.fast_clients,
            ),
            (
                "node_flows_full",
                "Connections of this node's processes that the set node_flows had no room for; they end when their Service does",
                stats.node_flows_full,
            ),
            (
                "answers_full",
                "Packets to endpoints on bridges that the set answers had no room for",
                stats.answers_full,
            ),
        ];
        for (name, help, value) in bounds {
            counter(encoder, &format!("nftables_{name}"), help, value)?;
        }
        let sets = [
            (
                "host_flows",
                "Elements of the set host_flows: flows to endpoints in this node's network",
                stats.host_flows,
            ),
            (
                "node_flows",
                "Elements of the set node_flows: connections of this node's processes",
                stats.node_flows,
            ),
            ("answers", "Elements of the set answers: flows to endpoints on bridges", stats.answers),
        ];
        for (name, help, elements) in sets {
            let Some(elements) = elements else { continue };
            gauge(encoder, &format!("nftables_{name}"), help, elements as f64)?;
        }
        let help = "1 while br_netfilter is on and cannot be switched off: pods on bridges have no Services";
        gauge(encoder, "bridge_netfilter", help, f64::from(stats.bridge_netfilter))?;
        let help =
            "What is in the agent's way on this node, as sluice check finds it; sluice status says what";
        gauge(encoder, "check_problems", help, self.in_the_way.all().len() as f64)
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
        let Some(health) = self.health.apiserver() else { return Ok(()) };
        gauge(
            encoder,
            "apiserver_synced",
            "1 once everything was listed from the apiserver",
            f64::from(health.is_synced()),
        )?;
        if let Some(age) = health.last_contact() {
            let help =
                "Seconds since the apiserver was last known to be there: how old what is served may be";
            gauge(encoder, "apiserver_last_contact_seconds", help, age.as_secs_f64())?;
        }
        if let Some(has_node) = health.has_node() {
            let help = "1 while the cluster has a Node of this agent's name: as long as it had none there are no nodePorts";
            gauge(encoder, "apiserver_has_node", help, f64::from(has_node))?;
        }
        counter(encoder, "events_written", "Events written to the apiserver", self.events.written())?;
        let help = "Events not written: too many, or the apiserver did not take them";
        counter(encoder, "events_dropped", help, self.events.dropped())?;
        let total = |of: fn(&sluice_kubeapi::apiserver::ResourceHealth) -> u64| -> u64 {
            Resource::ALL.iter().map(|resource| of(health.of(*resource))).sum()
        };
        counter(
            encoder,
            "apiserver_requests",
            "Lists and watches requested from the apiserver",
            total(|h| h.requests()),
        )?;
        counter(encoder, "apiserver_lists", "Full lists requested from the apiserver", total(|h| h.lists()))?;
        counter(
            encoder,
            "apiserver_watch_restarts",
            "Watches of the apiserver that were started again",
            total(|h| h.watch_restarts()),
        )?;
        counter(
            encoder,
            "apiserver_errors",
            "Requests to the apiserver and watches that failed",
            total(|h| h.errors()),
        )?;
        counter(
            encoder,
            "apiserver_skipped_objects",
            "Objects from the apiserver that were skipped because they are invalid",
            total(|h| h.skipped()),
        )?;
        let help = "Elements of objects from the apiserver that were skipped because they are invalid; the rest of the object is used";
        counter(encoder, "apiserver_skipped_elements", help, total(|h| h.left_out()))
    }
}

fn unable() -> Response<Full<Bytes>> {
    text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be put together\n".to_owned())
}

/// Sets the log level by a number, as for kube-proxy's flag `--v`.
async fn set_level(logging: &Logging, body: Incoming) -> Response<Full<Bytes>> {
    let bad = || text(StatusCode::BAD_REQUEST, "the body is to be a number, as --v has it\n".to_owned());
    let read = tokio::time::timeout(SETTINGS.patience, Limited::new(body, LEVEL_BYTES).collect()).await;
    let Ok(Ok(body)) = read else { return bad() };
    let body = body.to_bytes();
    let Some(verbosity) = std::str::from_utf8(&body).ok().and_then(|text| text.trim().parse().ok()) else {
        return bad();
    };
    if !logging.set(logging::level(0, Some(verbosity), "info")) {
        return text(StatusCode::CONFLICT, "RUST_LOG has decided: start the agent without it\n".to_owned());
    }
    info!(verbosity, "what is logged has been changed, on request");
    text(StatusCode::OK, format!("successfully set the verbosity to {verbosity}\n"))
}

fn text<B: From<String>>(status: StatusCode, body: String) -> Response<B> {
    let mut response = Response::new(B::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn histogram(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, times: &Times) -> fmt::Result {
    encode_times(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?, times)
}

/// Writes a histogram's series.
fn encode_times(mut encoder: MetricEncoder<'_>, times: &Times) -> fmt::Result {
    let seconds = |bound: Option<Duration>| bound.map_or(f64::INFINITY, |bound| bound.as_secs_f64());
    let buckets: Vec<_> = times.buckets().map(|(bound, count)| (seconds(bound), count)).collect();
    encoder.encode_histogram::<NoLabelSet>(times.sum().as_secs_f64(), times.count(), &buckets, None)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}
