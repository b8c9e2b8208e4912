//! The data plane: carries TCP connections and UDP flows from frontends to endpoints.
//!
//! There are N worker threads with one event loop each (mio, edge-triggered epoll). A session stays on the
//! worker that accepted it, or to which that worker handed it right after accept. Workers share only the
//! table (lock-free), their counters (atomics, summed when read) and the budget of file descriptors. Each
//! worker has a command queue with a waker.
//!
//! This crate knows the table, but neither Kubernetes nor an async runtime nor serialisation.

mod client;
mod connection;
mod connection_log;
mod contact;
mod core;
mod descriptors;
mod drops;
mod failure;
mod load;
mod local_ports;
mod stats;
mod tcp;
#[cfg(test)]
mod test_core;
#[cfg(test)]
mod test_table;
mod throttle;
mod timers;
mod token;
mod transparent;
mod udp;
mod worker;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Poll, Waker};
use sluice_model::{Frontend, Protocol};
use sluice_table::{Origin, Table};

pub use connection::{Connection, ConnectionState, FlowEnds, Part, Place};
pub use descriptors::{Listeners, Permit, raise_descriptor_limit};
pub use load::WorkerLoad;
pub use local_ports::EPHEMERAL_PORTS;
pub use stats::{AllTimes, Counted, Kind, Stats};
pub use throttle::Throttle;
pub use transparent::Marks;

use client::ListenerKind;
use connection::Look;
use connection_log::LogThread;
use contact::{Contact, Others};
use descriptors::Descriptors;
use local_ports::LocalPorts;
use token::Source;
use udp::recall::Recall;
use worker::{Command, Shared, Worker};

/// Configuration of the data plane.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Number of worker threads; at least one.
    pub workers: usize,
    /// File descriptors that all workers together may hold, see [`raise_descriptor_limit`].
    pub descriptors: usize,
    /// The share of one client, in percent. A client is an address, or a /64 network if it is an IPv6 client
    /// outside this node. Its TCP sessions may be this share of its own and the free ones together; more are
    /// refused. UDP flows, and the ephemeral ports of flows, are not refused: if there are no more, flows of
    /// a client above its share are ended first.
    pub client_share: u8,
    /// How long a UDP flow may be silent in both directions before it ends. Four times as long applies to a
    /// flow that was answered and has lasted for two seconds.
    pub udp_idle: Duration,
    /// How long a half-closed TCP session may be idle before it is closed.
    pub half_closed_idle: Duration,
    /// The marks of sockets if packets are captured (see [`Dataplane::open_captured`]); endpoints may then
    /// see clients' own addresses. Needs CAP_NET_ADMIN.
    pub marks: Option<Marks>,
    /// One in this many connections and flows is logged when it ends; `None` logs none of them.
    pub connection_log: Option<NonZeroU32>,
    /// Whether times and datagrams are counted for each Service port too, and not only in total.
    pub service_times: bool,
}

impl Config {
    /// Generous, because many users may share one address. But no client can take everything from the others.
    pub const CLIENT_SHARE: u8 = 75;

    /// The kernel's `nf_conntrack_udp_timeout`, which UDP applications are used to.
    pub const UDP_IDLE: Duration = Duration::from_secs(30);

    /// The value that kube-proxy sets `nf_conntrack_tcp_timeout_close_wait` to, for the same reason: clients
    /// that close their side early and wait for a long answer.
    pub const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3_600);

    /// How long a UDP flow that was answered and has lasted for two seconds may be silent.
    pub fn udp_conversation_idle(&self) -> Duration {
        self.udp_idle.saturating_mul(udp::STREAM_FACTOR)
    }
}

/// The running workers. Dropping it stops them.
#[derive(Debug)]
pub struct Dataplane {
    workers: Vec<WorkerHandle>,
    log: Option<LogThread>,
    marks: Option<Marks>,
    listeners: Listeners,
    recall: Arc<Recall>,
    /// How long [`Dataplane::recall`] remembers flows while one agent takes over from another.
    conversation_idle: Duration,
    /// Open frontends, with the file descriptors that each has taken.
    frontends: Mutex<HashMap<Frontend, Permit>>,
}

