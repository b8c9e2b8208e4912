//! Servers: TCP and UDP on the same port of all of a host's addresses, on a thread of their own.

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

/// The longest datagram that UDP carries over IPv4, and some more.
const DATAGRAM: usize = 65_536;

/// How long a program may take to start, on a busy machine.
const A_MOMENT: Duration = Duration::from_secs(5);

/// A port from which nobody sends (RFC 863).
const DISCARD: u16 = 9;

/// A running server. Dropping it closes all of its sockets: connecting to it is refused from then on, and so are datagrams.
///
/// A TCP client is told at once `NAME ADDRESS PORT\n`: who this is and where the client seems to be; after
/// that everything it sends comes back. A datagram [`WHO`] is answered by the same line, any other by itself.
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
    /// Starts a server on a port of both of its addresses.
    ///
    /// # Errors
    /// Somebody has the port already.
    pub fn serve(&self, port: u16) -> Result<Server, LabError> {
        self.serve_at(&[(self.v4, port).into(), (self.v6, port).into()])
    }

    /// Starts a server on these addresses of the host, with the same port in all.
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
    /// How many connections it has accepted.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// How many datagrams it has received.
    pub fn datagrams(&self) -> u64 {
        self.seen.datagrams.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sockets.refuse();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends well, or it has panicked and said so.
            let _ = thread.join();
        }
    }
}

/// One an address and protocol, so that answers leave from the address that was asked.
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

    /// Has nobody be taken in any more, whoever else has the sockets: a program that another thread is just starting has
    /// all of this process for a moment.
    fn refuse(&self) {
        for listener in &self.tcp {
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for socket in &self.udp {
            // One that is connected takes nothing from others.
            let _ = socket.local_addr().and_then(|own| socket.connect((own.ip(), DISCARD)));
        }
    }
}

/// Waits for what a server before has closed, and a program that is just being started has for a moment.
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
    // What is in here ends with it.
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

/// What the client does to its connection is the client's business.
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
        // An error is the ICMP message of a client that is gone.
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
        // As a program has them that is just being started.
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
