//! The TCP side of a worker: its listeners, its sessions, and the order in which they get turns.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::event::Event;
use mio::net::TcpStream;
use sluice_model::Protocol;
use sluice_table::FrontendKey;

use super::client_sessions::ClientSessions;
use super::complaints::Complaints;
use super::direction::{BUFFER_SIZE, Tools};
use super::listener::{Accepted, Listener};
use super::peer::Peer;
use super::pipe::PipePool;
use super::session::{Context, Session, Side, Step};
use super::socket::{self, BACKLOG, Ending};
use crate::Config;
use crate::client::ListenerKind;
use crate::connection::{Connection, PART};
use crate::contact::Others;
use crate::core::{Core, TimerOwner};
use crate::descriptors::Descriptors;
use crate::token::{SlotId, Slots, Source};

/// How many connections are accepted on a listener before other listeners and established sessions get their
/// turns.
pub(crate) const ACCEPT_BATCH: usize = 64;

/// How soon a listener that ran out of descriptors retries, if no session of this worker ends before:
/// descriptors may become free elsewhere.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long unused pipes are kept; up to twice as long.
const PIPES_KEPT: Duration = Duration::from_secs(5);

/// Descriptors of a session: one socket for each side.
const DESCRIPTORS: usize = 2;

/// A connection that was accepted and not yet examined.
#[derive(Debug)]
pub(crate) struct AcceptedConnection {
    stream: TcpStream,
    client: SocketAddr,
    /// What the client connects to.
    frontend: SocketAddr,
    /// How it got here.
    kind: ListenerKind,
}

/// The TCP side of one worker.
#[derive(Debug)]
pub(crate) struct TcpRelay {
    listeners: Slots<Listener>,
    sessions: Slots<Session>,
    tools: Tools,
    /// Listeners with possibly pending connections, in the order of their turns.
    accepting: VecDeque<SlotId>,
    /// Sessions that have more to do, in the order of their turns.
    ready: VecDeque<SlotId>,
    /// Listeners that wait for descriptors, or that fail.
    paused: Vec<SlotId>,
    /// A deadline for closing unused pipes is set.
    is_look_due: bool,
    clients: ClientSessions,
    complaints: Complaints,
    others: Others,
}

impl TcpRelay {
    /// With the workers' budget of pipes, and the other workers.
    pub(crate) fn new(config: &Config, pipes: &Arc<Descriptors>, others: Others) -> Self {
        let pipes = PipePool::new(pipes);
        Self {
            listeners: Slots::default(),
            sessions: Slots::default(),
            tools: Tools { buffer: vec![0; BUFFER_SIZE].into(), pipes },
            accepting: VecDeque::new(),
            ready: VecDeque::new(),
            paused: Vec::new(),
            is_look_due: false,
            clients: ClientSessions::new(config.client_share, config.workers),
            complaints: Complaints::default(),
            others,
        }
    }

    /// Starts to accept on a socket.
    pub(crate) fn listen(
        &mut self,
        socket: TcpListener,
        kind: ListenerKind,
        core: &mut Core,
    ) -> io::Result<()> {
        let listener = Listener::new(socket, kind)?;
        let id = self.listeners.insert_with(|_| listener);
        let Some(listener) = self.listeners.get_mut(id) else { return Ok(()) };
        let registered =
            core.registry.register(listener.source(), Source::Listener(id).token(), Interest::READABLE);
        if registered.is_err() {
            self.listeners.remove(id);
        }
        registered
    }

    /// Makes the kernel refuse new connections to an address, or to all listening addresses. Connections
    /// already begun are still to be accepted. This has to be done for every worker's socket, because the
    /// kernel spreads connections over all sockets of an address.
    pub(crate) fn refuse(&mut self, address: Option<SocketAddr>) {
        for id in self.listeners.ids() {
            let Some(listener) = self.listeners.get_mut(id) else { continue };
            let own = listener.address();
            if address.is_none_or(|address| address == own)
                && let Err(error) = listener.refuse()
            {
                tracing::debug!(address = %own, %error, "connections that are being made will be reset");
            }
        }
    }

    /// Accepts the connections in the kernel's queue for an address, then stops accepting there. The kernel
    /// resets later connections.
    pub(crate) fn close_listener(&mut self, address: SocketAddr, core: &mut Core) {
        for id in self.listeners.ids() {
            if self.listeners.get_mut(id).is_some_and(|listener| listener.address() == address) {
                self.empty_and_close(id, core);
            }
        }
    }

