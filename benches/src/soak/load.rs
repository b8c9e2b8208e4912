//! Clients that never stop: each sends requests to one Service after the other, in its own way, and records
//! the outcomes.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use sluice_testbed::lab::{Host, WHO};

use super::ledger::{Failure, Ledger, Service};

/// How long TCP may make no progress.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a datagram's answer may take.
const ANSWER: Duration = Duration::from_secs(1);

/// The pause between two requests: some hundreds per second, and CPU time for others.
const REST: Duration = Duration::from_millis(2);

/// Number of exchanges on one connection, or in one UDP conversation.
const EXCHANGES: usize = 100;

/// The pause between two exchanges: a conversation takes a second or two, much less than an agent waits for
/// before it ends.
const PAUSE: Duration = Duration::from_millis(10);

/// Size of a bulk exchange in bytes.
const BULK: usize = 4 << 20;

/// The kind of a client's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection with one small exchange.
    Short,
    /// A TCP connection with many small exchanges.
    KeepAlive,
    /// A large exchange, compared byte for byte.
    Bulk,
    /// A datagram and its answer, from its own port.
    Question,
    /// Many datagrams from one port.
    Conversation,
}

impl Kind {
    /// All kinds, in the order of the report.
    pub const ALL: [Self; 5] = [Self::Short, Self::KeepAlive, Self::Bulk, Self::Question, Self::Conversation];

    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "TCP connection with an exchange",
            Self::KeepAlive => "TCP exchange on an open connection",
            Self::Bulk => "4 MiB there and back",
            Self::Question => "UDP question",
            Self::Conversation => "UDP exchange in a conversation",
        }
    }

    /// Whether it uses UDP.
    pub fn is_udp(self) -> bool {
        matches!(self, Self::Question | Self::Conversation)
    }
}

/// A running client.
#[derive(Debug)]
pub(super) struct Load {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts a client on a host, which uses these Services in turn.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(
        from: &Host,
        kind: Kind,
        targets: Vec<(Service, SocketAddr)>,
        ledger: &Arc<Ledger>,
    ) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let client =
            Client { host: from.clone(), kind, ledger: Arc::clone(ledger), is_over: Arc::clone(&is_over) };
        let run = move || {
            let namespace = client.host.ns.clone();
            namespace.run(|| client.ask(&targets));
        };
        let thread = std::thread::Builder::new().name("client".into()).spawn(run).context("a thread")?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it has panicked, that was printed.
            let _ = thread.join();
        }
    }
}

struct Client {
    host: Host,
    kind: Kind,
    ledger: Arc<Ledger>,
    is_over: Arc<AtomicBool>,
}

impl Client {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn ask(&self, targets: &[(Service, SocketAddr)]) {
        for (service, to) in targets.iter().cycle() {
            if self.is_over() {
                return;
            }
            let mut well = Instant::now();
            let outcome = match self.kind {
                Kind::Short => self.short(*to),
                Kind::KeepAlive => self.keep_alive(*to, &mut well),
                Kind::Bulk => self.host.echo_tcp(*to, BULK, PATIENCE).map(|()| self.ledger.done(self.kind)),
                Kind::Question => self.question(*to),
                Kind::Conversation => self.conversation(*service, *to, &mut well),
            };
            if let Err(error) = outcome {
                self.failed(*service, well, &error);
            }
            std::thread::sleep(REST);
        }
    }

    fn failed(&self, service: Service, begin: Instant, error: &io::Error) {
        let what = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer".into(),
            kind => format!("{kind:?} ({error})"),
        };
        let (kind, end) = (self.kind, Instant::now());
        self.ledger.failed(Failure {
            kind,
            service,
            begin,
            end,
            is_ended: is_ended(error),
            what: format!("{what}, from {}", self.host.name),
        });
    }

    fn short(&self, to: SocketAddr) -> io::Result<()> {
        exchange(&mut connect(to)?, 0)?;
        self.ledger.done(self.kind);
        Ok(())
    }

    fn keep_alive(&self, to: SocketAddr, well: &mut Instant) -> io::Result<()> {
        let mut stream = connect(to)?;
        for number in 0..EXCHANGES {
            exchange(&mut stream, number)?;
            *well = Instant::now();
            self.ledger.done(self.kind);
            if self.is_over() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn question(&self, to: SocketAddr) -> io::Result<()> {
        let socket = socket(to)?;
        socket.send(WHO)?;
        receive(&socket, |answer| answer.ends_with(b"\n"))?;
        self.ledger.done(self.kind);
        Ok(())
    }

    /// A single missing answer does not end it.
    fn conversation(&self, service: Service, to: SocketAddr, well: &mut Instant) -> io::Result<()> {
        let socket = socket(to)?;
        for number in 0..EXCHANGES {
            let said = format!("datagram {number}");
            let begin = Instant::now();
            let heard =
                socket.send(said.as_bytes()).and_then(|_| receive(&socket, |heard| heard == said.as_bytes()));
            match heard {
                Ok(()) => {
                    *well = Instant::now();
                    self.ledger.done(self.kind);
                }
                // Sent, but lost.
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.failed(service, begin, &error),
                // Its endpoint does not serve any more, so a new socket is needed.
                Err(error) if is_ended(&error) => return Err(error),
                // An ICMP error may be about an earlier datagram.
                Err(error) => self.failed(service, *well, &error),
            }
            if self.is_over() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Whether a UDP socket was destroyed because its endpoint does not serve any more. Noticed by receiving or
/// by sending.
fn is_ended(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::CONNABORTED | Errno::DESTADDRREQ))
}

fn connect(to: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(256, stream);
    // The server's line.
    hear(&mut stream)?;
    Ok(stream)
}

fn hear(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

fn exchange(stream: &mut BufReader<TcpStream>, number: usize) -> io::Result<()> {
    let said = format!("line {number}\n");
    stream.get_mut().write_all(said.as_bytes())?;
    if hear(stream)? == said { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Waits for an answer; ignores late ones to earlier requests.
fn receive(socket: &UdpSocket, is_it: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + ANSWER;
    let mut answer = [0; 256];
    while Instant::now() < deadline {
        match socket.recv(&mut answer) {
            Ok(length) if answer.get(..length).is_some_and(&is_it) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::WouldBlock.into())
}
