//! Servers: TCP and UDP on the same port of all of a host's addresses, each on its own thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Answer, WHO};
use crate::lab::{Host, LabError};

/// Slightly more than the longest UDP datagram over IPv4.
const DATAGRAM: usize = 65_536;

/// How long a program may take to start, on a busy machine.
const A_MOMENT: Duration = Duration::from_secs(5);

/// A port from which nothing is sent (RFC 863).
const DISCARD: u16 = 9;

/// A running server. Dropping it closes all of its sockets: from then on, connections and datagrams to it are
/// refused.
///
/// It sends each TCP client the line `NAME ADDRESS PORT\n` at once, with its own name and the client's
/// address and port as it sees them; after that it echoes everything. It answers a datagram [`WHO`] with the
/// same line, and echoes any other.
#[derive(Debug)]
pub struct Server {
    /// Its port.
    pub port: u16,
    seen: Arc<Seen>,
    sockets: Sockets,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    connections: AtomicU64,
    datagrams: AtomicU64,
}

impl Host {
    /// Starts a server on a port of both of the host's addresses.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&self, port: u16) -> Result<Server, LabError> {
        self.serve_at(&[(self.v4, port).into(), (self.v6, port).into()])
    }

    /// Starts a server on these addresses of the host, all with the same port.
    ///
    /// # Errors
    /// One of them is not the host's, or is taken.
    pub fn serve_at(&self, addresses: &[SocketAddr]) -> Result<Server, LabError> {
        let failed =
            |source| LabError::Io { what: format!("a server on {addresses:?} of {}", self.name), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let sockets = self.ns.run(|| bind_when_free(addresses)).map_err(failed)?;
        let Sockets { tcp, udp } = sockets.try_clone().map_err(failed)?;
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = oneshot::channel();
        let (name, counters) = (self.name.clone(), Arc::clone(&seen));
        let serve = move || runtime.block_on(serve(name, tcp, udp, counters, stopped));
        let thread = std::thread::Builder::new().name(format!("{} server", self.name)).spawn(serve);
        let port = addresses.first().map_or(0, SocketAddr::port);
        Ok(Server { port, seen, sockets, stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }
}

impl Server {
    /// Number of accepted connections.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// Number of received datagrams.
    pub fn datagrams(&self) -> u64 {
        self.seen.datagrams.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sockets.refuse();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has ended normally, or it has panicked and that was printed.
            let _ = thread.join();
        }
    }
}

/// One socket for each address and protocol, so that answers are sent from the requested address.
#[derive(Debug, Default)]
struct Sockets {
    tcp: Vec<std::net::TcpListener>,
    udp: Vec<std::net::UdpSocket>,
}

impl Sockets {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            tcp: self.tcp.iter().map(std::net::TcpListener::try_clone).collect::<io::Result<_>>()?,
            udp: self.udp.iter().map(std::net::UdpSocket::try_clone).collect::<io::Result<_>>()?,
        })
    }

    /// Refuses new clients even if another process has the sockets: a program that another thread is starting
    /// has all descriptors of this process for a moment.
    fn refuse(&self) {
        for listener in &self.tcp {
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for socket in &self.udp {
            // A connected socket receives nothing from others.
            let _ = socket.local_addr().and_then(|own| socket.connect((own.ip(), DISCARD)));
        }
    }
}

/// Binds as soon as the addresses are free: a program that is being started may hold an earlier server's
/// sockets for a moment.
fn bind_when_free(addresses: &[SocketAddr]) -> io::Result<Sockets> {
    let deadline = Instant::now() + A_MOMENT;
    loop {
        match bind(addresses) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            bound => return bound,
        }
    }
}

fn bind(addresses: &[SocketAddr]) -> io::Result<Sockets> {
    let mut sockets = Sockets::default();
    for address in addresses {
        let (listener, socket) = (std::net::TcpListener::bind(address)?, std::net::UdpSocket::bind(address)?);
        listener.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        sockets.tcp.push(listener);
        sockets.udp.push(socket);
    }
    Ok(sockets)
}

async fn serve(
    name: String,
    tcp: Vec<std::net::TcpListener>,
    udp: Vec<std::net::UdpSocket>,
    seen: Arc<Seen>,
    stopped: oneshot::Receiver<()>,
) {
    // Dropping it ends its tasks.
    let mut tasks = JoinSet::new();
    for listener in tcp {
        match TcpListener::from_std(listener) {
            Ok(listener) => drop(tasks.spawn(accept(listener, name.clone(), Arc::clone(&seen)))),
            Err(error) => tracing::error!(%error, "a server has no listener"),
        }
    }
    for socket in udp {
        match UdpSocket::from_std(socket) {
            Ok(socket) => drop(tasks.spawn(answer_datagrams(socket, name.clone(), Arc::clone(&seen)))),
            Err(error) => tracing::error!(%error, "a server has no socket"),
        }
    }
    // An error means that the handle was dropped.
    let _ = stopped.await;
}

async fn accept(listener: TcpListener, name: String, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    seen.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(answer_connection(stream, name.clone()));
                }
                // The server is being dropped.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                Err(_) => {}
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Errors of the client's connection are ignored.
async fn answer_connection(mut stream: TcpStream, by: String) {
    let Ok(source) = stream.peer_addr() else { return };
    let _ = stream.set_nodelay(true);
    if stream.write_all(Answer { by, source }.to_line().as_bytes()).await.is_err() {
        return;
    }
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn answer_datagrams(socket: UdpSocket, name: String, seen: Arc<Seen>) {
    let mut datagram = vec![0; DATAGRAM];
    loop {
        // An error is an ICMP message about a client that is gone.
        let Ok((length, source)) = socket.recv_from(&mut datagram).await else { continue };
        seen.datagrams.fetch_add(1, Ordering::Relaxed);
        let payload = datagram.get(..length).unwrap_or_default();
        let line;
        let answer = if payload == WHO {
            line = Answer { by: name.clone(), source }.to_line();
            line.as_bytes()
        } else {
            payload
        };
        let _ = socket.send_to(answer, source).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_served_is_refused_though_somebody_has_the_sockets_for_a_moment() {
        let sockets = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        // Like a program that is being started.
        let _others = sockets.try_clone().unwrap();
        let (tcp, udp) = (sockets.tcp[0].local_addr().unwrap(), sockets.udp[0].local_addr().unwrap());
        let waits = std::net::TcpStream::connect(tcp).unwrap();
        sockets.refuse();
        drop(sockets);
        assert_eq!(io::Read::read(&mut &waits, &mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let refused = std::net::TcpStream::connect(tcp).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(udp).unwrap();
        client.send(b"?").unwrap();
        assert_eq!(client.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
