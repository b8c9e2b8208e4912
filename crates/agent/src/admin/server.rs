//! Answers questions on the admin socket by their path. Runs as tokio tasks.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use sluice_dataplane::Config;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::api::{Complaint, VERSION_HEADER};
use super::socket::{self, AdminSocket};
use super::{connections, explain, services, status};
use crate::capture_args::PodAddresses;
use crate::check::InTheWay;
use crate::controller::Feed;
use crate::health::Health;
use crate::health_checks;
use crate::http_server::{self, ANSWER_TIME, Connections, Settings};
use crate::proxy::Observer;
use crate::task_pool::TaskPool;

/// The most connections at a time. An answer about 10,000 Services has tens of megabytes.
const CONNECTIONS: usize = 8;

/// A command asks one question, at once.
const SETTINGS: Settings =
    Settings { patience: Duration::from_secs(5), answer_time: ANSWER_TIME, keep_alive: false };

/// How long it may take to find an answer.
const TIME: Duration = Duration::from_secs(20);

/// Pause before creating the socket is tried again.
const RETRY: Duration = Duration::from_secs(5);

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Pools for finding answers that take a while.
#[derive(Debug, Clone)]
struct Places {
    /// For probes: other answers, however large, do not delay these.
    status: TaskPool,
    /// For all other answers.
    other: TaskPool,
}

/// What can be inspected.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The proxy.
    pub observer: Observer,
    /// For asking the controller.
    pub feed: Feed,
    /// The agent's health.
    pub health: Health,
    /// The health check node ports.
    pub health_checks: health_checks::Stats,
    /// The node's name.
    pub node: String,
    /// Whether packets are captured, in contrast to bind mode.
    pub is_capturing: bool,
    /// Present obstacles on this node.
    pub in_the_way: InTheWay,
    /// Where pods of this node have their addresses, if they are recognised by these.
    pub pod_addresses: PodAddresses,
    /// The data plane's configuration.
    pub dataplane: Config,
    /// When the agent started.
    pub started: Instant,
    /// The same as a date, for people.
    pub started_at: Timestamp,
    /// Whether the agent was told to end.
    pub is_stopping: AtomicBool,
}

impl Inside {
    /// Answers from now on that the agent was told to end.
    pub(crate) fn set_stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

/// The admin socket, as long as it is held.
#[derive(Debug)]
pub(crate) struct Admin {
    task: JoinHandle<Infallible>,
}

impl Admin {
    /// Answers at a path in a task of its own. If the socket cannot be created, that is logged once and tried
    /// again.
    pub(crate) fn start(path: PathBuf, inside: Arc<Inside>) -> Self {
        Self { task: tokio::spawn(keep(path, inside)) }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a socket at the path whenever no other agent has one there.
async fn keep(path: PathBuf, inside: Arc<Inside>) -> Infallible {
    let connections = Connections::new(CONNECTIONS);
    let places = Places { status: TaskPool::new(1), other: TaskPool::new(1) };
    let mut has_complained = false;
    loop {
        match AdminSocket::bind(&path) {
            Ok(socket) => {
                info!(path = %path.display(), "answering commands such as `sluice services`");
                has_complained = false;
                let socket = Arc::new(socket);
                let (inside, places) = (Arc::clone(&inside), places.clone());
                let answer = move |request| answer(Arc::clone(&inside), places.clone(), request);
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

/// Why a question has no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The question is wrong, for this reason.
    BadQuestion(String),
    /// This does not exist.
    NotFound(String),
    /// The agent cannot answer, for this reason.
    Unable(String),
}

async fn answer(inside: Arc<Inside>, places: Places, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answered = match tokio::time::timeout(TIME, find(inside, &places, &request)).await {
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

async fn find(inside: Arc<Inside>, places: &Places, request: &Request<Incoming>) -> Result<Vec<u8>, Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::BadQuestion("only GET: nothing can be changed here".to_owned()));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    match request.uri().path() {
        "/v1/status" => {
            let standing = status::standing(&inside).await;
            find_in(&places.status, move || json(&status::status(&inside, Some(&standing)))).await
        }
        "/v1/services" => {
            let find = move || {
                inside.observer.at_socket().settle();
                json(&services::services(inside.observer.table(), &query)?)
            };
            find_in(&places.other, find).await
        }
        "/v1/connections" => {
            let question = connections::Question::read(&query)?;
            let found = connections::of_workers(&inside, question).await?;
            find_in(&places.other, move || json(&found.with_translated(&inside.observer)?)).await
        }
        "/v1/explain" => {
            let question = explain::Question::read(&query)?;
            json(&explain::explain(&inside, question).await?)
        }
        path => Err(Refusal::NotFound(format!("this agent does not know {path}"))),
    }
}

async fn find_in(
    place: &TaskPool,
    find: impl FnOnce() -> Result<Vec<u8>, Refusal> + Send + 'static,
) -> Result<Vec<u8>, Refusal> {
    let found = place.run_blocking(find).await;
    found.unwrap_or_else(|error| Err(Refusal::Unable(format!("the answer was not finished: {error}"))))
}

fn json(answer: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(answer).map_err(|error| Refusal::Unable(error.to_string()))
}

/// The value of a query's parameter.
pub(super) fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
