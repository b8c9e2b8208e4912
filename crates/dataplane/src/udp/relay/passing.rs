//! Forwards datagrams through flows: from clients to endpoints, and back.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use sluice_sys::udp::{Datagram, RecvBatch, SendBatch};
use sluice_table::Loss;

use super::super::flow_table::{Action, FlowId, FlowKey};
use super::groups::Group;
use super::{Link, Reply, State};
use crate::client::{ClientKey, ListenerKind};
use crate::core::Core;
use crate::failure;
use crate::token::SlotId;

/// The outcome of forwarding a client's datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// They were sent, or counted as lost.
    Counted,
    /// The flow was unusable and has ended. The datagrams that were not sent are in the batch, and counted
    /// nowhere.
    Ended,
}

/// Why a flow is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    /// The endpoint refuses.
    Endpoint,
    /// The route or the local address that the flow's socket needs is gone.
    OfThisNode,
}

impl Hindrance {
    /// Returns why the flow is unusable, if an error of a single datagram means that, and not only that the
    /// datagram is lost. The kernel does not send from an IPv4 address that is not its own; depending on its
    /// version, it returns EINVAL or ENETUNREACH. (An ICMP message may cause the latter too, but is mostly
    /// reported by an event.)
    fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::CONNREFUSED) => Some(Self::Endpoint),
            Some(Errno::ADDRNOTAVAIL) => Some(Self::OfThisNode),
            _ => failure::is_about_the_route(error).then_some(Self::OfThisNode),
        }
    }
}

impl State {
    /// Forwards what clients have sent to their flows' endpoints.
    pub(super) fn forward(&mut self, frontend: SlotId, received: &RecvBatch, core: &mut Core) {
        let Some((address, kind)) = self.frontends.get_mut(frontend).map(|f| (f.address, f.kind)) else {
            return;
        };
        let mut groups = std::mem::take(&mut self.groups);
        groups.begin(received, address);
        while let Some((key, group)) = groups.next() {
            self.forward_group(key, (frontend, kind), group, received, core);
        }
        self.groups = groups;
    }

    /// Forwards what one client has sent to one address, or queues it until a flow may be opened for it.
    fn forward_group(
        &mut self,
        key: FlowKey,
        (frontend, kind): (SlotId, ListenerKind),
        group: Group,
        received: &RecvBatch,
        core: &mut Core,
    ) {
        let mut run = SendBatch::new();
        let count = fill(&mut run, None, group.filter_map(|place| received.get(place)), core);
        core.stats.udp_datagrams_in.add(count);
        let own = self.frontends.get_mut(frontend).map(|frontend| frontend.address);
        if own.is_some_and(|own| kind.is_bypassed(own, key.destination)) {
            core.stats.udp_not_captured.add(count);
            return;
        }
        if run.is_empty() {
            return;
        }
        let from = (frontend, kind);
        if self.waiting.holds(&key) {
            return self.wait(key, from, group, received, core);
        }
        let flow = self.flow_of(key, count, core);
        if flow.is_none() && self.must_wait(core.client_key(kind, key.client.ip())) {
            return self.wait(key, from, group, received, core);
        }
        if self.pass(flow, key, from, &mut run, count, core) == Passed::Ended {
            if self.must_wait(core.client_key(kind, key.client.ip())) {
                return self.wait_with(key, from, run.payloads(), core);
            }
            self.pass_elsewhere(key, from, &mut run, core);
        }
    }

    /// Forwards what has waited, now that a flow may be opened for it.
    pub(super) fn forward_waited(
        &mut self,
        key: FlowKey,
        from: (SlotId, ListenerKind),
        run: &mut SendBatch<'_>,
        count: u64,
        core: &mut Core,
    ) {
        if run.is_empty() {
            return;
        }
        let flow = self.flow_of(key, count, core);
        if self.pass(flow, key, from, run, count, core) == Passed::Ended {
            self.pass_elsewhere(key, from, run, core);
        }
    }

    /// Sends a client's datagrams through their flow; opens one if there is none.
    fn pass(
        &mut self,
        flow: Option<FlowId>,
        key: FlowKey,
        from: (SlotId, ListenerKind),
        run: &mut SendBatch<'_>,
        count: u64,
        core: &mut Core,
    ) -> Passed {
        match flow {
            Some(id) => self.send(id, from.0, run, core),
            None => self.open_and_send(key, from, run, count, core),
        }
    }

    /// Sends the rest of a batch through a new flow, after its flow was found to be unusable because of an
    /// earlier datagram. If its endpoint refused, the new flow goes to another one. Done once.
    fn pass_elsewhere(
        &mut self,
        key: FlowKey,
        from: (SlotId, ListenerKind),
        run: &mut SendBatch<'_>,
        core: &mut Core,
    ) {
        let left = run.datagrams() as u64;
        if self.open_and_send(key, from, run, left, core) == Passed::Ended {
            core.stats.udp_dropped_error.add(run.datagrams() as u64);
        }
    }

    /// The flow of a client's datagrams, if there is a valid one.
    fn flow_of(&mut self, key: FlowKey, count: u64, core: &Core) -> Option<FlowId> {
        match self.flows.on_client_datagrams(key, count, core.now, Link::is_valid) {
            Action::Forward(id) => Some(id),
            Action::Open(ended) => {
                self.on_end(ended, core);
                None
            }
        }
    }

