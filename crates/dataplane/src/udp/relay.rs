//! The UDP side of a worker: sockets around the [flow table](super::flow_table).
//!
//! Datagrams come and go in batches. What one client sent in a batch goes on in one system call; so do
//! an endpoint's replies: `passing`. `opening` is about flows that begin, `queueing` about those that wait until they may,
//! and `ending` about those that are over.

mod ending;
mod groups;
mod housekeeping;
mod opening;
mod passing;
mod queueing;
/// Whether a client that is not relayed would hear of it, too: a port that nobody has, or a firewall that says so (ICMP codes that
/// the kernel has a socket's owner know: `icmp_err_convert`).
fn tells_the_client(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | PermissionDenied)
}

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Interest;
use sluice_model::Protocol;
use sluice_sys::udp::{Joining, RecvBatch};
use sluice_table::{Lease, Route};

use super::flow_socket::FlowSocket;
use super::flow_table::{Flow, FlowId, FlowLimits, FlowTable, Lack};
use super::kept_ports::{KeptPort, KeptPorts};
use super::refusal::Refusals;
use super::replies::{ReplySocket, ReplySockets};
use super::socket;
use super::waiting::{self, Waiting};
use crate::client::ListenerKind;
use crate::connection::{Connection, ConnectionState, PART};
use crate::connection_log::Trace;
use crate::core::Core;
use crate::descriptors::{Descriptors, Permit};
use crate::drops::DropsCounted;
use crate::throttle::OnceAMinute;
use crate::token::{SlotId, Slots, Source};
use groups::Groups;
#[cfg(test)]
pub(crate) use housekeeping::ENDED;

/// How long after clients were turned away from a socket one of their datagrams may still come by it: one that another CPU
/// was about to put there.
const LAST_DATAGRAMS: Duration = Duration::from_secs(1);

/// Batches taken from one socket before others get their turn.
const BATCHES_PER_TURN: usize = 8;

/// Flows opened in a turn of the loop. Opening one takes some twenty times as long as sending a datagram on: whoever sends
/// each from another port must not keep the worker from everybody else for milliseconds. What is beyond it waits, in a
/// line for each client.
const OPENED_PER_TURN: usize = 32;

/// And while somebody waits, so many of them for those who do not: they are answered at once, and those who wait get on.
const OPENED_AT_ONCE: usize = OPENED_PER_TURN / 2;

/// All UDP of one worker.
#[derive(Debug)]
pub(crate) struct UdpRelay {
    received: RecvBatch,
    state: State,
    /// Frontends that more may have been sent to, in the order of their turns.
    ready_frontends: VecDeque<SlotId>,
    /// And flows whose endpoints may have sent more.
    ready_flows: VecDeque<FlowId>,
    is_housekeeping_due: bool,
    /// Addresses that are gone from this node, while flows are looked through for those that need them.
    gone: Option<Arc<[IpAddr]>>,
    /// When it was last forgotten what could not be joined.
    refusals_forgotten: Option<Instant>,
    /// How many frontends are to be closed.
    closing: usize,
}

#[derive(Debug)]
struct State {
    frontends: Slots<Frontend>,
    flows: FlowTable<Link>,
    kept_ports: KeptPorts,
    replies: ReplySockets,
    budget: Budget,
    refusals: Refusals,
    groups: Groups,
    /// What is to have flows, and the socket and the kind of listener it came by.
    waiting: Waiting<(SlotId, ListenerKind)>,
    /// Flows opened in this turn of the loop, or tried to be.
    opened: usize,
    says: Says,
}

/// What is said now and then: the counters alone nobody looks at.
#[derive(Debug, Default)]
struct Says {
    /// Flows make room for others.
    no_room: OnceAMinute,
    /// Flows leave their ports to others.
    no_port: OnceAMinute,
    /// Datagrams are lost while they wait.
    no_turn: OnceAMinute,
}

/// What the flows of a worker may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    /// With the sockets that they reply by.
    pub(crate) descriptors: Arc<Descriptors>,
    /// Those whose endpoints see this node's address have one each.
    pub(crate) ephemeral_ports: Arc<Descriptors>,
}

impl Budget {
    /// Where what a flow lacks is taken from.
    fn of(&self, lack: Lack) -> &Arc<Descriptors> {
        match lack {
            Lack::Place => &self.descriptors,
            Lack::Port => &self.ephemeral_ports,
        }
    }
}

/// A socket that clients send to.
#[derive(Debug)]
struct Frontend {
    socket: mio::net::UdpSocket,
    address: SocketAddr,
    kind: ListenerKind,
    drops: DropsCounted,
    joining: Joining,
    /// It waits for a turn; an event in the meantime needs none of its own.
    is_queued: bool,
    /// Clients have been turned away from it: it is closed then.
    closes: Option<Instant>,
}

impl Frontend {
    fn count_drops(&mut self, core: &Core) {
        core.stats.udp_dropped_queue.add(self.drops.more(&self.socket));
    }
}

