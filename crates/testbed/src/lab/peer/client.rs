//! Clients: one request and its outcome.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use sluice_model::Protocol;
use socket2::{Domain, Socket, Type};

use super::{Answer, WHO};
use crate::lab::Host;

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered.
    Answered {
        /// Its name.
        by: String,
        /// The client's address, as the server saw it.
        source: IpAddr,
        /// The client's port, as the server saw it.
        source_port: u16,
    },
    /// The port is closed: a reset of the handshake, or an ICMP message.
    Refused,
    /// No response: no handshake, or no datagram.
    Silent,
    /// The connection was established and then reset.
    Reset,
    /// The connection was established and then closed without an answer.
    Closed,
    /// The connection was established, but no answer came.
    Stalled,
    /// The address is unreachable: no route or, for TCP, an ICMP message of a router.
    Unreachable,
    /// A filter on the client's own host rejects it, or an ICMP message says that one does.
    Forbidden,
    /// Anything else: an error's text, or an invalid answer.
    Odd(String),
}

impl Outcome {
    /// The name of the server that answered.
    pub fn by(&self) -> Option<&str> {
        match self {
            Self::Answered { by, .. } => Some(by),
            _ => None,
        }
    }

    /// The client's address, as the server saw it.
    pub fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Answered { source, .. } => Some(*source),
            _ => None,
        }
    }

    fn of_line(line: &str) -> Self {
        match Answer::from_line(line) {
            Some(Answer { by, source }) => {
                Self::Answered { by, source: source.ip(), source_port: source.port() }
            }
            None => Self::Odd(format!("not an answer: {line:?}")),
        }
    }

    /// The outcome for errors that mean the same before and after a connection is established.
    fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset => Self::Reset,
            // A read returns WouldBlock after its timeout, a connect TimedOut.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silent,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Odd(error.to_string()),
        }
    }
}

impl Host {
    /// Sends a request from this host, and waits up to `patience` for the answer.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr, patience: Duration) -> Outcome {
        match protocol {
            Protocol::Tcp => self.ns.run(|| ask_tcp(patience, || TcpStream::connect_timeout(&to, patience))),
            Protocol::Udp => match self.udp_socket(to) {
                Ok(socket) => ask_on(&socket, patience),
                Err(error) => Outcome::of_error(&error),
            },
        }
    }

    /// The same with a socket that has a mark, like that of a tunnel.
    pub fn ask_marked(&self, mark: u32, protocol: Protocol, to: SocketAddr, patience: Duration) -> Outcome {
        let connect = || connect_marked(mark, protocol, to, patience);
        match protocol {
            Protocol::Tcp => self.ns.run(|| ask_tcp(patience, || connect().map(TcpStream::from))),
            Protocol::Udp => match self.ns.run(connect) {
                Ok(socket) => ask_on(&UdpSocket::from(socket), patience),
                Err(error) => Outcome::of_error(&error),
            },
        }
    }

    /// Connects from this host. The server sends its line first; see [`Server`](super::Server).
    ///
    /// # Errors
    /// Like those of [`TcpStream::connect_timeout`].
    pub fn tcp_stream(&self, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        self.ns.run(|| connect(to, patience))
    }

    /// A socket of this host on a free port, connected to `to`, for several datagrams of one flow; see
    /// [`ask_on`].
    ///
    /// # Errors
    /// There is no route.
    pub fn udp_socket(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.ns.run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            Ok(socket)
        })
    }

    /// Sends `length` bytes over TCP to a [`Server`](super::Server) and compares the echo.
    ///
    /// # Errors
    /// Those of the connection, no progress within `patience`, or [`ErrorKind::InvalidData`] if the echo
    /// differs.
    pub fn echo_tcp(&self, to: SocketAddr, length: usize, patience: Duration) -> io::Result<()> {
        let mut stream = self.tcp_stream(to, patience)?;
        stream.set_write_timeout(Some(patience))?;
        let mut line = String::new();
        let mut answers = BufReader::new(stream.try_clone()?);
        answers.read_line(&mut line)?;
        let sent = pattern(length);
        let mut received = Vec::with_capacity(length);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                stream.write_all(&sent)?;
                stream.shutdown(std::net::Shutdown::Write)
            });
            let read = answers.read_to_end(&mut received);
            // Stops the writing thread.
            if read.is_err() {
                let _ = answers.get_ref().shutdown(std::net::Shutdown::Both);
            }
            let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            read.and(sent)
        })?;
        same(&sent, &received)
    }

    /// Sends one datagram of `length` bytes to a [`Server`](super::Server) and compares the echo.
    ///
    /// # Errors
    /// Those of the socket, no answer within `patience` ([`ErrorKind::WouldBlock`]), or
    /// [`ErrorKind::InvalidData`] if the echo differs.
    pub fn echo_udp(&self, to: SocketAddr, length: usize, patience: Duration) -> io::Result<()> {
        let socket = self.udp_socket(to)?;
        socket.set_read_timeout(Some(patience))?;
        let sent = pattern(length);
        socket.send(&sent)?;
        let mut received = vec![0; length + 1];
        let count = receive(&socket, &mut received)?;
        received.truncate(count);
        same(&sent, &received)
    }
}

/// Sends a request as one datagram of a connected socket. The answer to an earlier one counts too.
pub fn ask_on(socket: &UdpSocket, patience: Duration) -> Outcome {
    let exchange = || {
        socket.set_read_timeout(Some(patience))?;
        socket.send(WHO)?;
        let mut answer = [0; 1024];
        let length = receive(socket, &mut answer)?;
        Ok(Outcome::of_line(&String::from_utf8_lossy(answer.get(..length).unwrap_or_default())))
    };
    exchange().unwrap_or_else(|error| Outcome::of_error(&error))
}

/// The kernel does not restart a receive with a timeout after a signal or a suspend, so this does.
fn receive(socket: &UdpSocket, datagram: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(datagram) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connected socket with a mark (`SO_MARK`, which takes CAP_NET_ADMIN).
fn connect_marked(mark: u32, protocol: Protocol, to: SocketAddr, patience: Duration) -> io::Result<Socket> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_mark(mark)?;
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket)
}

fn ask_tcp(patience: Duration, connect: impl FnOnce() -> io::Result<TcpStream>) -> Outcome {
    let deadline = Instant::now() + patience;
    let stream = match connect() {
        Ok(stream) => stream,
        Err(error) => return Outcome::of_error(&error),
    };
    let mut line = String::new();
    // Zero would mean no timeout.
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let read = stream.set_read_timeout(Some(left)).and_then(|()| BufReader::new(stream).read_line(&mut line));
    match read {
        Ok(0) => Outcome::Closed,
        Ok(_) => Outcome::of_line(&line),
        Err(error) => match Outcome::of_error(&error) {
            Outcome::Silent => Outcome::Stalled,
            outcome => outcome,
        },
    }
}

/// Bytes with a prime period, so that lost, duplicated or misplaced pieces are noticed.
fn pattern(length: usize) -> Vec<u8> {
    (0..251).cycle().take(length).collect()
}

fn same(sent: &[u8], received: &[u8]) -> io::Result<()> {
    if sent == received {
        return Ok(());
    }
    let first = sent.iter().zip(received).position(|(sent, received)| sent != received);
    let message = match first {
        Some(position) => format!("byte {position} is another one"),
        None => format!("sent {} bytes, received {}", sent.len(), received.len()),
    };
    Err(io::Error::new(ErrorKind::InvalidData, message))
}
