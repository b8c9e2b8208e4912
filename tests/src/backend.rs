//! Backends: real servers on loopback, a thread a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::loopback_address;

/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);

/// A TCP server that gives each connection to a function, or a UDP server that gives it each datagram.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// A TCP server. `serve` runs on a thread of its own; its error ends only that connection.
    pub fn tcp(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((loopback_address(), 0)).expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("sockets can be non-blocking");
        let serve = Arc::new(serve);
        Self::run(address, move |served| match listener.accept() {
            Ok((stream, _)) => {
                served.fetch_add(1, Ordering::Relaxed);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    // What a peer does to its connection is the test's business, not the server's.
                    let _ = stream.set_nonblocking(false).and_then(|()| serve(stream));
                });
            }
            Err(_) => wait_readable(&listener),
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
        let socket = UdpSocket::bind((loopback_address(), 0)).expect("a loopback port is free");
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a size within reason");
        let address = socket.local_addr().expect("a bound socket has an address");
        socket.set_read_timeout(Some(POLL)).expect("a timeout that is not zero");
        let mut buffer = vec![0; 65_536];
        Self::run(address, move |served| {
            if let Ok((n, client)) = socket.recv_from(&mut buffer) {
                served.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&answer(&buffer[..n]), client);
            }
        })
    }

    fn run(address: SocketAddr, mut step: impl FnMut(&AtomicUsize) + Send + 'static) -> Self {
        let served = Arc::<AtomicUsize>::default();
        let stop = Arc::<AtomicBool>::default();
        let (thread_served, thread_stop) = (Arc::clone(&served), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !thread_stop.load(Ordering::Relaxed) {
                step(&thread_served);
            }
        });
        Self { address, served, stop, thread: Some(thread) }
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait_readable(listener: &TcpListener) {
    let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(POLL.subsec_nanos()) };
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
}