/// Where a flow leads.
#[derive(Debug)]
struct Link {
    socket: FlowSocket,
    lease: Lease,
    route: Arc<Route>,
    reply: Reply,
    kept_port: Option<KeptPort>,
    /// Bytes that were passed on.
    sent: u64,
    received: u64,
    /// Of a flow that is told of in the log.
    trace: Option<Box<Trace>>,
    /// Of one whose endpoint sees this node's address.
    ephemeral_port: Option<Permit>,
    /// It waits for a turn; an event in the meantime needs none of its own.
    is_queued: bool,
    _descriptor: Option<Permit>,
}

/// What a flow takes besides its sockets.
#[cfg(test)]
pub(crate) const LINK_SIZE: usize = size_of::<Link>();

/// What a flow's replies leave by.
#[derive(Debug)]
enum Reply {
    /// The socket that its client sends to.
    Bound(SlotId),
    /// A socket with the address that its client sends to.
    Captured(Arc<ReplySocket>),
}

impl Link {
    fn is_valid(flow: &Flow<Self>) -> bool {
        flow.upstream.route.keeps_flow(&flow.upstream.lease)
    }

    /// Whether it needs one of these addresses of this node.
    fn sends_from(&self, addresses: &[IpAddr]) -> bool {
        !addresses.is_empty() && self.ephemeral_port.is_some() && self.socket.sends_from(addresses)
    }
}

impl UdpRelay {
    /// Flows within these limits and this budget.
    pub(crate) fn new(limits: FlowLimits, budget: Budget) -> Self {
        Self {
            received: RecvBatch::new(),
            state: State {
                frontends: Slots::default(),
                flows: FlowTable::new(limits),
                kept_ports: KeptPorts::default(),
                replies: ReplySockets::default(),
                budget,
                refusals: Refusals::default(),
                groups: Groups::default(),
                waiting: Waiting::new(waiting::LIMIT),
                opened: 0,
                says: Says::default(),
            },
            ready_frontends: VecDeque::new(),
            ready_flows: VecDeque::new(),
            is_housekeeping_due: false,
            gone: None,
            refusals_forgotten: None,
            closing: 0,
        }
    }

    /// Starts to serve a socket.
    pub(crate) fn listen(
        &mut self,
        socket: UdpSocket,
        kind: ListenerKind,
        core: &mut Core,
    ) -> io::Result<()> {
        let address = socket.local_addr()?;
        let socket = mio::net::UdpSocket::from_std(socket);
        let drops = DropsCounted::default();
        let joining = Joining::default();
        let frontend = Frontend { socket, address, kind, drops, joining, is_queued: false, closes: None };
        let id = self.state.frontends.insert_with(|_| frontend);
        let Some(frontend) = self.state.frontends.get_mut(id) else { return Ok(()) };
        let token = Source::UdpSocket(id).token();
        let registered = core.registry.register(&mut frontend.socket, token, Interest::READABLE);
        if registered.is_err() {
            self.state.frontends.remove(id);
        }
        registered
    }

    /// Stops serving an address.
    pub(crate) fn close_frontend(&mut self, address: SocketAddr, core: &Core) {
        for id in self.state.frontends.ids() {
            if let Some(frontend) = self.state.frontends.get_mut(id)
                && frontend.address == address
            {
                frontend.count_drops(core);
                self.state.frontends.remove(id);
            }
        }
    }

    /// Counts what the kernel has dropped since it was last asked, of what clients have sent.
    pub(crate) fn count_drops(&mut self, core: &Core) {
        for id in self.state.frontends.ids() {
            if let Some(frontend) = self.state.frontends.get_mut(id) {
                frontend.count_drops(core);
            }
        }
    }

    /// Takes nothing new: what clients have sent so far goes on to endpoints, and what they answer goes back.
    pub(crate) fn stop_accepting(&mut self, core: &mut Core) {
        for id in self.state.frontends.ids() {
            if let Some(frontend) = self.state.frontends.get_mut(id)
                && frontend.closes.is_none()
            {
                if let Err(error) = socket::turn_away(&frontend.socket) {
                    tracing::debug!(%error, "what clients send until a UDP socket is closed may be lost");
                }
                // Replies leave by one that is its frontend's own.
                if let ListenerKind::Captured(_) = frontend.kind {
                    frontend.closes = Some(core.now + LAST_DATAGRAMS);
                    self.closing += 1;
                }
                self.on_frontend(id, core);
            }
        }
    }

    /// Closes sockets that clients have been turned away from, once nothing of theirs is here.
    fn close_frontends(&mut self, core: &Core) {
        if self.closing > 0 && !self.has_ready() {
            for id in self.state.frontends.ids() {
                if let Some(frontend) = self.state.frontends.get_mut(id)
                    && frontend.closes.is_some_and(|closes| closes <= core.now)
                {
                    frontend.count_drops(core);
                    self.state.frontends.remove(id);
                    self.closing -= 1;
                }
            }
        }
    }

    /// Shows flows, some from a slot on; where to go on, if there may be more.
    pub(crate) fn look(&self, slot: usize, found: &mut Vec<Connection>) -> Option<usize> {
        self.state.flows.look(slot, PART, |flow| found.push(connection(flow)))
    }