#[derive(Debug)]
struct WorkerHandle {
    contact: Contact,
    /// The kernel's id of the thread, once it runs.
    id: Arc<OnceLock<i32>>,
    thread: Option<JoinHandle<()>>,
}

impl Dataplane {
    /// Starts the workers.
    ///
    /// # Errors
    /// The system refuses a thread or an epoll instance.
    pub fn start(config: Config, table: &Table) -> io::Result<Self> {
        let descriptors = Descriptors::new(config.descriptors);
        let (pipes, local_ports) = (tcp::pipe::budget(&descriptors), LocalPorts::of_this_node());
        let log = config.connection_log.map(connection_log::start).transpose()?;
        let (log, thread) = log.unzip();
        let recall = Arc::<Recall>::default();
        let seats = (0..config.workers.max(1)).map(|_| {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), Source::Waker.token())?;
            Ok((poll, Contact::new(waker)))
        });
        let (polls, contacts): (Vec<_>, Vec<_>) = seats.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        let (contacts, receivers): (Vec<_>, Vec<_>) = contacts.into_iter().unzip();
        let seats = polls.into_iter().zip(receivers).enumerate();
        let workers = seats.map(|(number, (poll, commands))| {
            let contact = contacts.get(number).cloned().ok_or(io::ErrorKind::Other)?;
            let shared = Shared {
                reader: table.reader(),
                stats: Arc::clone(&contact.stats),
                descriptors: Arc::clone(&descriptors),
                pipes: Arc::clone(&pipes),
                local_ports: local_ports.clone(),
                log: log.clone(),
                recall: Arc::clone(&recall),
                others: Others::of(number, &contacts),
            };
            let worker = Worker::new(&config, poll, shared, commands)?;
            let id = Arc::<OnceLock<i32>>::default();
            let own = Arc::clone(&id);
            let run = move || {
                own.get_or_init(|| rustix::thread::gettid().as_raw_nonzero().get());
                worker.run();
            };
            let thread = std::thread::Builder::new().name(format!("sluice-{number}")).spawn(run)?;
            Ok(WorkerHandle { contact, id, thread: Some(thread) })
        });
        let workers = workers.collect::<io::Result<_>>()?;
        let listeners = Listeners::of(&descriptors);
        Ok(Self {
            workers,
            log: thread,
            marks: config.marks,
            listeners,
            recall,
            conversation_idle: config.udp_conversation_idle(),
            frontends: Mutex::default(),
        })
    }

    /// The budget of file descriptors for listening sockets other than the workers' own.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Number of workers. A frontend needs a socket for each of them.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Starts to serve a frontend on its own address, with one socket for each worker. The kernel spreads
    /// connections over the sockets.
    ///
    /// # Errors
    /// The address is in use, privileged, or not local to this machine, or the frontends' share of the file
    /// descriptors is used up. Nothing is left open.
    pub fn open(&self, frontend: Frontend) -> io::Result<()> {
        let permit = self.listeners.take(self.workers.len())?;
        match frontend.protocol {
            Protocol::Tcp => self.hand_out(
                || tcp::socket::listen(frontend.address, None),
                |socket| Command::ListenTcp(socket, ListenerKind::Bound),
            ),
            Protocol::Udp => self.hand_out(
                || udp::socket::listen(frontend.address, None),
                |socket| Command::ListenUdp(socket, ListenerKind::Bound),
            ),
        }?;
        self.permits().insert(frontend, permit);
        Ok(())
    }

    fn permits(&self) -> MutexGuard<'_, HashMap<Frontend, Permit>> {
        self.frontends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to serve the TCP and UDP packets to any frontend that TPROXY delivers to `address` from clients
    /// of this origin. Opens two sockets for each worker. [`Config::marks`] must be set.
    ///
    /// # Errors
    /// The address is in use by another program, CAP_NET_ADMIN is missing, or there are no marks. Nothing is
    /// left open.
    pub fn open_captured(&self, address: SocketAddr, origin: Origin) -> io::Result<()> {
        let Some(marks) = self.marks else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no marks are configured"));
        };
        let kind = ListenerKind::Captured(origin);
        let open = || {
            let tcp = tcp::socket::listen(address, Some(marks))?;
            Ok((tcp, udp::socket::listen(address, Some(marks))?))
        };
        let sockets = self.workers.iter().map(|_| open()).collect::<io::Result<Vec<_>>>()?;
        for (worker, (tcp, udp)) in self.workers.iter().zip(sockets) {
            worker.tell(Command::ListenTcp(tcp, kind));
            worker.tell(Command::ListenUdp(udp, kind));
        }
        Ok(())
    }

    /// Opens a socket for each worker, and hands them out only if all of them could be opened.
    fn hand_out<S>(
        &self,
        open: impl Fn() -> io::Result<S>,
        command: impl Fn(S) -> Command,
    ) -> io::Result<()> {
        let sockets = self.workers.iter().map(|_| open()).collect::<io::Result<Vec<_>>>()?;
        for (worker, socket) in self.workers.iter().zip(sockets) {
            worker.tell(command(socket));
        }
        Ok(())
    }

    /// Stops serving a frontend. Returns once no worker serves it. TCP connections that were established
    /// before are accepted.
    pub fn close(&self, frontend: Frontend) {
        if frontend.protocol == Protocol::Tcp {
            self.ask(|done| Command::Refuse(Some(frontend.address), done));
        }
        self.ask(|done| Command::Close(frontend, done));
        self.settle();
        self.permits().remove(&frontend);
    }

    /// Stops accepting on all sockets, because another process accepts on the same addresses; returns once
    /// every worker has stopped. Connections and datagrams already queued are accepted first, and established
    /// sessions and flows continue. [`Dataplane::open_captured`] starts accepting again.
    pub fn stop_accepting(&self) {
        self.ask(Command::StopAccepting);
        self.settle();
    }

    /// Returns once every worker has taken the connections that other workers have handed to it so far.
    fn settle(&self) {
        self.ask(Command::Answer);
    }

    /// Ends UDP flows whose frontend or endpoint is gone and closes their sockets; returns when that is done.
    /// The flows would end by themselves within a second. But as long as a socket has an address of this
    /// machine, the kernel does not reject packets that are sent there.
    pub fn end_flows(&self) {
        self.end_flows_from([]);
    }

    /// Ends the same UDP flows as [`Dataplane::end_flows`], and flows whose endpoint sees one of the
    /// addresses `gone`. This node has lost these addresses, so no answer would arrive. Returns when the
    /// flows have ended. The client's next datagram opens a new flow with an existing address.
    pub fn end_flows_from(&self, gone: impl Into<Arc<[IpAddr]>>) {
        let gone = gone.into();
        self.ask(|done| Command::EndFlows(Arc::clone(&gone), done));
    }

    /// Keeps UDP flows on their endpoints when their datagrams arrive at another worker, or arrive here from
    /// another agent: the given `flows`, and those that are opened here meanwhile, which take precedence.
    /// They are remembered for as long as a flow may be silent. Call [`Dataplane::end_recall_if_due`] from
    /// time to time.
    pub fn recall(&self, flows: impl IntoIterator<Item = FlowEnds>) {
        self.recall.begin(flows, Instant::now() + self.conversation_idle);
    }

    /// Drops the memory of [`Dataplane::recall`] once none of its flows can still be alive.
    pub fn end_recall_if_due(&self) {
        self.recall.end_if_due(Instant::now());
    }

    /// The current sum of all counters over all workers.
    pub fn stats(&self) -> Stats {
        Stats::sum(self.workers.iter().map(|worker| &*worker.contact.stats))
    }

    /// The histograms of durations so far, over all workers.
    pub fn times(&self) -> AllTimes {
        AllTimes::sum(self.workers.iter().map(|worker| &*worker.contact.stats))
    }

    /// Asks one worker for the connections at `place`, a part at a time, between its events. A walk over all
    /// of them begins at the default place and goes on at the place that each part returns. A connection that
    /// is open during the whole walk appears exactly once. If the worker does not exist or has ended,
    /// `answer` is dropped without a call. `answer` runs on the worker and must not block.
    pub fn look(&self, worker: usize, place: Place, answer: impl FnOnce(Part) + Send + 'static) {
        if let Some(worker) = self.workers.get(worker) {
            worker.tell(Command::Look(Look { place, answer: Box::new(answer) }));
        }
    }

    /// The current load of each worker.
    pub fn loads(&self) -> Vec<WorkerLoad> {
        let load = |worker: &WorkerHandle| {
            let stats = Stats::sum([&*worker.contact.stats]);
            WorkerLoad {
                cpu: worker.id.get().map(|id| load::cpu_time(*id)).unwrap_or_default(),
                tcp_sessions: stats.tcp_active,
                udp_flows: stats.udp_flows_active,
            }
        };
        self.workers.iter().map(load).collect()
    }

    /// Whether every worker thread still runs. A worker that has ended has lost its share of all connections.
    pub fn is_alive(&self) -> bool {
        !self.workers.iter().any(WorkerHandle::is_finished)
    }

    /// Stops accepting and waits up to `grace` for sessions to finish; then the workers end. Returns how many
    /// TCP sessions were cut off.
    pub fn drain(&self, grace: Duration) -> u64 {
        let deadline = Instant::now() + grace;
        self.ask(|done| Command::Refuse(None, done));
        self.tell_all(|| Command::Drain);
        while Instant::now() < deadline && !self.workers.iter().all(WorkerHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = self.stats().tcp_active;
        self.tell_all(|| Command::Stop);
        left
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.workers.iter().for_each(|worker| worker.tell(command()));
    }

    /// Sends every worker a command that it answers, and waits for the answers.
    fn ask(&self, command: impl Fn(Sender<()>) -> Command) {
        let (done, answers) = mpsc::channel();
        self.tell_all(|| command(done.clone()));
        drop(done);
        // Ends when every worker has answered, or is gone and its sender with it.
        while answers.recv().is_ok() {}
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.tell_all(|| Command::Stop);
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a worker panicked");
            }
        }
        self.log.take().into_iter().for_each(LogThread::finish);
    }
}

