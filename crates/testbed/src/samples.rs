//! Sample backends for the demo: small HTTP and UDP servers that report their name.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sluice_sys::tcp::refuse_new_connections;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// The response header that names the backend.
pub const BACKEND_HEADER: &str = "x-backend";

/// How long a stopping HTTP backend has to see no new connection before it assumes that there will be none:
/// kernel threads complete handshakes that have begun, and may be delayed on a busy machine.
const QUIET: Duration = Duration::from_millis(200);

/// A running backend. Dropping it does not stop it.
#[derive(Debug)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// The address that it listens on.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Sample {
    /// An HTTP/1.1 server on a free port of `ip`. It answers every request with a line that contains its name
    /// and the client's address, and with its name in [`BACKEND_HEADER`].
    ///
    /// # Errors
    /// The address is not one of this machine's, or no port is free.
    pub async fn http(name: &str, ip: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve_http(listener, name.into(), stopped));
        Ok(Self { name: name.to_owned(), address, stop, task })
    }

    /// A UDP server on a free port of `ip`. It answers every datagram with its name, a colon and the
    /// datagram.
    ///
    /// # Errors
    /// The address is not one of this machine's, or no port is free.
    pub async fn udp(name: &str, ip: IpAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((ip, 0)).await?;
        let address = socket.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve_udp(socket, name.to_owned(), stopped));
        Ok(Self { name: name.to_owned(), address, stop, task })
    }

    /// Ends like a terminating process: accepts no new connections, answers on existing ones, and closes.
    /// From then on, connections to it are refused.
    pub async fn stop(self) {
        // The server holds the receiving end until it is done.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn serve_http(listener: TcpListener, name: Arc<str>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Ok((stream, _)) = listener.accept() => connections.spawn(answer_http(stream, Arc::clone(&name))),
            Some(_) = connections.join_next() => continue,
        };
    }
    // Closing a listener resets the connections in its queue. So new ones are refused first, and then the
    // queue is emptied.
    if let Err(error) = refuse_new_connections(listener.as_fd()) {
        tracing::warn!("a backend that stops cannot refuse, and may lose a connection: {error}");
    }
    while let Ok(Ok((stream, _))) = tokio::time::timeout(QUIET, listener.accept()).await {
        connections.spawn(answer_http(stream, Arc::clone(&name)));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves the requests of one connection. Errors of the connection are ignored.
async fn answer_http(stream: TcpStream, name: Arc<str>) {
    let Ok(client) = stream.peer_addr() else { return };
    let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
        let line =
            format!("{} {} answered by {name}, which sees {client}\n", request.method(), request.uri());
        let mut response = Response::new(Full::new(Bytes::from(line)));
        if let Ok(name) = HeaderValue::from_str(&name) {
            response.headers_mut().insert(BACKEND_HEADER, name);
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn serve_udp(socket: UdpSocket, name: String, mut stopped: oneshot::Receiver<()>) {
    let mut datagram = vec![0; 65_536];
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            Ok((length, client)) = socket.recv_from(&mut datagram) => {
                let mut answer = format!("{name}: ").into_bytes();
                answer.extend_from_slice(datagram.get(..length).unwrap_or_default());
                // A client that is gone gets no answer.
                let _ = socket.send_to(&answer, client).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /path HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn backends_say_who_they_are() {
        let http = Sample::http("web-a", [127, 0, 0, 1].into()).await.unwrap();
        let answer = get(http.address).await.unwrap();
        assert!(answer.contains("x-backend: web-a"), "{answer}");
        assert!(answer.contains("GET /path answered by web-a, which sees 127.0.0.1:"), "{answer}");

        let udp = Sample::udp("udp-a", [127, 0, 0, 1].into()).await.unwrap();
        let client = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        client.send_to(b"hello", udp.address).await.unwrap();
        let mut answer = [0; 100];
        let length = client.recv(&mut answer).await.unwrap();
        assert_eq!(&answer[..length], b"udp-a: hello");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stopping_backend_answers_what_it_has_accepted_and_refuses_the_rest() {
        for _ in 0..5 {
            let http = Sample::http("web-a", [127, 0, 0, 1].into()).await.unwrap();
            let address = http.address;
            let client = tokio::spawn(async move {
                loop {
                    match get(address).await {
                        Ok(answer) => assert!(answer.starts_with("HTTP/1.1 200"), "{answer}"),
                        Err(error) => return error.kind(),
                    }
                }
            });
            tokio::task::yield_now().await;
            http.stop().await;
            assert_eq!(client.await.unwrap(), io::ErrorKind::ConnectionRefused);
        }
    }
}
