//! The UDP side of a worker: the sockets around the [flow table](super::flow_table).
//!
//! Datagrams are received and sent in batches. What one client sent in a batch is forwarded in one system
//! call, and so are an endpoint's replies (`passing`). `opening` opens flows, `queueing` holds datagrams
//! whose flows may not be opened yet, and `ending` handles flows that have ended.

mod ending;
mod groups;
mod housekeeping;
mod opening;
mod passing;
mod queueing;
/// Whether the client would be told if it were not relayed: the port is closed, or a firewall rejects it (the
/// ICMP codes that the kernel reports to a socket's owner: `icmp_err_convert`).
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

/// How long after [`socket::turn_away`] a datagram may still arrive at a socket: another CPU may be about to
/// queue it there.
const LAST_DATAGRAMS: Duration = Duration::from_secs(1);

/// The maximum number of batches taken from one socket in a turn.
const BATCHES_PER_TURN: usize = 8;

/// The maximum number of flows opened in a turn of the loop. Opening one takes some twenty times as long as
/// forwarding a datagram, so a client that sends each datagram from another port must not keep the worker
/// from all others for milliseconds. Further ones wait, in a line for each client.
const OPENED_PER_TURN: usize = 32;

/// While some wait, this many are left to clients that do not: those are served at once, and those that wait
/// make progress.
const OPENED_AT_ONCE: usize = OPENED_PER_TURN / 2;

/// The UDP state of one worker.
#[derive(Debug)]
pub(crate) struct UdpRelay {
    received: RecvBatch,
    state: State,
    /// Frontend sockets that may have more datagrams, in the order of their turns.
    ready_frontends: VecDeque<SlotId>,
    /// Flows whose endpoints may have sent more, in the same order.
    ready_flows: VecDeque<FlowId>,
    is_housekeeping_due: bool,
    /// Addresses that this node has lost, while flows that need them are being ended.
    gone: Option<Arc<[IpAddr]>>,
    /// When the refusals to join datagrams were last forgotten.
    refusals_forgotten: Option<Instant>,
    /// Number of frontend sockets that are to be closed.
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
    /// Datagrams that wait for flows, with the socket that they arrived at and its kind.
    waiting: Waiting<(SlotId, ListenerKind)>,
    /// Number of attempts to open flows in this turn of the loop.
    opened: usize,
    says: Says,
}

/// Rate-limited warnings. Without them, only counters would show the problem.
#[derive(Debug, Default)]
struct Says {
    /// Flows are evicted for others.
    no_room: OnceAMinute,
    /// Flows give up their ports to others.
    no_port: OnceAMinute,
    /// Datagrams are lost while they wait.
    no_turn: OnceAMinute,
}

/// The resources that the flows of a worker may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Descriptors of flows' sockets and reply sockets.
    pub(crate) descriptors: Arc<Descriptors>,
    /// One for each flow whose endpoint sees this node's address.
    pub(crate) ephemeral_ports: Arc<Descriptors>,
}

impl Budget {
    /// The pool of a resource.
    fn of(&self, lack: Lack) -> &Arc<Descriptors> {
        match lack {
            Lack::Place => &self.descriptors,
            Lack::Port => &self.ephemeral_ports,
        }
    }
}

/// A socket that receives from clients.
#[derive(Debug)]
struct Frontend {
    socket: mio::net::UdpSocket,
    address: SocketAddr,
    kind: ListenerKind,
    drops: DropsCounted,
    joining: Joining,
    /// It is in `ready_frontends`, so an event need not queue it again.
    is_queued: bool,
    /// The time at which it is closed, after [`socket::turn_away`].
    closes: Option<Instant>,
}

impl Frontend {
    fn count_drops(&mut self, core: &Core) {
        core.stats.udp_dropped_queue.add(self.drops.more(&self.socket));
    }
}

/// Where a flow leads, and the resources that it holds.
#[derive(Debug)]
struct Link {
    socket: FlowSocket,
    lease: Lease,
    route: Arc<Route>,
    reply: Reply,
    kept_port: Option<KeptPort>,
    /// Payload bytes forwarded.
    sent: u64,
    received: u64,
    /// Present if the flow is to be written to the connection log.
    trace: Option<Box<Trace>>,
    /// Present if the endpoint sees this node's address.
    ephemeral_port: Option<Permit>,
    /// It is in `ready_flows`, so an event need not queue it again.
    is_queued: bool,
    _descriptor: Option<Permit>,
}

