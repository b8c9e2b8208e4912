//! A side that sends its FIN and is gone after that, while the other one reads slowly: everything that it sent arrives.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_model::Protocol;
use sluice_sys::tcp::unacknowledged_bytes;
use sluice_table::Upstream;
use sluice_tests::{PATIENCE, World, loopback_address, wait};
use socket2::{Domain, SockRef, Socket, Type};

use super::client::reset;

/// How long nothing is read after the first side is gone: more than the second that follows a reset.
const PAUSE: Duration = Duration::from_millis(2_500);

/// How long a socket that is full is waited for.
const FULL: Duration = Duration::from_millis(500);

/// How long nothing is passed on before it counts as waiting.
const STILL: Duration = Duration::from_millis(50);

/// How the side ends that ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// It sends its FIN, and reads on.
    Fin,
    /// It sends its FIN, and a moment later it is reset.
    FinThenReset,
    /// The same at once.
    FinAndReset,
    /// It is reset without having sent a FIN.
    Reset,
}

/// What the side that ends first has sent. The other one reads nothing of it in the meantime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// So much that the proxy's socket and the other side's kernel take it.
    PassedOn,
    /// Some of it waits for the proxy to read it.
    Waiting,
}

/// What one write has.
const PIECE: usize = 16 << 10;
/// What is passed on at once.
const PASSED_ON: usize = 12 * PIECE;
/// More than the sockets on the way take.
const MOST: usize = 64 << 20;
/// The same, of what the other side writes and the first one does not read.
const OWED: usize = 4 << 20;
/// What the socket of a slow reader takes.
const LITTLE: usize = PIECE;

/// A session, one side of which is to end first.
#[derive(Debug)]
struct Case {
    name: String,
    ends: Ends,
    client_ends: bool,
    owes: bool,
    sent: usize,
    first: Option<TcpStream>,
    other: TcpStream,
    upstream: Arc<Upstream>,
}

impl Case {
    fn new(world: &mut World, ends: Ends, client_ends: bool, sent: Sent, owes: bool) -> Self {
        let name = format!("{ends:?}-{client_ends}-{sent:?}-{owes}").to_lowercase();
        let buffers = if client_ends { [1 << 20, LITTLE] } else { [LITTLE, 1 << 20] };
        let listener = TcpListener::bind((loopback_address(), 0)).unwrap();
        SockRef::from(&listener).set_recv_buffer_size(buffers[1]).unwrap();
        let address = listener.local_addr().unwrap();
        let frontend = world.add_service(&name, &[address]);
        let endpoints = world.proxy.observer().endpoints();
        let (_, upstream) = endpoints.into_iter().find(|(_, of)| of.address() == address).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(buffers[0]).unwrap();
        client.connect(&frontend.into()).unwrap();
        let (client, endpoint) = (TcpStream::from(client), listener.accept().unwrap().0);
        let (first, other) = if client_ends { (client, endpoint) } else { (endpoint, client) };
        let mut case = Self { name, ends, client_ends, owes, sent: 0, first: Some(first), other, upstream };
        case.send(sent);
        case
    }

    fn send(&mut self, sent: Sent) {
        let piece = [7; PIECE];
        let mut first = self.first.as_ref().unwrap();
        let mut other = &self.other;
        [first, other].iter().for_each(|stream| stream.set_read_timeout(Some(PATIENCE)).unwrap());
        other.set_write_timeout(Some(FULL)).unwrap();
        if self.owes {
            let _ = (0..OWED / PIECE).try_for_each(|_| other.write_all(&piece));
        }
        let goes_on = |so_far| match sent {
            Sent::Nothing => false,
            Sent::PassedOn => so_far < PASSED_ON,
            Sent::Waiting => !self.waits(so_far),
        };
        let mut so_far = 0;
        while goes_on(so_far) {
            assert!(so_far < MOST, "{}: nothing waits", self.name);
            first.write_all(&piece).unwrap();
            so_far += PIECE;
            // A reset would take away what its own kernel still has.
            wait::until(&self.name, || unacknowledged_bytes(first.as_fd()).unwrap() == 0);
        }
        self.sent = so_far;
    }

    /// Whether the proxy leaves unread what was sent last.
    fn waits(&self, sent: usize) -> bool {
        let stats = self.upstream.stats();
        let passed_on = if self.client_ends { &stats.bytes_to_endpoint } else { &stats.bytes_from_endpoint };
        let still = Instant::now() + STILL;
        loop {
            if passed_on.load(Ordering::Relaxed) + PIECE as u64 > sent as u64 {
                return false;
            }
            if Instant::now() >= still {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(&mut self) {
        let first = self.first.take().unwrap();
        if self.ends != Ends::Reset {
            first.shutdown(Shutdown::Write).unwrap();
        }
        match self.ends {
            Ends::Fin => self.first = Some(first),
            Ends::FinThenReset => {
                std::thread::sleep(Duration::from_millis(20));
                reset(first);
            }
            Ends::FinAndReset | Ends::Reset => reset(first),
        }
    }

    /// Reads slowly; returns how much there was, and how it ended.
    fn receive(&self) -> (usize, io::Result<()>) {
        let (mut other, mut chunk, mut total) = (&self.other, vec![0; 64 << 10], 0);
        let began = Instant::now();
        loop {
            // Half a second for each mebibyte.
            let due = Duration::from_millis(total as u64 / (2 << 10));
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            match other.read(&mut chunk) {
                Ok(0) => return (total, Ok(())),
                Ok(read) => total += read,
                Err(error) => return (total, Err(error)),
            }
        }
    }

    fn check(&mut self) {
        let (total, end) = self.receive();
        let end = end.map_err(|error| error.kind());
        if self.ends == Ends::Reset {
            assert!(total <= self.sent && end.is_err(), "{}: {total}, {end:?}", self.name);
            return;
        }
        assert_eq!((total, end), (self.sent, Ok(())), "{}", self.name);
        if let Some(mut first) = self.first.take() {
            // And the other way, to its end.
            self.other.shutdown(Shutdown::Write).unwrap();
            let arrived = io::copy(&mut first, &mut io::sink()).unwrap();
            assert_eq!(arrived > 0, self.owes, "{}: {arrived}", self.name);
        }
    }
}

#[test]
fn what_was_sent_before_a_fin_arrives_whatever_becomes_of_the_sender() {
    let mut world = World::new(Protocol::Tcp, &[]);
    let mut cases = Vec::new();
    for ends in [Ends::Fin, Ends::FinThenReset, Ends::FinAndReset, Ends::Reset] {
        for client_ends in [false, true] {
            for sent in [Sent::Nothing, Sent::PassedOn, Sent::Waiting] {
                for owes in [false, true] {
                    cases.push(Case::new(&mut world, ends, client_ends, sent, owes));
                }
            }
        }
    }
    cases.iter_mut().for_each(Case::end);
    std::thread::sleep(PAUSE);
    std::thread::scope(|scope| {
        for case in &mut cases {
            scope.spawn(|| case.check());
        }
    });
    drop(cases);
    wait::until("no session is left, and no deadline", || {
        let stats = world.proxy.stats();
        (stats.tcp_active, stats.deadlines) == (0, 0)
    });
    assert_eq!(world.proxy.stats().tcp_half_closed_timeouts, 0);
}
