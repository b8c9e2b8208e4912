//! Backends: real servers on loopback, a thread a connection.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::loopback_address;

/// How often a UDP server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);

/// A TCP server that gives each connection to a function, or a UDP server that gives it each datagram.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    /// Wakes the thread, if it does not wake by itself.
    close: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// A TCP server. `serve` runs on a thread of its own for each connection; its error ends only that.
    pub fn tcp(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let serve = Arc::new(serve);
        Self::accepting(move |stream| {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || {
                // What a peer does to its connection is the test's business, not the server's.
                let _ = serve(stream);
            });
        })
    }

    /// A TCP server that gives one connection after the other to `serve`, all on one thread.
    pub fn accepting(serve: impl Fn(TcpStream) + Send + 'static) -> Self {
        Self::accepting_at(loopback_address().into(), serve)
    }

    /// The same on an address of choice.
    pub fn accepting_at(ip: IpAddr, serve: impl Fn(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let closer = listener.try_clone().expect("a descriptor is left");
        // Closing a listener does not wake who waits for it; shutting it down does.
        let close = move || {
            let _ = rustix::net::shutdown(&closer, rustix::net::Shutdown::Both);
        };
        Self::run(address, close, move |served, stop| {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    served.fetch_add(1, Ordering::Relaxed);
                    serve(stream);
                }
            }
        })
    }

    /// A TCP server that sends everything back and closes when the client does.
    pub fn echo() -> Self {
        Self::tcp(|mut stream| {
            let mut buffer = [0; 65_536];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.shutdown(Shutdown::Write),
                    n => stream.write_all(&buffer[..n])?,
                }
            }
        })
    }

    /// A UDP server that answers each datagram with what `answer` makes of it.
    pub fn udp(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        Self::udp_at(loopback_address().into(), answer)
    }

    /// The same on an address of choice.
    pub fn udp_at(ip: IpAddr, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let socket = UdpSocket::bind((ip, 0)).expect("a loopback port is free");
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a size within reason");
        let address = socket.local_addr().expect("a bound socket has an address");
        socket.set_read_timeout(Some(POLL)).expect("a timeout that is not zero");
        Self::run(
            address,
            || {},
            move |served, stop| {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                        served.fetch_add(1, Ordering::Relaxed);
                        // A client that is gone gets no answer.
                        let _ = socket.send_to(&answer(&buffer[..length]), client);
                    }
                }
            },
        )
    }

    fn run(
        address: SocketAddr,
        close: impl Fn() + Send + Sync + 'static,
        serve: impl FnOnce(&AtomicUsize, &AtomicBool) + Send + 'static,
    ) -> Self {
        let served = Arc::<AtomicUsize>::default();
        let stop = Arc::<AtomicBool>::default();
        let (thread_served, thread_stop) = (Arc::clone(&served), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&thread_served, &thread_stop));
        Self { address, served, stop, close: Box::new(close), thread: Some(thread) }
    }

    /// Connections accepted, or datagrams received, so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

/// Closes the listening socket; connections that are open go on.
impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        (self.close)();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
