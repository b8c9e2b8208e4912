//! The status page: shows people what a running agent does, on the metrics port. It is read-only.
//!
//! `/` is the page; `/status/…` are its parts and its data. `access` decides who may see it; the data come from
//! the same place as the commands' answers. Runs as tokio tasks.

mod access;
mod data;
mod troubles;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};

pub use access::StatusPage;

use super::server::{Inside, Refusal};
use crate::task_pool::TaskPool;

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How long it may take to find an answer. The page asks again.
const TIME: Duration = Duration::from_secs(10);

/// Headers of every answer. The page loads, runs and contacts nothing but its own, and no other page can frame
/// or read it.
#[rustfmt::skip]
const HEADERS: [(HeaderName, &str); 6] = [
    (CONTENT_SECURITY_POLICY,
     "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
      base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (CACHE_CONTROL, "no-store"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// An agent's page. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    inside: Arc<Inside>,
    setting: StatusPage,
    /// Answers are found one after the other, however many viewers there are.
    place: TaskPool,
}

impl Page {
    pub(crate) fn new(inside: Arc<Inside>, setting: StatusPage) -> Self {
        Self { inside, setting, place: TaskPool::new(1) }
    }

    /// The page's part of a list of paths, if anybody may see it.
    pub(crate) fn hint(&self) -> &'static str {
        if self.setting == StatusPage::Off { "" } else { "/ (the status page), " }
    }

    /// The answer to a request, if it is for the page.
    pub(crate) async fn answer(&self, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let path = request.uri().path();
        if !(path == "/" || path.starts_with("/status/")) || self.setting == StatusPage::Off {
            return None;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(response);
        }
        if let Err(refused) = access::check(self.setting, request) {
            return Some(response(StatusCode::FORBIDDEN, TEXT, format!("{refused}\n")));
        }
        let ok = |kind: &'static str, body: &'static str| {
            response(StatusCode::OK, HeaderValue::from_static(kind), body)
        };
        Some(match path {
            "/" => response(StatusCode::OK, HTML, include_str!("page/page.html")),
            "/status/page.css" => ok("text/css; charset=utf-8", include_str!("page/page.css")),
            "/status/page.js" => ok("text/javascript; charset=utf-8", include_str!("page/page.js")),
            "/status/plots.js" => ok("text/javascript; charset=utf-8", include_str!("page/plots.js")),
            "/status/icon.svg" => ok("image/svg+xml", include_str!("page/icon.svg")),
            "/status/data" => self.data(request.uri().query().unwrap_or_default()).await,
            _ => response(StatusCode::NOT_FOUND, TEXT, "there is no such page: try /\n"),
        })
    }

    async fn data(&self, query: &str) -> Response<Full<Bytes>> {
        let found = async {
            let question = data::Question::read(query)?;
            let found = self.place.run(data::find(Arc::clone(&self.inside), question)).await;
            found
                .unwrap_or_else(|error| Err(Refusal::Unable(format!("the answer was not finished: {error}"))))
        };
        match tokio::time::timeout(TIME, found).await {
            Ok(Ok(body)) => response(StatusCode::OK, JSON, body),
            Ok(Err(Refusal::BadQuestion(why))) => response(StatusCode::BAD_REQUEST, TEXT, format!("{why}\n")),
            Ok(Err(Refusal::NotFound(why) | Refusal::Unable(why))) => {
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n"))
            }
            Err(_) => response(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                format!("no answer was found within {} s\n", TIME.as_secs()),
            ),
        }
    }
}

fn response(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
