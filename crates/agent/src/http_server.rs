//! Serves HTTP for the agent's own ports: accepts connections, limits the time of each request and answer, and
//! bounds the number of connections, so that nobody can use up the file descriptors and the memory that traffic
//! needs. Runs as tokio tasks; the caller provides the answers.

mod answering;
mod connections;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use answering::Answering;
pub(crate) use connections::Connections;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, warn};

/// Pause after a failed accept, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long the largest answer may take, some 17 MB with 10,000 Services: answers stay in memory while they are
/// sent.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How to treat connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// How long a client may take to send a request, to begin one on a kept connection, and to take a part of
    /// an answer.
    pub patience: Duration,
    /// How long it may take for the whole answer.
    pub answer_time: Duration,
    /// Whether a connection is kept for more than one request.
    pub keep_alive: bool,
}

/// Both ends of the connection of a request; one of the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that it connected to.
    pub local: SocketAddr,
}

impl Ends {
    /// Whether a process of this machine has connected to an address that others cannot reach. A loopback
    /// address as destination alone does not prove it: with `route_localnet`, neighbours may send to it.
    pub(crate) fn are_loopback(self) -> bool {
        [self.peer, self.local].iter().all(|end| end.ip().to_canonical().is_loopback())
    }
}

/// Where connections come in.
pub(crate) trait Listen {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next one; nothing is lost if it is dropped.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// The listening address, for the log.
    fn place(&self) -> String;

    /// The ends of a connection, if they have addresses.
    fn ends(_stream: &Self::Stream) -> Option<Ends> {
        None
    }
}

impl Listen for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }

    fn place(&self) -> String {
        self.local_addr().map_or_else(|_| String::new(), |address| address.to_string())
    }

    fn ends(stream: &Self::Stream) -> Option<Ends> {
        Some(Ends { peer: stream.peer_addr().ok()?, local: stream.local_addr().ok()? })
    }
}

/// Accepts and answers until the future is dropped, which closes the listener and its connections.
pub(crate) async fn serve<L, A>(
    listener: L,
    connections: Connections,
    settings: Settings,
    answer: A,
) -> Infallible
where
    L: Listen,
    A: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + 'static,
{
    let answer = move |request: Request<Incoming>| std::future::ready(answer(&request));
    serve_later(listener, connections, settings, answer).await
}

