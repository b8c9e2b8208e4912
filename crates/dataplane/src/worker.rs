//! One worker: a thread with one event loop and all of its sessions and flows.
//!
//! A turn of the loop: wait (without blocking if sessions, flows or commands are pending), handle events,
//! accept new connections, give a turn to sessions and flows with more to do, handle deadlines, execute
//! commands.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use sluice_model::{Frontend, Protocol};
use sluice_table::Reader;

use crate::Config;
use crate::client::ListenerKind;
use crate::connection::{Look, Part, Place};
use crate::connection_log::ConnectionLog;
use crate::contact::Others;
use crate::core::{Core, Says, TimerOwner};
use crate::descriptors::Descriptors;
use crate::local_ports::LocalPorts;
use crate::stats::WorkerStats;
use crate::tcp::exhausted::Exhausted;
use crate::tcp::port_shares::PortShares;
use crate::tcp::relay::{ACCEPT_BATCH, AcceptedConnection, TcpRelay};
use crate::tcp::session::Side;
use crate::timers::Timers;
use crate::token::Source;
use crate::udp::flow_table::FlowLimits;
use crate::udp::recall::Recall;
use crate::udp::relay::{Budget, UdpRelay};

/// One in this many of the file descriptors is reserved for UDP flows and their reply sockets. TCP cannot
/// take them, so DNS keeps working however many connections there are.
const UDP_RESERVE: usize = 8;

/// UDP may hold this many thirds of the file descriptors; the rest is for TCP alone.
const UDP_THIRDS: usize = 2;

/// Flows may hold one in this many of the node's ephemeral ports. A process of the node that asks for any
/// free UDP port, as a resolver does for each query, cannot get those.
const PORT_SHARE: usize = 2;

/// How long a draining worker waits for answers to the last datagrams that it has accepted.
const ANSWERS: Duration = Duration::from_secs(1);

/// The maximum number of events per turn: so many small exchanges may be handled before deadlines are
/// checked.
const EVENTS: usize = 256;

/// How long each queue of sessions or flows with more to do is served before events are handled again. Apart
/// from one turn, this bounds how long a small exchange waits for bulk transfers.
const SLICE: Duration = Duration::from_millis(1);

/// The maximum number of turns in a [`SLICE`]; about as many as a fast machine completes.
const SLICE_TURNS: usize = 16;

/// The maximum number of deadlines handled in a [`SLICE`]. Most are cheap, such as those of connections that
/// become older than half a minute; but trying another endpoint takes as long as accepting a connection.
const SLICE_DEADLINES: usize = 64;

/// A command to a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept connections on a socket.
    ListenTcp(TcpListener, ListenerKind),
    /// Relay the datagrams of a socket.
    ListenUdp(UdpSocket, ListenerKind),
    /// Refuse new TCP connections to a listening address, or to all of them, and confirm when done.
    Refuse(Option<SocketAddr>, Sender<()>),
    /// Stop serving a frontend, and confirm when done.
    Close(Frontend, Sender<()>),
    /// Stop accepting on all sockets, because another process does; queued connections and datagrams are
    /// accepted first. Confirm when done.
    StopAccepting(Sender<()>),
    /// End flows whose frontend or endpoint is gone, and flows that need one of these addresses, which this
    /// node has lost. Confirm when done.
    EndFlows(Arc<[IpAddr]>, Sender<()>),
    /// Confirm that all earlier commands have been executed.
    Answer(Sender<()>),
    /// Take over a connection that another worker has accepted.
    Take(AcceptedConnection),
    /// List a part of the connections.
    Look(Look),
    /// Stop accepting; end when the last session has ended and endpoints have had time to answer datagrams.
    Drain,
    /// End now.
    Stop,
}

/// What a worker shares with the other workers and with the rest of the program.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) reader: Reader,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) descriptors: Arc<Descriptors>,
    /// The budget of descriptors for pipes.
    pub(crate) pipes: Arc<Descriptors>,
    pub(crate) local_ports: LocalPorts,
    pub(crate) log: Option<ConnectionLog>,
    pub(crate) recall: Arc<Recall>,
    pub(crate) others: Others,
}

/// A worker before and while it runs.
#[derive(Debug)]
pub(crate) struct Worker {
    poll: Poll,
    core: Core,
    tcp: TcpRelay,
    udp: UdpRelay,
    commands: Receiver<Command>,
    /// Commands may be pending for which the waker will not fire again.
    has_commands: bool,
    /// Whom to notify when the flows that are being ended are gone.
    ending: Option<Sender<()>>,
    /// While draining: until when endpoints may answer the last datagrams.
    draining: Option<Instant>,
}

