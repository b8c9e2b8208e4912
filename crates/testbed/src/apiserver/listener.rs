//! Accepts connections: TCP, TLS, HTTP/1.1 and HTTP/2. Can stop, and start again on the same port.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::{Shared, router};

/// Length of the accept queue.
const BACKLOG: u32 = 1024;

/// Binds a socket to the port. It refuses connections, because it does not listen.
pub(crate) fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Earlier connections may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A running listener.
#[derive(Debug)]
pub(crate) struct Running {
    stop: oneshot::Sender<Infallible>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts to listen and to serve.
    pub(crate) fn start(
        socket: TcpSocket,
        shared: &Arc<Shared>,
        tls: Option<Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        let listener = socket.listen(BACKLOG)?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept_all(listener, Arc::clone(shared), tls, stopped));
        Ok(Self { stop, task })
    }

    /// Closes the listener and all connections, and waits until they are closed.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        // The task has ended normally, or it has panicked and so closed everything.
        let _ = self.task.await;
    }
}

async fn accept_all(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<Arc<ServerConfig>>,
    mut stopped: oneshot::Receiver<Infallible>,
) {
    let mut connections = JoinSet::new();
    let mut drops = shared.connection_drops.subscribe();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    shared.counters.send_modify(|counters| counters.connections += 1);
                    connections.spawn(serve(stream, Arc::clone(&shared), tls.clone()));
                }
                Err(error) => debug!(%error, "accepting a connection failed"),
            },
            Some(_) = connections.join_next() => {}
            Ok(()) = drops.changed() => connections.shutdown().await,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, tls: Option<Arc<ServerConfig>>) {
    // Events are small and urgent.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let Some(tls) = tls else { return serve_http(stream, shared, false).await };
    match TlsAcceptor::from(tls).accept(stream).await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificate =
                shared.cluster.certificates.as_ref().is_some_and(|certificates| certificates.accepts(chain));
            serve_http(stream, shared, certificate).await;
        }
        Err(error) => debug!(%error, "no TLS with this client"),
    }
}

async fn serve_http<S>(stream: S, shared: Arc<Shared>, certificate: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut ends = shared.connection_ends.subscribe();
    let service = service_fn(move |request| router::handle(Arc::clone(&shared), certificate, request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let served = loop {
        tokio::select! {
            served = connection.as_mut() => break served,
            Ok(()) = ends.changed() => connection.as_mut().graceful_shutdown(),
        }
    };
    if let Err(error) = served {
        debug!(error, "a connection ended early");
    }
}