    /// How many flows there are.
    pub(crate) fn flows(&self) -> usize {
        self.state.flows.len()
    }

    /// Whether somebody waits for a turn.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready_frontends.is_empty() || !self.ready_flows.is_empty() || !self.state.waiting.is_empty()
    }

    /// Gives sockets that wait for a turn one turn, and ends the turn of the loop.
    pub(crate) fn run_ready(&mut self, slice: Duration, turns: usize, core: &mut Core) {
        // Clients that ask are never behind endpoints that send without end.
        let until = core.refresh() + slice;
        self.run_frontends(until, turns, core);
        let until = core.refresh() + slice;
        self.run_flows(until, turns, core);
        self.state.serve_waiting(core);
        self.keep_house(core);
    }

    /// One turn at least, until it is late or so many have had theirs; those who are left come first the next time.
    fn run_frontends(&mut self, until: Instant, turns: usize, core: &mut Core) {
        for _ in 0..self.ready_frontends.len().min(turns) {
            let Some(id) = self.ready_frontends.pop_front() else { return };
            let Some(frontend) = self.state.frontends.get_mut(id) else { continue };
            frontend.is_queued = false;
            self.on_frontend(id, core);
            if core.refresh() >= until {
                return;
            }
        }
    }

    /// The same.
    fn run_flows(&mut self, until: Instant, turns: usize, core: &mut Core) {
        for _ in 0..self.ready_flows.len().min(turns) {
            let Some(id) = self.ready_flows.pop_front() else { return };
            let Some(flow) = self.state.flows.flow(id) else { continue };
            flow.upstream.is_queued = false;
            self.take_replies(id, BATCHES_PER_TURN, core);
            if core.refresh() >= until {
                return;
            }
        }
    }

    /// Clients have sent something.
    pub(crate) fn on_frontend(&mut self, id: SlotId, core: &mut Core) {
        for _ in 0..BATCHES_PER_TURN {
            let Some(frontend) = self.state.frontends.get_mut(id) else { return };
            if frontend.is_queued {
                return;
            }
            match self.received.recv(&frontend.socket) {
                Ok(_) => {
                    self.state.forward(id, &self.received, core);
                    if !self.received.is_full() {
                        return self.keep_house(core);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.keep_house(core),
                // Of no datagram in particular; reported once, and gone.
                Err(_) => core.stats.udp_dropped_error.add(1),
            }
        }
        self.keep_house(core);
        if let Some(frontend) = self.state.frontends.get_mut(id) {
            frontend.is_queued = true;
            self.ready_frontends.push_back(id);
        }
    }

    /// A flow's endpoint has sent something, or cannot be reached. One that has sent more than a batch waits in line, as a turn
    /// of the loop may have events of hundreds of them.
    pub(crate) fn on_flow(&mut self, id: FlowId, core: &mut Core) {
        self.take_replies(id, 1, core);
    }

    fn take_replies(&mut self, id: FlowId, batches: usize, core: &mut Core) {
        for _ in 0..batches {
            let Some(flow) = self.state.flows.flow(id) else { return };
            if flow.upstream.is_queued {
                return;
            }
            let client = flow.key().client;
            match flow.upstream.socket.recv(&mut self.received) {
                Ok(_) => {
                    self.state.return_replies((id, client), &self.received, core);
                    if !self.received.is_full() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.on_refusal(id, &error, core),
            }
        }
        if let Some(flow) = self.state.flows.flow(id) {
            flow.upstream.is_queued = true;
            self.ready_flows.push_back(id);
        }
    }

    /// A flow's endpoint cannot be reached: port unreachable, mostly, as nobody is there. The client's next datagram goes elsewhere.
    /// The kernel tells of that before it gives what the endpoint has answered until then.
    fn on_refusal(&mut self, id: FlowId, error: &io::Error, core: &mut Core) {
        for _ in 0..BATCHES_PER_TURN {
            let Some(flow) = self.state.flows.flow(id) else { return };
            let client = flow.key().client;
            match flow.upstream.socket.recv(&mut self.received) {
                Ok(_) => self.state.return_replies((id, client), &self.received, core),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // It is told of once more.
                Err(_) => {}
            }
        }
        if tells_the_client(error) {
            self.state.tell(id, core);
        }
        self.state.refused(id, core);
    }
}

/// How a flow is.
fn connection(flow: &Flow<Link>) -> Connection {
    let Link { lease, sent, received, .. } = &flow.upstream;
    Connection {
        protocol: Protocol::Udp,
        client: flow.key().client,
        frontend: Some(flow.key().destination),
        service_port: Arc::clone(lease.service_port()),
        endpoint: Some(lease.address()),
        state: if flow.is_answered() { ConnectionState::Answered } else { ConnectionState::Unanswered },
        began: flow.opened(),
        moved: flow.last_used(),
        bytes_to_endpoint: *sent,
        bytes_from_endpoint: *received,
    }
}