impl Worker {
    /// `poll` has the waker registered already.
    pub(crate) fn new(
        config: &Config,
        poll: Poll,
        shared: Shared,
        commands: Receiver<Command>,
    ) -> io::Result<Self> {
        let Shared { reader, stats, descriptors, pipes, local_ports, log, recall, others } = shared;
        let port_shares = PortShares::new(config.client_share, local_ports.count(), config.workers);
        let core = Core {
            registry: poll.registry().try_clone()?,
            timers: Timers::default(),
            reader,
            stats,
            descriptors,
            local_ports,
            port_shares,
            exhausted: Exhausted::default(),
            orphans: Default::default(),
            marks: config.marks,
            half_closed_idle: config.half_closed_idle,
            log,
            service_times: config.service_times,
            recall,
            says: Says::default(),
            now: Instant::now(),
        };
        let ports = udp_ports(config, &core.local_ports);
        let limits = FlowLimits::new(flow_capacity(config), ports, config.client_share, config.udp_idle);
        let budget = Budget {
            descriptors: core.descriptors.part(udp_descriptors(config), udp_reserve(config)),
            ephemeral_ports: Descriptors::new(ports),
        };
        let (tcp, udp) = (TcpRelay::new(config, &pipes, others), UdpRelay::new(limits, budget));
        Ok(Self { poll, tcp, udp, core, commands, has_commands: false, ending: None, draining: None })
    }

    /// Runs until told to stop, or until draining is complete.
    pub(crate) fn run(mut self) {
        self.run_until_told();
        self.udp.count_drops(&self.core);
    }

    fn run_until_told(&mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while self.turn(&mut events).is_continue() {}
    }