/// The size of a flow without its sockets.
#[cfg(test)]
pub(crate) const LINK_SIZE: usize = size_of::<Link>();

/// The socket from which a flow's replies are sent.
#[derive(Debug)]
enum Reply {
    /// The socket that receives from its client.
    Bound(SlotId),
    /// A socket with the address that the client sends to.
    Captured(Arc<ReplySocket>),
}

impl Link {
    fn is_valid(flow: &Flow<Self>) -> bool {
        flow.upstream.route.keeps_flow(&flow.upstream.lease)
    }

    /// Whether the flow uses one of these addresses of this node.
    fn sends_from(&self, addresses: &[IpAddr]) -> bool {
        !addresses.is_empty() && self.ephemeral_port.is_some() && self.socket.sends_from(addresses)
    }
}

impl UdpRelay {
    /// A relay with these limits and this budget.
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

    /// Counts the clients' datagrams that the kernel has dropped since the last call.
    pub(crate) fn count_drops(&mut self, core: &Core) {
        for id in self.state.frontends.ids() {
            if let Some(frontend) = self.state.frontends.get_mut(id) {
                frontend.count_drops(core);
            }
        }
    }

    /// Accepts nothing new. What clients have sent so far is forwarded, and the replies to it are returned.
    pub(crate) fn stop_accepting(&mut self, core: &mut Core) {
        for id in self.state.frontends.ids() {
            if let Some(frontend) = self.state.frontends.get_mut(id)
                && frontend.closes.is_none()
            {
                if let Err(error) = socket::turn_away(&frontend.socket) {
                    tracing::debug!(%error, "what clients send until a UDP socket is closed may be lost");
                }
                // Replies are sent from another socket, with the frontend's own address.
                if let ListenerKind::Captured(_) = frontend.kind {
                    frontend.closes = Some(core.now + LAST_DATAGRAMS);
                    self.closing += 1;
                }
                self.on_frontend(id, core);
            }
        }
    }

    /// Closes the sockets that are to be closed, once none of their datagrams is left here.
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

    /// Lists some flows, from a slot on. Returns the slot from which to continue, if there may be more.
    pub(crate) fn look(&self, slot: usize, found: &mut Vec<Connection>) -> Option<usize> {
        self.state.flows.look(slot, PART, |flow| found.push(connection(flow)))
    }

    /// Number of flows.
    pub(crate) fn flows(&self) -> usize {
        self.state.flows.len()
    }

    /// Whether sockets, flows or datagrams wait for a turn.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready_frontends.is_empty() || !self.ready_flows.is_empty() || !self.state.waiting.is_empty()
    }

    /// Gives one turn to sockets that wait for one, and ends the turn of the loop.
    pub(crate) fn run_ready(&mut self, slice: Duration, turns: usize, core: &mut Core) {
        // Clients go first, so endpoints that send endlessly do not delay them.
        let until = core.refresh() + slice;
        self.run_frontends(until, turns, core);
        let until = core.refresh() + slice;
        self.run_flows(until, turns, core);
        self.state.serve_waiting(core);
        self.keep_house(core);
    }

    /// Runs at least one turn, until `until` or `turns` is reached. The rest come first the next time.
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

    /// Like [`Self::run_frontends`], for flows.
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

    /// Handles datagrams from clients.
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
                // Does not belong to a datagram. The kernel reports it once.
                Err(_) => core.stats.udp_dropped_error.add(1),
            }
        }
        self.keep_house(core);
        if let Some(frontend) = self.state.frontends.get_mut(id) {
            frontend.is_queued = true;
            self.ready_frontends.push_back(id);
        }
    }

    /// Handles replies or an error from a flow's endpoint. If there is more than a batch, the flow waits in
    /// line, because a turn of the loop may have events of hundreds of flows.
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

    /// Handles an endpoint that cannot be reached, mostly because its port is closed. The client's next
    /// datagram goes to another endpoint. The kernel reports the error before the replies that arrived until
    /// then, so these are read first.
    fn on_refusal(&mut self, id: FlowId, error: &io::Error, core: &mut Core) {
        for _ in 0..BATCHES_PER_TURN {
            let Some(flow) = self.state.flows.flow(id) else { return };
            let client = flow.key().client;
            match flow.upstream.socket.recv(&mut self.received) {
                Ok(_) => self.state.return_replies((id, client), &self.received, core),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Another report of the same kind.
                Err(_) => {}
            }
        }
        if tells_the_client(error) {
            self.state.tell(id, core);
        }
        self.state.refused(id, core);
    }
}

/// The description of a flow for listings.
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