impl WorkerHandle {
    fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn tell(&self, command: Command) {
        self.contact.tell(command);
    }
}

#[cfg(test)]
mod tests {
    use sluice_table::{Writer, WriterConfig};

    use super::*;

    #[test]
    fn frontends_leave_half_of_the_descriptors_to_connections() {
        let writer = Writer::new(WriterConfig::new("node"));
        let config = Config {
            client_share: Config::CLIENT_SHARE,
            workers: 2,
            descriptors: 16,
            udp_idle: Config::UDP_IDLE,
            half_closed_idle: Config::HALF_CLOSED_IDLE,
            marks: None,
            connection_log: None,
            service_times: false,
        };
        let dataplane = Dataplane::start(config, writer.table()).unwrap();
        let frontend = |number| {
            let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let protocol = if number % 2 == 0 { Protocol::Tcp } else { Protocol::Udp };
            Frontend::new([127, 0, 0, 1].into(), holder.local_addr().unwrap().port(), protocol)
        };
        let frontends: Vec<Frontend> = (0..4).map(frontend).collect();
        for frontend in &frontends {
            dataplane.open(*frontend).unwrap();
        }
        let full = dataplane.open(frontend(5)).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));
        dataplane.close(frontends[0]);
        dataplane.open(frontend(5)).unwrap();
    }
}
