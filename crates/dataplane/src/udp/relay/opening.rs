//! Opens a flow: chooses its endpoint, opens its socket and the socket for its replies, and makes room for
//! them.

use std::net::SocketAddr;
use std::sync::Arc;

use sluice_model::Protocol;
use sluice_table::{FrontendKey, Heard, Loss, Rejection, Route};

use super::super::flow_socket::FlowSocket;
use super::super::flow_table::{FlowId, FlowKey, Lack};
use super::super::kept_ports::KeptPort;
use super::super::replies::ReplySocket;
use super::super::upstream::{self, Connected};
use super::{Link, Reply, State};
use crate::client::{ClientKey, ListenerKind};
use crate::core::Core;
use crate::descriptors::Permit;
use crate::failure;
use crate::token::{SlotId, Source};
use crate::transparent::{Local, Marks};

/// How many older flows may be evicted for one descriptor or port. One is enough, unless another worker takes
/// what it frees.
const EVICTIONS: usize = 4;

/// Why no flow was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotOpened {
    /// No endpoint could be used.
    Unroutable,
    /// The Service's limit is reached.
    OverServiceLimit,
    /// This node lacks a resource, or its rules forbid the flow.
    OfThisNode,
    /// No socket could be opened to reply from.
    NoReplySocket,
}

/// Why a flow has no socket towards an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotConnected {
    /// The endpoint is a frontend of this agent.
    LeadsBack,
    /// This node has no route to it. No datagram was sent, so the endpoint had no part in it.
    NoRoute,
    /// This node lacks a resource, or its rules forbid the flow.
    OfThisNode,
}

/// The shared resources that a flow holds while it is being opened.
#[derive(Debug, Default)]
struct Held {
    descriptor: Option<Permit>,
    ephemeral_port: Option<Permit>,
}

impl NotOpened {
    /// Counts the datagrams that the flow was for.
    pub(super) fn count(self, datagrams: u64, core: &Core) {
        match self {
            Self::Unroutable => core.stats.udp_unroutable.add(datagrams),
            Self::OverServiceLimit => core.stats.udp_over_service_limit.add(datagrams),
            Self::OfThisNode => core.stats.udp_over_limit.add(datagrams),
            Self::NoReplySocket => core.stats.udp_no_reply_socket.add(datagrams),
        }
    }

    /// Whether the client is told, as a TCP client would be by a reset. A client that a rule excludes is not
    /// told, as with kube-proxy.
    pub(super) fn is_told(self) -> bool {
        match self {
            Self::Unroutable => false,
            Self::OverServiceLimit | Self::OfThisNode | Self::NoReplySocket => true,
        }
    }

    fn loss(self) -> Loss {
        match self {
            Self::Unroutable => Loss::NoEndpoint,
            Self::OverServiceLimit => Loss::ServiceLimit,
            Self::OfThisNode | Self::NoReplySocket => Loss::Node,
        }
    }
}

impl From<Rejection> for NotOpened {
    fn from(rejection: Rejection) -> Self {
        if rejection.is_limit() { Self::OverServiceLimit } else { Self::Unroutable }
    }
}

impl State {
    /// Opens a flow to the endpoint that the rules choose.
    pub(super) fn open(
        &mut self,
        key: FlowKey,
        (frontend, kind): (SlotId, ListenerKind),
        count: u64,
        core: &mut Core,
    ) -> Result<FlowId, NotOpened> {
        let destination = key.destination;
        let lookup = FrontendKey::new(destination.ip(), destination.port(), Protocol::Udp);
        let route = Arc::clone(core.reader.lookup(lookup).ok_or(NotOpened::Unroutable)?);
        let opened = self.open_to(&route, key, (frontend, kind), count, core);
        if let Err(why) = opened
            && core.service_times
        {
            route.service_port().datagrams().lost(why.loss(), count);
        }
        opened
    }

    fn open_to(
        &mut self,
        route: &Arc<Route>,
        key: FlowKey,
        (frontend, kind): (SlotId, ListenerKind),
        count: u64,
        core: &mut Core,
    ) -> Result<FlowId, NotOpened> {
        let destination = key.destination;
        let client = kind.client(key.client.ip(), destination.ip());
        let client_key = core.client_key(kind, key.client.ip());
        let selected = match core.recall.endpoint(key) {
            Some(endpoint) => route.select_again(client, endpoint, core.now),
            None => route.select(client, core.now),
        };
        let mut selection = selected.map_err(NotOpened::from)?;
        // First, because a flow that is evicted for the new one may be the last user of the reply socket.
        let reply = match (kind, core.marks) {
            (ListenerKind::Captured(_), Some(marks)) => {
                Reply::Captured(self.reply_socket(key, client_key, marks, core)?)
            }
            _ => Reply::Bound(frontend),
        };
        let mut held = Held::default();
        loop {
            let upstream = selection.next(core.now).ok_or(NotOpened::Unroutable)?;
            let local = Local::new(core.marks, key.client, selection.source_address(&upstream));
            self.take_all(&mut held, client_key, local, core)?;
            let ends = (key.client, upstream.address());
            let (socket, kept_port) = match self.connect(ends, local, core) {
                Ok(connected) => connected,
                Err(NotConnected::LeadsBack) => {
                    selection.fail(&upstream, Heard::Refusal, core.now);
                    continue;
                }
                Err(NotConnected::NoRoute) => {
                    selection.no_route(&upstream, core.now);
                    continue;
                }
                Err(NotConnected::OfThisNode) => return Err(NotOpened::OfThisNode),
            };
            let lease = selection.connected(&upstream, core.now);
            core.recall.opened(key, upstream.address());
            let trace = core.log.as_ref().and_then(|log| log.choose(destination));
            // A port left from a failed attempt is released here.
            let ephemeral_port = held.ephemeral_port.filter(|_| local.client.is_none());
            let link = Link {
                socket,
                lease,
                route: Arc::clone(route),
                reply,
                kept_port,
                sent: 0,
                received: 0,
                trace,
                ephemeral_port,
                is_queued: false,
                _descriptor: held.descriptor,
            };
            return self.begin((key, client_key), link, count, core);
        }
    }