    fn open_and_send(
        &mut self,
        key: FlowKey,
        from: (SlotId, ListenerKind),
        run: &mut SendBatch<'_>,
        count: u64,
        core: &mut Core,
    ) -> Passed {
        self.opened += 1;
        match self.open(key, from, count, core) {
            Ok(id) => self.send(id, from.0, run, core),
            Err(why) => {
                why.count(count, core);
                if why.is_told() {
                    self.refuse(key, core.client_key(from.1, key.client.ip()), core);
                }
                Passed::Counted
            }
        }
    }

    /// Sends a client's datagrams to the endpoint of their flow, until the flow is found to be unusable.
    fn send(&mut self, id: FlowId, frontend: SlotId, run: &mut SendBatch<'_>, core: &mut Core) -> Passed {
        let Some(flow) = self.flows.flow(id) else { return Passed::Counted };
        let link = &mut flow.upstream;
        if let Reply::Bound(at) = &mut link.reply {
            *at = frontend;
        }
        let mut hindrance = None;
        let mut failed = 0;
        let sent = link.socket.send(run, |_, error| {
            hindrance = Hindrance::of(&error);
            if hindrance.is_some() {
                return ControlFlow::Break(());
            }
            failed += 1;
            ControlFlow::Continue(())
        });
        let full = if hindrance.is_some() { 0 } else { sent.left as u64 };
        link.sent += sent.bytes as u64;
        link.lease.stats().bytes_to_endpoint.fetch_add(sent.bytes as u64, Ordering::Relaxed);
        if core.service_times {
            let datagrams = link.route.service_port().datagrams();
            datagrams.forwarded(sent.datagrams as u64);
            datagrams.lost(Loss::Full, full);
            datagrams.lost(Loss::Error, failed);
        }
        core.stats.udp_datagrams_forwarded.add(sent.datagrams as u64);
        core.stats.udp_dropped_full.add(full);
        core.stats.udp_dropped_error.add(failed);
        match hindrance {
            None => return Passed::Counted,
            Some(Hindrance::Endpoint) => self.refused(id, core),
            Some(Hindrance::OfThisNode) => self.end(id, core),
        }
        Passed::Ended
    }

    /// Returns an endpoint's replies to the flow's client, from the address that the client uses.
    pub(super) fn return_replies(
        &mut self,
        (id, client): (FlowId, SocketAddr),
        received: &RecvBatch,
        core: &mut Core,
    ) {
        let mut replies = SendBatch::new();
        let count = fill(&mut replies, Some(client), received.iter(), core);
        if replies.is_empty() {
            return;
        }
        let Some(mut flow) = self.flows.on_replies(id, count, core.now) else { return };
        let socket = match &flow.upstream.reply {
            Reply::Bound(at) => self.frontends.get_mut(*at).map(|at| (at.socket.as_fd(), &at.joining)),
            Reply::Captured(reply) => Some((reply.socket.as_fd(), &reply.joining)),
        };
        let Some((socket, joining)) = socket.filter(|_| Link::is_valid(flow)) else {
            return self.end(id, core);
        };
        let mut failed = 0;
        let mut pass_over = |_, _| {
            failed += 1;
            ControlFlow::Continue(())
        };
        let mut sent = replies.send_joined(socket, joining, &mut pass_over);
        if sent.left > 0 {
            if let Some(own) = self.part(id, core) {
                let rest = replies.send_joined(&own.socket, &own.joining, &mut pass_over);
                sent.datagrams += rest.datagrams;
                sent.bytes += rest.bytes;
                sent.left = rest.left;
            }
            match self.flows.flow(id) {
                Some(same) => flow = same,
                None => return,
            }
        }
        flow.upstream.received += sent.bytes as u64;
        flow.upstream.lease.answered();
        flow.upstream.lease.stats().bytes_from_endpoint.fetch_add(sent.bytes as u64, Ordering::Relaxed);
        if core.service_times {
            let datagrams = flow.upstream.route.service_port().datagrams();
            datagrams.returned(sent.datagrams as u64);
            datagrams.lost(Loss::Full, sent.left as u64);
            datagrams.lost(Loss::Error, failed);
        }
        core.stats.udp_datagrams_returned.add(sent.datagrams as u64);
        core.stats.udp_dropped_full.add(sent.left as u64);
        core.stats.udp_dropped_error.add(failed);
    }

    /// Tells a flow's client that its endpoint refuses and that its datagrams are lost.
    pub(super) fn tell(&mut self, id: FlowId, core: &Core) {
        if let Some(client_key) = self.flows.client_key(id)
            && let Some(flow) = self.flows.flow(id)
        {
            let key = flow.key();
            self.refuse(key, client_key, core);
        }
    }

    /// Tells a client that its datagrams are lost, within the rate limit.
    fn refuse(&mut self, key: FlowKey, client_key: ClientKey, core: &Core) {
        if self.refusals.send(key, client_key, core.marks, core.now) {
            core.stats.udp_refusals.add(1);
        }
    }

    /// Ends a flow whose endpoint cannot be reached.
    pub(super) fn refused(&mut self, id: FlowId, core: &Core) {
        if let Some(flow) = self.flows.flow(id) {
            flow.upstream.lease.refused(core.now);
        }
        self.end(id, core);
    }
}

/// Adds received datagrams to a batch, to be sent to this address or to the peer of a connected socket.
/// Returns how many there are. Truncated ones are left out and counted.
fn fill<'a>(
    batch: &mut SendBatch<'a>,
    destination: Option<SocketAddr>,
    datagrams: impl Iterator<Item = Datagram<'a>>,
    core: &Core,
) -> u64 {
    let mut count = 0;
    for datagram in datagrams {
        if datagram.truncated || batch.push(datagram.payload, destination).is_err() {
            core.stats.udp_dropped_error.add(1);
        } else {
            count += datagram.payload.datagrams() as u64;
        }
    }
    count
}