    /// Accepts the connections in the kernel's queues, then stops accepting altogether.
    pub(crate) fn close_all_listeners(&mut self, core: &mut Core) {
        for id in self.listeners.ids() {
            self.empty_and_close(id, core);
        }
    }

    fn empty_and_close(&mut self, id: SlotId, core: &mut Core) {
        // Enough for a full queue. Any more have arrived meanwhile, and that could go on forever.
        for _ in 0..=usize::from(BACKLOG) / ACCEPT_BATCH {
            if !self.accept(id, core) {
                break;
            }
        }
        self.listeners.remove(id);
    }

    /// Adds a part of the sessions to `found`, beginning at a slot. Returns where to continue, if there may
    /// be more.
    pub(crate) fn look(&self, slot: usize, found: &mut Vec<Connection>) -> Option<usize> {
        self.sessions.look(slot, PART, |session| found.push(session.look()))
    }

    /// Sessions that have not ended.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Whether a session or a listener waits for a turn.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.accepting.is_empty()
    }

    /// Queues a listener with pending connections for a turn.
    pub(crate) fn on_listener(&mut self, id: SlotId) {
        if let Some(listener) = self.listeners.get_mut(id)
            && !listener.is_queued
        {
            listener.is_queued = true;
            self.accepting.push_back(id);
        }
    }

    /// An event of a session's socket.
    pub(crate) fn on_session(&mut self, id: SlotId, side: Side, event: &Event, core: &mut Core) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let step = session.on_event(side, event, &mut Context { core, tools: &mut self.tools });
        self.settle(id, step, core);
    }

    /// A session's deadline.
    pub(crate) fn on_session_timer(&mut self, id: SlotId, core: &mut Core) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let step = session.on_timer(&mut Context { core, tools: &mut self.tools });
        self.settle(id, step, core);
    }

    /// Accepts a batch on each listener with pending connections: on at least one, until the time `until`.
    /// The rest come first the next time.
    pub(crate) fn run_listeners(&mut self, until: Instant, core: &mut Core) {
        for _ in 0..self.accepting.len() {
            let Some(id) = self.accepting.pop_front() else { return };
            let Some(listener) = self.listeners.get_mut(id) else { continue };
            listener.is_queued = false;
            if self.accept(id, core) {
                self.on_listener(id);
            }
            if core.refresh() >= until {
                return;
            }
        }
    }

    /// Gives every waiting session one turn, until the time `until` or the number of `turns` is reached. The
    /// rest come first the next time.
    pub(crate) fn run_ready(&mut self, until: Instant, turns: usize, core: &mut Core) {
        for _ in 0..self.ready.len().min(turns) {
            if core.refresh() >= until {
                return;
            }
            let Some(id) = self.ready.pop_front() else { return };
            let Some(session) = self.sessions.get_mut(id) else { continue };
            session.is_queued = false;
            let step = session.turn(&mut Context { core, tools: &mut self.tools });
            self.settle(id, step, core);
        }
    }

    /// Sets the deadline for closing unused pipes, if there are any.
    pub(crate) fn keep_house(&mut self, core: &mut Core) {
        core.stats.pipes_active.set(self.tools.pipes.count());
        if !self.is_look_due && self.tools.pipes.has_pooled() {
            self.is_look_due = true;
            core.timers.set(core.now + PIPES_KEPT, TimerOwner::UnusedPipes);
        }
    }

    /// Closes pipes that have not been used for a while.
    pub(crate) fn close_unused_pipes(&mut self) {
        self.is_look_due = false;
        self.tools.pipes.close_unused();
    }

    /// Lets paused listeners try again.
    pub(crate) fn resume_accepting(&mut self) {
        std::mem::take(&mut self.paused).into_iter().for_each(|id| self.on_listener(id));
    }

    /// Accepts a batch; whether there may be more.
    fn accept(&mut self, id: SlotId, core: &mut Core) -> bool {
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = self.listeners.get_mut(id) else { return false };
            match listener.accept() {
                Accepted::Connection(stream, client) => {
                    let (kind, own) = (listener.kind(), listener.address());
                    let frontend = listener.frontend_of(&stream).ok();
                    match frontend.filter(|frontend| !kind.is_bypassed(own, *frontend)) {
                        Some(frontend) => {
                            self.start_or_hand_on(
                                AcceptedConnection { stream, client, frontend, kind },
                                core,
                            );
                        }
                        None => {
                            core.stats.tcp_accepted.add(1);
                            core.stats.tcp_not_captured.add(1);
                            socket::close(stream, Ending::Reset);
                        }
                    }
                }
                Accepted::Aborted => {}
                Accepted::Drained => return false,
                Accepted::Exhausted => {
                    core.stats.accept_paused.add(1);
                    self.pause(id, core);
                    return false;
                }
                Accepted::Broken(error) => {
                    core.stats.accept_failed.add(1);
                    if !std::mem::replace(&mut listener.is_reported, true) {
                        let address = listener.address();
                        tracing::error!(%address, %error, "cannot accept connections; trying again");
                    }
                    self.pause(id, core);
                    return false;
                }
            }
        }
        // If the queue has been full, at least a batch is taken from it, so counting here misses no drops.
        self.count_drops(id, core);
        true
    }

    fn count_drops(&mut self, id: SlotId, core: &Core) {
        if let Some(listener) = self.listeners.get_mut(id) {
            core.stats.tcp_dropped_queue.add(listener.dropped());
        }
    }

    /// Pauses a listener until a session ends or [`ACCEPT_RETRY`] has passed.
    fn pause(&mut self, id: SlotId, core: &mut Core) {
        self.count_drops(id, core);
        if self.paused.is_empty() {
            core.timers.set(core.now + ACCEPT_RETRY, TimerOwner::AcceptRetry);
        }
        if !self.paused.contains(&id) {
            self.paused.push(id);
        }
    }

    fn start_or_hand_on(&mut self, connection: AcceptedConnection, core: &mut Core) {
        match self.others.hand_on(connection, self.sessions.len()) {
            Ok(()) => core.stats.tcp_handed_on.add(1),
            Err(connection) => self.start(connection, core),
        }
    }

    /// Takes over a connection that another worker has accepted.
    pub(crate) fn take(&mut self, connection: AcceptedConnection, core: &mut Core) {
        self.others.has_taken();
        self.start(connection, core);
    }

    /// Stops handing connections to other workers, which may be about to end.
    pub(crate) fn hand_on_no_more(&mut self) {
        self.others.keep_all();
    }

    /// Starts a session for an accepted connection, or resets it.
    fn start(&mut self, connection: AcceptedConnection, core: &mut Core) {
        let AcceptedConnection { stream, client: address, frontend, kind } = connection;
        core.stats.tcp_accepted.add(1);
        let client_key = core.client_key(kind, address.ip());
        if !self.clients.admits(client_key, core.descriptors.free() / DESCRIPTORS) {
            core.stats.tcp_over_share.add(1);
            self.complaints.over_share(client_key, &self.clients, core.now);
            return socket::close(stream, Ending::Reset);
        }
        let Some(permit) = core.descriptors.take(DESCRIPTORS) else {
            core.stats.tcp_over_limit.add(1);
            self.complaints.no_descriptors(&self.clients, self.sessions.len(), core.now);
            return socket::close(stream, Ending::Reset);
        };
        let key = FrontendKey::new(frontend.ip(), frontend.port(), Protocol::Tcp);
        let client = kind.client(address.ip(), frontend.ip());
        let selection = core.reader.lookup(key).map(|route| route.select(client, core.now));
        let selection = match selection {
            Some(Ok(selection)) => selection,
            Some(Err(rejection)) if rejection.is_limit() => {
                core.stats.tcp_over_service_limit.add(1);
                return socket::close(stream, Ending::Reset);
            }
            _ => {
                core.stats.tcp_unroutable.add(1);
                return socket::close(stream, Ending::Reset);
            }
        };
        let trace = core.log.as_ref().and_then(|log| log.choose(frontend));
        // Earlier connections of the same batch may have taken a while.
        let (client, now) = (Peer::accepted(stream), core.refresh());
        let new = |id| Session::new(id, client, (address, client_key), selection, trace, permit, now);
        let id = self.sessions.insert_with(new);
        core.stats.tcp_active.add(1);
        self.clients.add(client_key);
        let Some(session) = self.sessions.get_mut(id) else { return };
        let step = session.begin(&mut Context { core, tools: &mut self.tools });
        self.settle(id, step, core);
    }

    /// Carries out what a session's step asks for.
    fn settle(&mut self, id: SlotId, step: Step, core: &mut Core) {
        match step {
            Step::Wait => {}
            Step::Again => {
                if let Some(session) = self.sessions.get_mut(id)
                    && !session.is_queued
                {
                    session.is_queued = true;
                    self.ready.push_back(id);
                }
            }
            Step::End(end) => {
                if let Some(session) = self.sessions.remove(id) {
                    self.clients.remove(session.client_key());
                    session.end(end, core);
                    core.stats.tcp_active.sub(1);
                    self.resume_accepting();
                }
            }
        }
    }
}