    /// Adds an opened flow to the table, and registers its socket.
    fn begin(
        &mut self,
        (key, client_key): (FlowKey, ClientKey),
        link: Link,
        count: u64,
        core: &mut Core,
    ) -> Result<FlowId, NotOpened> {
        let (has_port, kept_port) = (link.ephemeral_port.is_some(), link.kept_port);
        let (id, displaced) = self.flows.opened(key, client_key, link, has_port, count, core.now);
        core.stats.udp_flows_opened.add(1);
        core.stats.udp_flows_active.add(1);
        self.kept_ports.opened(kept_port);
        self.on_end(displaced, core);
        let token = Source::Flow(id).token();
        if let Some(flow) = self.flows.flow(id)
            && flow.upstream.socket.register(&core.registry, token).is_err()
        {
            self.end(id, core);
            return Err(NotOpened::OfThisNode);
        }
        Ok(id)
    }

    /// The socket from which a frontend's replies to a client are sent.
    fn reply_socket(
        &mut self,
        FlowKey { client, destination: frontend }: FlowKey,
        client_key: ClientKey,
        marks: Marks,
        core: &Core,
    ) -> Result<Arc<ReplySocket>, NotOpened> {
        if let Some(socket) = self.replies.find(frontend, client.ip()) {
            return Ok(socket);
        }
        let permit = self.take(client_key, Lack::Place, core)?;
        self.replies.open(frontend, marks, permit).ok_or(NotOpened::NoReplySocket)
    }

    /// Gives the client of a flow a reply socket of its own for that frontend, after the shared one was full.
    /// A client has at most as many of these as flows, so at most twice its share of descriptors; nothing is
    /// evicted for them. `None`: it has one already or can have none, or the frontend's socket is the one
    /// that receives from clients, because a second one with that address would get a part of what they send.
    pub(super) fn part(&mut self, id: FlowId, core: &Core) -> Option<Arc<ReplySocket>> {
        let marks = core.marks?;
        let flow = self.flows.flow(id)?;
        let FlowKey { client, destination: frontend } = flow.key();
        match &flow.upstream.reply {
            Reply::Captured(reply) if !reply.is_own => {}
            _ => return None,
        }
        let own = match self.replies.find_own(frontend, client.ip()) {
            Some(own) => own,
            None if !self.replies.has_room(frontend) => return None,
            None => {
                let permit = self.budget.of(Lack::Place).take(1)?;
                self.replies.open_own(frontend, client.ip(), marks, permit)?
            }
        };
        flow.upstream.reply = Reply::Captured(Arc::clone(&own));
        Some(own)
    }

    /// Opens a flow's socket, and returns whether it has its client's port.
    fn connect(
        &self,
        (client, endpoint): (SocketAddr, SocketAddr),
        local: Local,
        core: &mut Core,
    ) -> Result<(FlowSocket, Option<KeptPort>), NotConnected> {
        if core.leads_back(endpoint, Protocol::Udp) {
            return Err(NotConnected::LeadsBack);
        }
        let port = local.client.map(|client| KeptPort { client, endpoint });
        let may_keep_port = port.is_some_and(|port| self.kept_ports.is_free(port));
        match upstream::connect(endpoint, local, may_keep_port) {
            Ok(Connected { socket, keeps_port }) => {
                Ok((FlowSocket::new(socket, endpoint), port.filter(|_| keeps_port)))
            }
            Err(error) => {
                if let Some(left_out) = core.says.unstarted.admit(core.now) {
                    tracing::debug!(%client, %endpoint, %error, left_out, "cannot open a flow");
                }
                let is_limit = failure::is_of_this_node(&error);
                Err(if is_limit { NotConnected::OfThisNode } else { NotConnected::NoRoute })
            }
        }
    }

    /// Takes the shared resources that a flow with such a socket needs and does not hold yet.
    fn take_all(
        &mut self,
        held: &mut Held,
        client_key: ClientKey,
        local: Local,
        core: &Core,
    ) -> Result<(), NotOpened> {
        // The port first, because a flow that is evicted for a port frees its descriptor too.
        if local.client.is_none() && held.ephemeral_port.is_none() {
            held.ephemeral_port = Some(self.take(client_key, Lack::Port, core)?);
        }
        if held.descriptor.is_none() {
            held.descriptor = Some(self.take(client_key, Lack::Place, core)?);
        }
        Ok(())
    }

    /// Takes one unit of a shared resource for a new flow. Older flows of this worker may be evicted for it,
    /// but no TCP connection is.
    fn take(&mut self, client_key: ClientKey, lack: Lack, core: &Core) -> Result<Permit, NotOpened> {
        for _ in 0..EVICTIONS {
            if let Some(permit) = self.budget.of(lack).take(1) {
                return Ok(permit);
            }
            let Some(evicted) = self.flows.make_room(client_key, lack, core.now) else { break };
            self.on_end(Some(evicted), core);
        }
        self.budget.of(lack).take(1).ok_or(NotOpened::OfThisNode)
    }
}
