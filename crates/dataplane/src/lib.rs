//! The data plane: carries TCP connections and UDP flows from frontends to endpoints.
//!
//! N worker threads, one event loop each (mio, edge-triggered epoll). A session lives on the worker
//! that accepted it, or that this one has handed it to at once; workers share nothing but the table (lock-free), their
//! counters (atomics, summed when read) and the budget of file descriptors. Each has a queue of commands with a waker.
//!
//! Knows the table; knows no Kubernetes, no async runtime, no serialisation.

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

/// How the data plane is to run.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Worker threads; at least one.
    pub workers: usize,
    /// File descriptors that all workers together may hold, see [`raise_descriptor_limit`].
    pub descriptors: usize,
    /// The share of a client, in a hundred: of an address, or of an IPv6 network of 64 bits outside this node. Of TCP
    /// sessions it may have as many as leave the rest free; of UDP flows, and of the ephemeral ports that those have,
    /// as many before its own make room first.
    pub client_share: u8,
    /// How long a UDP flow may be silent, both ways, before it ends; four times as long once it was answered and has
    /// lasted for two seconds.
    pub udp_idle: Duration,
    /// How long a TCP session of which one side has closed may stand still before it is cut off.
    pub half_closed_idle: Duration,
    /// The marks of sockets, where a capture hands over packets (see [`Dataplane::open_captured`]);
    /// endpoints may then see clients' own addresses. Needs CAP_NET_ADMIN.
    pub marks: Option<Marks>,
    /// One connection or flow in so many is told of in the log when it ends; none of them otherwise.
    pub connection_log: Option<NonZeroU32>,
    /// Whether times and datagrams are counted for each service port, besides for all together.
    pub service_times: bool,
}

impl Config {
    /// Generous, since many may be behind one address; but none can take everything from the others.
    pub const CLIENT_SHARE: u8 = 75;

    /// The kernel's `nf_conntrack_udp_timeout`, which UDP applications are used to.
    pub const UDP_IDLE: Duration = Duration::from_secs(30);

    /// What kube-proxy sets the kernel's `nf_conntrack_tcp_timeout_close_wait` to, for the same reason:
    /// clients that close their side early and wait for a long answer.
    pub const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3_600);

    /// How long a UDP flow may be silent that was answered and has lasted for two seconds.
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
    /// How long flows are remembered while agents take over from each other.
    conversation_idle: Duration,
    /// What they have taken.
    frontends: Mutex<HashMap<Frontend, Permit>>,
}

#[derive(Debug)]
struct WorkerHandle {
    contact: Contact,
    /// The kernel's number of the thread, once it runs.
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

    /// What others than workers may take of the file descriptors, for sockets that listen.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// How many workers there are: a frontend needs a socket for each.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Starts to serve a frontend on its own address, with a socket for each worker. The kernel
    /// spreads connections over them.
    ///
    /// # Errors
    /// The address is taken, privileged, or not one of this machine's; frontends have their share of the file
    /// descriptors. Nothing is left behind.
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

    /// Starts to serve what TPROXY hands over at `address`, TCP and UDP, to any frontend, from clients
    /// of this origin; with two sockets for each worker. [`Config::marks`] must be set.
    ///
    /// # Errors
    /// The address is taken by another program, CAP_NET_ADMIN is missing, or there are no marks. Nothing
    /// is left behind.
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

    /// Opens a socket for each worker, and hands them out if all could be opened.
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

    /// Stops serving a frontend; returns when no worker does any more. TCP connections that have been made until then
    /// are accepted.
    pub fn close(&self, frontend: Frontend) {
        if frontend.protocol == Protocol::Tcp {
            self.ask(|done| Command::Refuse(Some(frontend.address), done));
        }
        self.ask(|done| Command::Close(frontend, done));
        self.settle();
        self.permits().remove(&frontend);
    }

    /// Takes nothing new by any socket, as another process does, which has sockets at the same addresses; returns when no
    /// worker does any more. What has come until then is taken, and goes on. [`Dataplane::open_captured`] opens anew.
    pub fn stop_accepting(&self) {
        self.ask(Command::StopAccepting);
        self.settle();
    }

    /// Returns when every worker has what others have handed to it until now.
    fn settle(&self) {
        self.ask(Command::Answer);
    }

    /// Ends UDP flows whose frontend or endpoint is gone, with their sockets; returns when they are. They would
    /// end by themselves within a second, but a socket with an address of this machine keeps the kernel from
    /// refusing what is sent there.
    pub fn end_flows(&self) {
        self.end_flows_from([]);
    }

    /// Ends UDP flows whose frontend or endpoint is gone, as [`Dataplane::end_flows`] does, and those whose endpoint sees one
    /// of these addresses, which this node does not have any more: no answer would come back. Returns when they are ended.
    /// What the client sends next opens a flow with an address that there is.
    pub fn end_flows_from(&self, gone: impl Into<Arc<[IpAddr]>>) {
        let gone = gone.into();
        self.ask(|done| Command::EndFlows(Arc::clone(&gone), done));
    }

    /// Has UDP flows go on to the endpoints that they have when their datagrams come to another worker, or come here from
    /// another agent: those that are open here or, of another agent, are given. For as long as a flow may be silent; call
    /// [`Dataplane::end_recall_if_due`] now and then. What this agent has opened itself counts for more.
    pub fn recall(&self, flows: impl IntoIterator<Item = FlowEnds>) {
        self.recall.begin(flows, Instant::now() + self.conversation_idle);
    }

    /// Forgets what [`Dataplane::recall`] was told once no flow can be left of it.
    pub fn end_recall_if_due(&self) {
        self.recall.end_if_due(Instant::now());
    }

    /// The sum of all counters now.
    pub fn stats(&self) -> Stats {
        Stats::sum(self.workers.iter().map(|worker| &*worker.contact.stats))
    }

    /// How long things took so far, over all workers.
    pub fn times(&self) -> AllTimes {
        AllTimes::sum(self.workers.iter().map(|worker| &*worker.contact.stats))
    }

    /// Has one of the workers show some of its connections, those at a place, between its events; a walk over all of
    /// them begins at the default place and goes on where each part says. One that is open all the while is shown once.
    /// Dropped unanswered by a worker that there is not, or not any more. `answer` runs on the worker and must not wait.
    pub fn look(&self, worker: usize, place: Place, answer: impl FnOnce(Part) + Send + 'static) {
        if let Some(worker) = self.workers.get(worker) {
            worker.tell(Command::Look(Look { place, answer: Box::new(answer) }));
        }
    }

    /// What each worker is busy with now.
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

    /// Whether every worker is still there. One that is not has lost its share of all connections.
    pub fn is_alive(&self) -> bool {
        !self.workers.iter().any(WorkerHandle::is_finished)
    }

    /// Accepts nothing new and lets what runs finish, for no longer than `grace`; then the workers end.
    /// Returns how many TCP sessions were cut off.
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