/// The same for answers that take a while.
pub(crate) async fn serve_later<L, A, F>(
    listener: L,
    connections: Connections,
    settings: Settings,
    answer: A,
) -> Infallible
where
    L: Listen,
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let mut own = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    let address = listener.place();
                    if connections.note_failure(&error) {
                        warn!(address, "an HTTP connection cannot be accepted: {error}; it is tried again");
                    } else {
                        debug!(address, "an HTTP connection cannot be accepted: {error}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = own.join_next() => continue,
        };
        let answer = answer.clone();
        let ends = L::ends(&stream);
        let peer = ends.map(|ends| ends.peer.ip().to_canonical());
        let mut stream = TimeoutStream::new(Answering::new(stream, settings.answer_time));
        stream.set_write_timeout(Some(settings.patience));
        let stream = TokioIo::new(Box::pin(stream));
        let task = own.spawn(async move {
            let answer = service_fn(move |mut request: Request<Incoming>| {
                if let Some(ends) = ends {
                    request.extensions_mut().insert(ends);
                }
                let answer = answer(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            // Errors of the connection are the client's business.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(settings.patience)
                .keep_alive(settings.keep_alive)
                .serve_connection(stream, answer)
                .await;
        });
        connections.admit(peer, task);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;

    /// More than the buffers of two sockets.
    const LARGE: usize = 64 << 20;

    /// How long a test waits for what must happen.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// A server that answers `hello` and keeps connections.
    async fn server(connections: &Connections, patience: Duration) -> (SocketAddr, JoinSet<Infallible>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings { patience, answer_time: DEADLINE, keep_alive: true };
        let mut task = JoinSet::new();
        task.spawn(serve(listener, connections.clone(), settings, |_| Response::new(Full::from("hello"))));
        (address, task)
    }

    /// Asks and reads to the end of the answer, which is `hello`.
    async fn ask(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Whether the other side ends the connection, in time.
    async fn is_ended(stream: &mut TcpStream) -> bool {
        let ended = timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("the connection is still open");
        matches!(ended, Ok(0) | Err(_))
    }

    #[tokio::test]
    async fn a_client_that_never_asks_is_cut_off() {
        let (address, _task) = server(&Connections::new(8), Duration::from_millis(50)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(is_ended(&mut silent).await);
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nx-never: ends").await.unwrap();
        while !is_ended(&mut slow).await {}
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await.unwrap();
        assert!(is_ended(&mut idle).await, "nothing asked after the first answer");
    }

    #[test]
    fn both_ends_have_to_be_loopback() {
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 1);
        for (peer, local, wanted) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("::1", "::1", true),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", true),
            ("192.0.2.1", "127.0.0.1", false),
            ("127.0.0.1", "192.0.2.1", false),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
        ] {
            let ends = Ends { peer: at(peer), local: at(local) };
            assert_eq!(ends.are_loopback(), wanted, "{ends:?}");
        }
    }

    /// Asks a server for more than the buffers of two sockets hold. Returns when it has begun to answer, so what ends is
    /// not a request that never came.
    async fn large_answer(connections: &Connections, settings: Settings) -> (TcpStream, JoinSet<Infallible>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |_: &Request<Incoming>| Response::new(Full::from(vec![b'a'; LARGE]));
        let mut task = JoinSet::new();
        task.spawn(serve(listener, connections.clone(), settings, answer));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream.peek(&mut [0; 1]).await.unwrap();
        (stream, task)
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answer_is_cut_off() {
        let connections = Connections::new(8);
        let settings =
            Settings { patience: Duration::from_millis(50), answer_time: DEADLINE * 10, keep_alive: true };
        let (_stream, _task) = large_answer(&connections, settings).await;
        let ended = async {
            while connections.open() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, ended).await.expect("the connection ends");
    }

    #[tokio::test]
    async fn a_client_that_takes_its_answer_a_little_at_a_time_is_cut_off() {
        let connections = Connections::new(8);
        let settings =
            Settings { patience: DEADLINE * 10, answer_time: Duration::from_millis(50), keep_alive: true };
        let (mut stream, _task) = large_answer(&connections, settings).await;
        let taking = async {
            let mut taken = 0;
            while connections.open() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                taken += stream.read(&mut [0; 1024]).await.unwrap_or(0);
            }
            taken
        };
        let taken = timeout(DEADLINE, taking).await.expect("the connection ends");
        assert!(taken < LARGE);
    }

    #[tokio::test]
    async fn over_the_bound_the_oldest_goes_and_the_newest_is_answered() {
        const LIMIT: usize = 4;
        let connections = Connections::new(LIMIT);
        let (first_address, _first) = server(&connections, DEADLINE).await;
        let (second_address, _second) = server(&connections, DEADLINE).await;
        let mut held = Vec::new();
        for _ in 0..LIMIT {
            let mut stream = TcpStream::connect(first_address).await.unwrap();
            ask(&mut stream).await.unwrap();
            held.push(stream);
        }
        assert_eq!(connections.cut_off(), 0, "at the bound, not over it");
        let mut newest = TcpStream::connect(second_address).await.unwrap();
        ask(&mut newest).await.unwrap();
        assert!(is_ended(&mut held[0]).await);
        assert_eq!(connections.cut_off(), 1);
        for stream in &mut held[1..] {
            ask(stream).await.expect("all others are kept");
        }
    }

    #[tokio::test]
    async fn over_the_bound_whoever_has_few_is_let_finish() {
        const LIMIT: usize = 4;
        let connections = Connections::new(LIMIT);
        let (address, _task) = server(&connections, DEADLINE).await;
        let mut scraper = TcpStream::connect(address).await.unwrap();
        ask(&mut scraper).await.unwrap();
        let mut others = Vec::new();
        for _ in 0..2 * LIMIT {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            ask(&mut stream).await.unwrap();
            others.push(stream);
        }
        ask(&mut scraper).await.expect("the oldest of all, but the only one of its client");
        assert_eq!(connections.cut_off(), LIMIT as u64 + 1);
        for stream in &mut others[..=LIMIT] {
            assert!(is_ended(stream).await);
        }
        for stream in &mut others[LIMIT + 1..] {
            ask(stream).await.expect("the newest of a client are kept");
        }
    }

    #[tokio::test]
    async fn connections_that_ended_do_not_count() {
        let connections = Connections::new(1);
        let (address, _task) = server(&connections, DEADLINE).await;
        for _ in 0..8 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("hello"), "{answer}");
            // The task ends a moment after the client has seen the end.
            let ended = async {
                while connections.open() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(DEADLINE, ended).await.expect("the connection ends");
        }
        assert_eq!(connections.cut_off(), 0);
    }

    #[tokio::test]
    async fn a_server_that_goes_takes_its_connections_along() {
        let (address, mut task) = server(&Connections::new(8), DEADLINE).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream).await.unwrap();
        task.shutdown().await;
        assert!(is_ended(&mut stream).await);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