    /// Runs one turn of the loop. Breaks if the worker is to end.
    fn turn(&mut self, events: &mut Events) -> ControlFlow<()> {
        let wait = if self.tcp.has_ready() || self.udp.has_ready() || self.has_commands {
            Some(Duration::ZERO)
        } else {
            self.core.timers.wait(self.core.now)
        };
        if let Err(error) = self.poll.poll(events, wait)
            && error.kind() != io::ErrorKind::Interrupted
        {
            // epoll_wait(2) has no other error for a valid descriptor and buffer.
            tracing::error!(%error, "a worker cannot wait for events and ends");
            return ControlFlow::Break(());
        }
        self.core.refresh();
        let mut is_woken = std::mem::take(&mut self.has_commands);
        for event in &*events {
            match Source::of(event.token()) {
                Some(Source::Waker) => is_woken = true,
                Some(Source::Listener(id)) => self.tcp.on_listener(id),
                Some(Source::Downstream(id)) => {
                    self.tcp.on_session(id, Side::Downstream, event, &mut self.core);
                }
                Some(Source::Upstream(id)) => {
                    self.tcp.on_session(id, Side::Upstream, event, &mut self.core);
                }
                Some(Source::UdpSocket(id)) => self.udp.on_frontend(id, &mut self.core),
                Some(Source::Flow(id)) => self.udp.on_flow(id, &mut self.core),
                None => {}
            }
        }
        // Listeners never wait for bulk transfers, however many there are: an accept queue that is not
        // emptied fills up quickly.
        let until = self.core.refresh() + SLICE;
        self.tcp.run_listeners(until, &mut self.core);
        let until = self.core.refresh() + SLICE;
        self.tcp.run_ready(until, SLICE_TURNS, &mut self.core);
        self.udp.run_ready(SLICE, SLICE_TURNS, &mut self.core);
        self.run_timers(SLICE);
        self.tcp.keep_house(&mut self.core);
        self.core.stats.deadlines.set(self.core.timers.len());
        if is_woken {
            self.obey()?;
        }
        if self.is_drained() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Checked at least twice a second while there are flows, because that is the interval of their
    /// housekeeping.
    fn is_drained(&self) -> bool {
        let Some(answers_until) = self.draining else { return false };
        let is_answered = self.udp.flows() == 0 || self.core.now >= answers_until;
        is_answered && self.tcp.sessions() == 0 && !self.udp.has_ready()
    }

    fn stop_accepting(&mut self) {
        self.tcp.close_all_listeners(&mut self.core);
        self.udp.stop_accepting(&mut self.core);
    }

    fn look(&self, Place { protocol, slot }: Place) -> Part {
        let mut connections = Vec::new();
        let next = match protocol {
            Protocol::Tcp => match self.tcp.look(slot, &mut connections) {
                Some(slot) => Some(Place { protocol, slot }),
                None => Some(Place { protocol: Protocol::Udp, slot: 0 }),
            },
            Protocol::Udp => self.udp.look(slot, &mut connections).map(|slot| Place { protocol, slot }),
        };
        Part { connections, next }
    }

    /// Handles due deadlines: at least one, until `slice` or [`SLICE_DEADLINES`] is used up. The rest remain
    /// due, so the next turn does not wait.
    fn run_timers(&mut self, slice: Duration) {
        // Deadlines that become due meanwhile are left to the next turn.
        let now = self.core.refresh();
        for _ in 0..SLICE_DEADLINES {
            let Some(owner) = self.core.timers.pop_due(now) else { return };
            match owner {
                TimerOwner::Session(id) => self.tcp.on_session_timer(id, &mut self.core),
                TimerOwner::AcceptRetry => self.tcp.resume_accepting(),
                TimerOwner::UnusedPipes => self.tcp.close_unused_pipes(),
                TimerOwner::UdpHousekeeping => self.udp.on_housekeeping(&mut self.core),
            }
            if self.core.refresh() >= now + slice {
                return;
            }
        }
    }

    /// Continues to end flows, if some are to be ended. Returns whether that is complete, so that further
    /// commands may be executed.
    fn has_ended_flows(&mut self) -> bool {
        if self.ending.is_some() && !self.udp.end_invalid(&mut self.core) {
            // The rest is for the next turn.
            self.has_commands = true;
            return false;
        }
        if let Some(done) = self.ending.take() {
            // It is not an error if the requester has gone.
            let _ = done.send(());
        }
        true
    }

    /// Executes the pending commands.
    fn obey(&mut self) -> ControlFlow<()> {
        let mut taken = 0;
        while self.has_ended_flows()
            && let Ok(command) = self.commands.try_recv()
        {
            match command {
                Command::ListenTcp(socket, kind) => report(self.tcp.listen(socket, kind, &mut self.core)),
                Command::ListenUdp(socket, kind) => report(self.udp.listen(socket, kind, &mut self.core)),
                Command::Refuse(address, done) => {
                    self.tcp.refuse(address);
                    if address.is_none() {
                        self.tcp.hand_on_no_more();
                    }
                    // It is not an error if the requester has gone.
                    let _ = done.send(());
                }
                Command::Close(frontend, done) => {
                    match frontend.protocol {
                        Protocol::Tcp => self.tcp.close_listener(frontend.address, &mut self.core),
                        Protocol::Udp => self.udp.close_frontend(frontend.address, &self.core),
                    }
                    // It is not an error if the requester has gone.
                    let _ = done.send(());
                }
                Command::Answer(done) => {
                    let _ = done.send(());
                }
                Command::Take(connection) => {
                    self.tcp.take(connection, &mut self.core);
                    taken += 1;
                    if taken == ACCEPT_BATCH {
                        // Handle events first, as after a batch of a listener.
                        self.has_commands = true;
                        return ControlFlow::Continue(());
                    }
                }
                Command::EndFlows(gone, done) => {
                    self.udp.begin_to_end(gone);
                    self.ending = Some(done);
                }
                Command::Look(Look { place, answer }) => {
                    answer(self.look(place));
                    // One per turn, so that a requester that asks continuously does not delay events.
                    self.has_commands = true;
                    return ControlFlow::Continue(());
                }
                Command::StopAccepting(done) => {
                    self.stop_accepting();
                    let _ = done.send(());
                }
                Command::Drain => {
                    self.stop_accepting();
                    self.draining = Some(self.core.now + ANSWERS);
                }
                Command::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }
}

/// How many descriptors a worker may hold for UDP: enough for at least one flow and its reply socket.
fn udp_descriptors(config: &Config) -> usize {
    (config.descriptors / 3 * UDP_THIRDS / config.workers.max(1)).max(2)
}

/// How many of a worker's UDP descriptors are reserved.
fn udp_reserve(config: &Config) -> usize {
    config.descriptors / UDP_RESERVE / config.workers.max(1)
}

/// How many of a worker's flows may have ephemeral ports of the node: at least one.
fn udp_ports(config: &Config, ports: &LocalPorts) -> usize {
    (ports.count() / PORT_SHARE / config.workers.max(1)).max(1)
}

/// How many flows a worker may have.
fn flow_capacity(config: &Config) -> NonZeroUsize {
    NonZeroUsize::new(udp_descriptors(config)).unwrap_or(NonZeroUsize::MIN)
}

fn report(listening: io::Result<()>) {
    if let Err(error) = listening {
        tracing::error!(%error, "a worker cannot serve a frontend; its share of new clients is not served");
    }
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod handing_on;
#[cfg(test)]
mod order;
#[cfg(test)]
mod shortage;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_have_an_eighth_of_the_descriptors_for_themselves_and_leave_a_third_to_connections() {
        let config = |workers, descriptors| Config {
            workers,
            descriptors,
            client_share: Config::CLIENT_SHARE,
            udp_idle: Config::UDP_IDLE,
            half_closed_idle: Config::HALF_CLOSED_IDLE,
            marks: None,
            connection_log: None,
            service_times: false,
        };
        let budget = |config: &Config| (udp_reserve(config), udp_descriptors(config));
        assert_eq!(budget(&config(1, 3_000)), (375, 2_000));
        assert_eq!(budget(&config(4, 3_000)), (93, 500));
        assert_eq!(budget(&config(64, 10)), (0, 2), "enough for a flow and its replies");
        let ports = LocalPorts::with_range(32_768..=60_999);
        assert_eq!(udp_ports(&config(1, 3_000), &ports), 14_116);
        assert_eq!(udp_ports(&config(4, 3_000), &ports), 3_529);
        assert_eq!(udp_ports(&config(64, 10), &LocalPorts::with_range(1..=1)), 1, "never none at all");
    }
}
