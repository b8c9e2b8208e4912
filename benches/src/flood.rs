//! Load at full speed, without regard for others, from threads of this program. It ends when it is dropped.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_testbed::lab::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::interrupt::POLL;

/// The timeout of an attempt to connect.
const PATIENCE: Duration = Duration::from_secs(2);

/// Number of sockets of a datagram flood that wait for answers. A client that uses a new port for each
/// datagram has several, too.
const WAITING: usize = 256;

/// Size of a bulk read or write in bytes.
const CHUNK: usize = 64 << 10;

/// A running flood.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    done: AtomicU64,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn add(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns when the flood is over.
    async fn over(&self) {
        while !self.is_over() {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Flood {
    /// Connections that are refused, or reset at once; from each client one after the other.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn connects(from: &Host, to: SocketAddr, clients: usize) -> Result<Self> {
        Self::start(from, clients, move |shared| {
            while !shared.is_over() {
                if let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) {
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    // Usually a reset. Whatever it is, the connection is over.
                    let _ = stream.read(&mut [0; 64]);
                }
                shared.add(1);
            }
        })
    }

    /// Datagrams, each from another port of the host.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn datagrams(from: &Host, to: SocketAddr) -> Result<Self> {
        Self::start(from, 1, move |shared| {
            let mut waiting = VecDeque::new();
            while !shared.is_over() {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let sent = UdpSocket::bind(any).and_then(|socket| {
                    socket.connect(to)?;
                    socket.send(&[7; 32])?;
                    Ok(socket)
                });
                // If no port or no room in the queue was left, the next one may succeed.
                if let Ok(socket) = sent {
                    waiting.push_back(socket);
                    shared.add(1);
                }
                if waiting.len() > WAITING {
                    waiting.pop_front();
                }
            }
        })
    }

    /// Bulk data from a [`Source`], on many connections.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn bulk(from: &Host, to: SocketAddr, connections: usize) -> Result<Self> {
        Self::start(from, 1, move |shared| {
            let pull = |shared: Arc<Shared>| async move {
                let Ok(mut stream) = tokio::net::TcpStream::connect(to).await else { return };
                let mut buffer = vec![0; CHUNK];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    shared.add(count as u64);
                }
            };
            run(async {
                for _ in 0..connections {
                    tokio::spawn(pull(Arc::clone(shared)));
                }
                shared.over().await;
            });
        })
    }

    /// The amount so far: connections, datagrams, or bytes.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    fn start(
        from: &Host,
        threads: usize,
        work: impl Fn(&Arc<Shared>) + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut flood = Self { shared: Arc::default(), threads: Vec::new() };
        let work = Arc::new(work);
        for _ in 0..threads {
            let (shared, namespace, work) = (Arc::clone(&flood.shared), from.ns.clone(), Arc::clone(&work));
            let thread = std::thread::Builder::new()
                .name("flood".into())
                .spawn(move || namespace.run(|| work(&shared)))
                .context("a thread")?;
            flood.threads.push(thread);
        }
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // If it has panicked, that was printed.
            let _ = thread.join();
        }
    }
}

/// A server that sends endlessly to each client until it is dropped.
#[derive(Debug)]
pub struct Source {
    _thread: Flood,
}

impl Source {
    /// Starts it on a port of a host's IPv4 address.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(on: &Host, port: u16) -> Result<Self> {
        let address = SocketAddr::from((on.v4, port));
        let listener = on.ns.run(|| TcpListener::bind(address)).context("a server in bulk")?;
        listener.set_nonblocking(true)?;
        let serve = move |shared: &Arc<Shared>| {
            run(async {
                let Ok(listener) = listener.try_clone().and_then(tokio::net::TcpListener::from_std) else {
                    return;
                };
                let accept = async {
                    loop {
                        let Ok((mut stream, _)) = listener.accept().await else { continue };
                        tokio::spawn(async move {
                            let chunk = vec![7; CHUNK];
                            while stream.write_all(&chunk).await.is_ok() {}
                        });
                    }
                };
                tokio::select! {
                    () = accept => {}
                    () = shared.over() => {}
                }
            });
        };
        Ok(Self { _thread: Flood::start(on, 1, serve)? })
    }
}

/// Runs a future on this thread, and drops the tasks that it has started.
fn run(future: impl Future<Output = ()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => tracing::error!(%error, "a flood has no runtime"),
    }
}
