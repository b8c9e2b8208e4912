//! A worker without a thread. The test runs its turns, so nothing happens in between.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;

use sluice_sys::tcp::unacknowledged_bytes;
use sluice_table::{Writer, WriterConfig};
use socket2::SockRef;

use super::*;
use crate::contact::Contact;
use crate::tcp::relaying::TURN_BUDGET;
use crate::{tcp, test_table, udp};

const BULK: usize = 100;

/// How much each bulk endpoint sends: several turns' worth. The kernel doubles it for its own overhead.
const TO_SEND: usize = 4 * TURN_BUDGET;

/// How often to retry steps that depend on the kernel's progress.
pub(super) const PATIENCE: usize = 10_000;

pub(super) const ANY: &str = "127.0.0.1:0";

pub(super) struct World {
    pub(super) worker: Worker,
    events: Events,
    writer: Writer,
    pub(super) commands: Sender<Command>,
}

fn worker(
    writer: &Writer,
    pipes: usize,
    others: Others,
    poll: Poll,
    stats: Arc<WorkerStats>,
    commands: Receiver<Command>,
) -> Worker {
    let config = Config {
        workers: 1,
        descriptors: 4_096,
        client_share: 100,
        udp_idle: Config::UDP_IDLE,
        half_closed_idle: Config::HALF_CLOSED_IDLE,
        connection_log: None,
        service_times: true,
        marks: None,
    };
    let descriptors = Descriptors::new(config.descriptors);
    let shared = Shared {
        reader: writer.table().reader(),
        stats,
        pipes: descriptors.part(2 * pipes, 0),
        descriptors,
        local_ports: LocalPorts::of_this_node(),
        log: None,
        recall: Arc::default(),
        others,
    };
    Worker::new(&config, poll, shared, commands).unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_pipes(1_000)
    }

    /// A world whose worker may hold this many pipes.
    pub(super) fn with_pipes(pipes: usize) -> Self {
        Self::with(pipes, Others::default())
    }

    /// A world whose worker has these other workers.
    pub(super) fn beside(others: Others) -> Self {
        Self::with(1_000, others)
    }

    fn with(pipes: usize, others: Others) -> Self {
        let writer = Writer::new(WriterConfig::new("here"));
        let (commands, receiver) = mpsc::channel();
        let worker = worker(&writer, pipes, others, Poll::new().unwrap(), Arc::default(), receiver);
        Self { worker, events: Events::with_capacity(EVENTS), writer, commands }
    }

    /// Another worker with the same table, reachable through this contact.
    pub(super) fn another(&self, poll: Poll, contact: &Contact, commands: Receiver<Command>) -> Worker {
        worker(
            &self.writer,
            1_000,
            Others::of(0, std::slice::from_ref(contact)),
            poll,
            Arc::clone(&contact.stats),
            commands,
        )
    }

    pub(super) fn turn(&mut self) {
        assert!(self.worker.turn(&mut self.events).is_continue());
    }

    /// Like [`Self::turn`], if there may be no event to wait for.
    pub(super) fn turn_at_once(&mut self) {
        self.worker.has_commands = true;
        self.turn();
    }

    /// Adds a TCP Service with this endpoint. Returns its address.
    pub(super) fn serve_tcp(&mut self, name: &str, endpoint: SocketAddr) -> SocketAddr {
        let socket = tcp::socket::listen(ANY.parse().unwrap(), None).unwrap();
        self.serve_tcp_by(socket, name, &[endpoint])
    }

    pub(super) fn serve_tcp_by(
        &mut self,
        socket: TcpListener,
        name: &str,
        endpoints: &[SocketAddr],
    ) -> SocketAddr {
        let frontend = socket.local_addr().unwrap();
        test_table::add_service(&mut self.writer, name, frontend, Protocol::Tcp, endpoints);
        self.worker.tcp.listen(socket, ListenerKind::Bound, &mut self.worker.core).unwrap();
        frontend
    }

    /// Adds a UDP Service with this endpoint. Returns its address.
    pub(super) fn serve_udp(&mut self, name: &str, endpoint: SocketAddr) -> SocketAddr {
        let socket = udp::socket::listen(ANY.parse().unwrap(), None).unwrap();
        let frontend = socket.local_addr().unwrap();
        test_table::add_service(&mut self.writer, name, frontend, Protocol::Udp, &[endpoint]);
        self.worker.udp.listen(socket, ListenerKind::Bound, &mut self.worker.core).unwrap();
        frontend
    }

    /// Connects a client. Returns its socket, and the one that the endpoint has accepted.
    pub(super) fn connect(&mut self, frontend: SocketAddr, endpoint: &TcpListener) -> [TcpStream; 2] {
        endpoint.set_nonblocking(true).unwrap();
        let client = TcpStream::connect(frontend).unwrap();
        // The client has sent nothing yet, but the endpoint must get a connection nevertheless.
        self.turn();
        let accepted = (0..PATIENCE).find_map(|_| {
            std::thread::yield_now();
            endpoint.accept().ok()
        });
        let (accepted, _) = accepted.expect("the connection is carried on within one turn");
        [client, accepted].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream
        })
    }

    /// Opens sessions that wait in line all the time, because each endpoint has sent as much as its socket
    /// takes.
    pub(super) fn bulk(&mut self) -> Vec<[TcpStream; 2]> {
        let endpoint = TcpListener::bind(ANY).unwrap();
        let frontend = self.serve_tcp("bulk", endpoint.local_addr().unwrap());
        let mut sessions: Vec<[TcpStream; 2]> =
            (0..BULK).map(|_| self.connect(frontend, &endpoint)).collect();
        for [_, endpoint] in &mut sessions {
            SockRef::from(&*endpoint).set_send_buffer_size(TO_SEND).unwrap();
            while endpoint.write(&[0; 65_536]).is_ok() {}
        }
        // Each session is recognized as bulk, and waits in line from then on.
        self.turn();
        sessions
    }

    /// Turns the loop until `is_there`. Returns the number of turns, and the bytes that TCP sessions moved
    /// meanwhile.
    pub(super) fn turns_until(&mut self, mut is_there: impl FnMut() -> bool) -> (usize, u64) {
        let before = self.moved();
        for turns in 1..=PATIENCE {
            assert!(self.worker.tcp.has_ready(), "bulk waits for its turn all the time");
            self.turn();
            if is_there() {
                return (turns, self.moved() - before);
            }
        }
        panic!("it never came");
    }

    /// The bytes that TCP sessions have moved.
    pub(super) fn moved(&self) -> u64 {
        let stats = self.stats();
        stats.bytes_spliced + stats.bytes_copied
    }

    pub(super) fn stats(&self) -> crate::Stats {
        crate::Stats::sum([&*self.worker.core.stats])
    }
}

/// Waits until sent bytes have arrived at the other socket and can be read.
pub(super) fn await_delivery(socket: impl AsFd) {
    let is_delivered = || unacknowledged_bytes(socket.as_fd()).unwrap() == 0;
    let arrived = (0..PATIENCE * 100).any(|_| {
        std::thread::yield_now();
        is_delivered()
    });
    assert!(arrived, "what was sent arrives");
}
