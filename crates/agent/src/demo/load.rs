//! Clients that use the demo's Services and measure the answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use sluice_testbed::samples::BACKEND_HEADER;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// The number of clients.
const CLIENTS: usize = 8;

/// Datagrams that a UDP client sends before one with another port takes its place, which is a new flow to the
/// proxy.
const DATAGRAMS_PER_FLOW: usize = 10;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A running load.
pub(super) struct Load {
    /// Requests that have ended, successful or not.
    pub(super) done: Arc<AtomicUsize>,
    target: SocketAddr,
    kind: Kind,
    stop: Arc<AtomicBool>,
    results: Arc<Mutex<Outcome>>,
    clients: Mutex<JoinSet<()>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Udp,
}

/// The clients' results.
#[derive(Default)]
pub(super) struct Outcome {
    /// Answer times in microseconds, by backend.
    pub(super) latencies: BTreeMap<String, Histogram<u64>>,
    /// The reasons of failed requests.
    pub(super) failures: Vec<String>,
}

impl Outcome {
    /// How many requests there were.
    pub(super) fn total(&self) -> usize {
        let answered: u64 = self.latencies.values().map(Histogram::len).sum();
        usize::try_from(answered).unwrap_or(usize::MAX) + self.failures.len()
    }

    fn add(&mut self, result: Result<String>, took: Duration) {
        match result {
            Ok(backend) => {
                let histogram = self.latencies.entry(backend).or_insert_with(new_histogram);
                histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }
}

/// A histogram of microseconds with three digits, up to a minute.
#[expect(clippy::expect_used, reason = "the bounds are constants that the library documents as valid")]
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds")
}

impl Load {
    /// HTTP requests, each on a connection of its own.
    pub(super) fn http(target: SocketAddr) -> Self {
        Self::new(target, Kind::Http)
    }

    /// UDP datagrams, each answered by one.
    pub(super) fn udp(target: SocketAddr) -> Self {
        Self::new(target, Kind::Udp)
    }

    fn new(target: SocketAddr, kind: Kind) -> Self {
        Self {
            done: Arc::default(),
            target,
            kind,
            stop: Arc::default(),
            results: Arc::default(),
            clients: Mutex::new(JoinSet::new()),
        }
    }

    /// Starts the clients.
    pub(super) fn start(&self) {
        for _ in 0..CLIENTS {
            let (target, kind) = (self.target, self.kind);
            let (done, stop, results) =
                (Arc::clone(&self.done), Arc::clone(&self.stop), Arc::clone(&self.results));
            lock(&self.clients).spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match kind {
                        Kind::Http => {
                            let start = Instant::now();
                            let result = timed(http_request(target)).await;
                            lock(&results).add(result, start.elapsed());
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Kind::Udp => udp_flow(target, &results, &done).await,
                    }
                }
            });
        }
    }

    /// How many requests a backend has answered.
    pub(super) fn answers_of(&self, backend: &str) -> u64 {
        lock(&self.results).latencies.get(backend).map_or(0, Histogram::len)
    }

    /// Lets the clients finish their requests and returns what they saw.
    pub(super) async fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut *lock(&self.clients));
        clients.join_all().await;
        std::mem::take(&mut *lock(&self.results))
    }
}

/// If a client has panicked, the others' results still count.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn timed<T>(request: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(result) => result,
        Err(_) => bail!("no answer within {TIMEOUT:?}"),
    }
}

/// One request on a new connection; returns which backend answered.
async fn http_request(target: SocketAddr) -> Result<String> {
    let stream = TcpStream::connect(target).await.context("connecting")?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/").header("host", target.to_string()).header("connection", "close");
    let exchange = async {
        let response = client.send_request(request.body(Empty::<Bytes>::new())?).await.context("sending")?;
        ensure!(response.status().is_success(), "status {}", response.status());
        let backend = response.headers().get(BACKEND_HEADER).context("the answer names no backend")?;
        let backend = backend.to_str()?.to_owned();
        response.into_body().collect().await.context("reading the answer")?;
        Ok(backend)
    };
    let (result, connection) = tokio::join!(exchange, connection);
    connection.context("closing")?;
    result
}

/// A few exchanges from one client address.
async fn udp_flow(target: SocketAddr, results: &Mutex<Outcome>, done: &AtomicUsize) {
    let socket = async {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
        socket.connect(target).await?;
        std::io::Result::Ok(socket)
    };
    let socket = socket.await;
    for number in 0..DATAGRAMS_PER_FLOW {
        let start = Instant::now();
        let result = match &socket {
            Ok(socket) => timed(udp_exchange(socket, number)).await,
            Err(error) => Err(anyhow::anyhow!("cannot open a UDP socket: {error}")),
        };
        lock(results).add(result, start.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// One datagram there and back; returns which backend answered.
async fn udp_exchange(socket: &UdpSocket, number: usize) -> Result<String> {
    let question = format!("question {number}");
    socket.send(question.as_bytes()).await.context("sending")?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer).await.context("receiving")?;
    let answer = std::str::from_utf8(answer.get(..length).unwrap_or_default())?;
    let (backend, echo) = answer.split_once(": ").context("the answer names no backend")?;
    ensure!(echo == question, "asked {question:?} and got {echo:?} back");
    Ok(backend.to_owned())
}
