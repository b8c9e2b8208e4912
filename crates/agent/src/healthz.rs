//! The node's health port, `:10256`: cloud load balancers ask `/healthz` whether to send to this node, kubelets
//! ask `/livez` whether the agent works. (kube-proxy: `healthcheck/proxy_health.go`.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tracing::info;

use crate::health::{Health, State, Unhealthy};
use crate::http_server::{self, ANSWER_TIME, Connections, Settings};
use crate::listen::Opening;

/// Each connection serves one request, as on the health check node ports.
const SETTINGS: Settings =
    Settings { patience: std::time::Duration::from_secs(10), answer_time: ANSWER_TIME, keep_alive: false };

/// The most connections at a time: load balancers connect from several places each.
const CONNECTIONS: usize = 64;

/// The server. Dropping it closes the port.
#[derive(Debug)]
pub(crate) struct Healthz(JoinHandle<()>);

/// Counts the answers to probes by path and code. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probes(Arc<[[AtomicU64; CODES.len()]; PATHS.len()]>);

/// The probed paths, and the possible codes.
const PATHS: [&str; 2] = ["/healthz", "/livez"];
const CODES: [u16; 2] = [200, 503];

impl Probes {
    fn count(&self, path: &str, code: u16) {
        let path = PATHS.iter().position(|known| *known == path);
        let code = CODES.iter().position(|known| *known == code);
        if let (Some(path), Some(code)) = (path, code) {
            self.0[path][code].fetch_add(1, Relaxed);
        }
    }

    /// The count of each code for each probe (`healthz`, `livez`).
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (&'static str, [(u16, u64); CODES.len()])> {
        let of = |counts: &[AtomicU64; CODES.len()]| -> [(u16, u64); CODES.len()] {
            std::array::from_fn(|at| (CODES[at], counts[at].load(Relaxed)))
        };
        PATHS.iter().zip(self.0.iter()).map(move |(path, counts)| (&path[1..], of(counts)))
    }
}

impl Healthz {
    /// Serves and counts, once the port is open.
    pub(crate) fn start(opening: Opening, health: Health, probes: Probes) -> Self {
        Self(tokio::spawn(async move {
            let listener = opening.wait().await;
            if let Ok(address) = listener.local_addr() {
                info!(%address, "serving health checks of the node");
            }
            let answer = move |request: &Request<Incoming>| {
                let path = request.uri().path();
                let response = answer(path, &health.state(), Timestamp::now());
                probes.count(path, response.status().as_u16());
                response
            };
            match http_server::serve(listener, Connections::new(CONNECTIONS), SETTINGS, answer).await {}
        }))
    }
}

