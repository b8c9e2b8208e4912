//! Answering on the admin socket: which path is which question. Runs as tokio tasks.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use sluice_dataplane::Config;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::api::{Complaint, VERSION_HEADER};
use super::socket::{self, AdminSocket};
use super::{connections, explain, services, status};
use crate::controller::Feed;
use crate::health::Health;
use crate::http_server::{self, Connections, Settings};
use crate::proxy::Observer;

/// Connections at a time. An answer about 10,000 Services has tens of megabytes.
const CONNECTIONS: usize = 8;

/// A command asks at once, and one thing.
const SETTINGS: Settings = Settings { patience: Duration::from_secs(5), keep_alive: false };

/// How long an answer may take to be found.
const TIME: Duration = Duration::from_secs(20);

/// Pause before a socket that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(5);

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What can be looked at.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The proxy.
    pub observer: Observer,
    /// To ask the controller.
    pub feed: Feed,
    /// How it is.
    pub health: Health,
    /// The node's name.
    pub node: String,
    /// Whether packets are captured, rather than frontends listened on.
    pub is_capturing: bool,
    /// Where pods of this node have their addresses, where that is how they are told.
    pub pod_cidrs: Vec<IpNet>,
    /// What the data plane was told.
    pub dataplane: Config,
    /// When the agent started.
    pub started: Instant,
    /// The same for people.
    pub started_at: Timestamp,
    /// Whether the agent was told to end.
    pub is_stopping: AtomicBool,
}

/// The socket, while it is held.
#[derive(Debug)]
pub(crate) struct Admin {
    inside: Arc<Inside>,
    task: JoinHandle<Infallible>,
}

impl Admin {
    /// Answers at a path, from a task of its own. Where no socket can be made that is said once, and tried again.
    pub(crate) fn start(path: PathBuf, inside: Inside) -> Self {
        let inside = Arc::new(inside);
        let task = tokio::spawn(keep(path, Arc::clone(&inside)));
        Self { inside, task }
    }

    /// Says, to who asks, that the agent was told to end.
    pub(crate) fn set_stopping(&self) {
        self.inside.is_stopping.store(true, Ordering::Relaxed);
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Has a socket at the path whenever no other agent has one.
async fn keep(path: PathBuf, inside: Arc<Inside>) -> Infallible {
    let connections = Connections::new(CONNECTIONS);
    let mut has_complained = false;
    loop {
        match AdminSocket::bind(&path) {
            Ok(socket) => {
                info!(path = %path.display(), "answering commands such as `sluice services`");
                has_complained = false;
                let socket = Arc::new(socket);
                let inside = Arc::clone(&inside);
                let answer = move |request| answer(Arc::clone(&inside), request);
                let serving =
                    http_server::serve_later(Arc::clone(&socket), connections.clone(), SETTINGS, answer);
                tokio::select! {
                    never = serving => match never {},
                    () = socket.orphaned() => {}
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut has_complained, true) {
                    warn!(
                        "commands such as `sluice services` are not answered, all else goes on: no socket at {}: \
                         {error}: {}",
                        path.display(),
                        socket::mend(&error)
                    );
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The question is wrong: how.
    BadQuestion(String),
    /// There is no such thing: which.
    NotFound(String),
    /// The agent cannot say: why.
    Unable(String),
}

async fn answer(inside: Arc<Inside>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answered = match tokio::time::timeout(TIME, find(inside, &request)).await {
        Ok(answered) => answered,
        Err(_) => Err(Refusal::Unable(format!("no answer could be found within {} s", TIME.as_secs()))),
    };
    let (status, body) = match answered {
        Ok(body) => (StatusCode::OK, body),
        Err(refusal) => {
            let (status, error) = match refusal {
                Refusal::BadQuestion(error) => (StatusCode::BAD_REQUEST, error),
                Refusal::NotFound(error) => (StatusCode::NOT_FOUND, error),
                Refusal::Unable(error) => (StatusCode::SERVICE_UNAVAILABLE, error),
            };
            (status, json(&Complaint { error }).unwrap_or_default())
        }
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    response
}

async fn find(inside: Arc<Inside>, request: &Request<Incoming>) -> Result<Vec<u8>, Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::BadQuestion("only GET: nothing can be changed here".to_owned()));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    match request.uri().path() {
        "/v1/status" => apart(move || json(&status::status(&inside))).await,
        "/v1/services" => apart(move || json(&services::services(inside.observer.table(), &query)?)).await,
        "/v1/connections" => {
            let question = connections::Question::read(&query)?;
            let list = connections::connections(&inside, question).await?;
            apart(move || json(&list)).await
        }
        "/v1/explain" => {
            let question = explain::Question::read(&query)?;
            json(&explain::explain(&inside, question).await?)
        }
        path => Err(Refusal::NotFound(format!("this agent does not know {path}"))),
    }
}

/// Finds an answer that may take a while on a thread that nobody waits for.
async fn apart(find: impl FnOnce() -> Result<Vec<u8>, Refusal> + Send + 'static) -> Result<Vec<u8>, Refusal> {
    let found = tokio::task::spawn_blocking(find).await;
    found.unwrap_or_else(|error| Err(Refusal::Unable(format!("the answer was not finished: {error}"))))
}

fn json(answer: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(answer).map_err(|error| Refusal::Unable(error.to_string()))
}

/// The values of a query by name.
pub(super) fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