impl Drop for Healthz {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answer to a request of any method, as in kube-proxy. `/livez` ignores whether the node is about to be
/// removed and whether the apiserver answers. Our own manifests do not use it ([`Health::is_live`]).
fn answer(path: &str, state: &State, now: Timestamp) -> Response<Full<Bytes>> {
    let is_well = match (path, state.verdict) {
        ("/healthz", verdict) => verdict.is_ok(),
        ("/livez", verdict) => !matches!(verdict, Err(Unhealthy::Failing(_))),
        _ => {
            let mut response = Response::new(Full::from("try /healthz or /livez\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let eligible = (path == "/healthz").then_some(state.node_eligible);
    let is_good = is_well && eligible != Some(false);
    let mut response = Response::new(Full::from(body(is_well, is_good, eligible, state.updated, now)));
    if !is_good {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// kube-proxy's `ProxyHealth`. If healthy, the time of the last update is now, as in its old releases;
/// `healthy` leaves out the node; both families are updated together.
fn body(
    is_well: bool,
    is_good: bool,
    eligible: Option<bool>,
    updated: Option<Timestamp>,
    now: Timestamp,
) -> String {
    let said = |time: Option<Timestamp>| {
        time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string())
    };
    let last = said(if is_good { Some(now) } else { updated });
    let eligible = eligible.map(|eligible| format!(",\"nodeEligible\":{eligible}")).unwrap_or_default();
    let status = updated.map(|updated| {
        let family = format!("{{\"lastUpdated\":\"{updated}\",\"healthy\":{is_well}}}");
        format!(",\"status\":{{\"IPv4\":{family},\"IPv6\":{family}}}")
    });
    format!(
        "{{\"lastUpdated\":\"{last}\",\"currentTime\":\"{now}\"{eligible},\"healthy\":{is_well}{}}}",
        status.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    const UPDATED: &str = "2026-11-24T10:00:00.5Z";
    const NOW: &str = "2026-11-24T10:01:40Z";

    fn state(verdict: Result<(), Unhealthy>, node_eligible: bool) -> State {
        State { verdict, node_eligible, updated: Some(UPDATED.parse().unwrap()) }
    }

    async fn ask(path: &str, state: &State) -> (u16, String) {
        let response = answer(path, state, NOW.parse().unwrap());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn cases() {
        let failing = Err(Unhealthy::Failing(Duration::from_secs(99)));
        #[rustfmt::skip]
        let cases = [
            ("all is well",            Ok(()),                    true,  200, 200),
            ("the node is to go",      Ok(()),                    false, 503, 200),
            ("programming is stale",   failing,                   true,  503, 503),
            ("both",                   failing,                   false, 503, 503),
            ("nothing is known",       Err(Unhealthy::NotSynced), true,  503, 200),
        ];
        for (name, verdict, eligible, healthz, livez) in cases {
            let state = state(verdict, eligible);
            assert_eq!(ask("/healthz", &state).await.0, healthz, "{name}");
            assert_eq!(ask("/livez", &state).await.0, livez, "{name}");
            assert_eq!(ask("/", &state).await.0, 404, "{name}");
        }
    }

    #[tokio::test]
    async fn the_body_is_as_kube_proxy_writes_it() {
        let well = state(Ok(()), true);
        let family = format!("{{\"lastUpdated\":\"{UPDATED}\",\"healthy\":true}}");
        let status = format!("\"status\":{{\"IPv4\":{family},\"IPv6\":{family}}}");
        let now = format!("\"currentTime\":\"{NOW}\"");
        let wanted =
            format!("{{\"lastUpdated\":\"{NOW}\",{now},\"nodeEligible\":true,\"healthy\":true,{status}}}");
        assert_eq!(ask("/healthz", &well).await.1, wanted);
        let wanted = format!("{{\"lastUpdated\":\"{NOW}\",{now},\"healthy\":true,{status}}}");
        assert_eq!(ask("/livez", &well).await.1, wanted, "nothing of the node");
        let leaving = ask("/healthz", &state(Ok(()), false)).await.1;
        let wanted = format!(
            "{{\"lastUpdated\":\"{UPDATED}\",{now},\"nodeEligible\":false,\"healthy\":true,{status}}}"
        );
        assert_eq!(leaving, wanted);

        let new = State { verdict: Err(Unhealthy::NotSynced), node_eligible: false, updated: None };
        let wanted = format!(
            "{{\"lastUpdated\":\"0001-01-01T00:00:00Z\",{now},\"nodeEligible\":false,\"healthy\":false}}"
        );
        assert_eq!(ask("/healthz", &new).await.1, wanted);
        let response = answer("/healthz", &new, NOW.parse().unwrap());
        assert_eq!(response.headers()["Content-Type"], "application/json");
        assert_eq!(response.headers()["X-Content-Type-Options"], "nosniff");
    }

    #[test]
    fn probes_are_counted_by_what_they_ask_and_are_answered() {
        let probes = Probes::default();
        for (path, code) in [
            ("/healthz", 200),
            ("/healthz", 200),
            ("/healthz", 503),
            ("/livez", 200),
            ("/", 404),
            ("/livez", 404),
        ] {
            probes.count(path, code);
        }
        let wanted = [("healthz", [(200, 2), (503, 1)]), ("livez", [(200, 1), (503, 0)])];
        assert_eq!(probes.numbers().collect::<Vec<_>>(), wanted);
    }
}
