//! The flow table: which flows there are, and which of them have to end. It makes all of a worker's decisions
//! about UDP, without access to sockets or a clock.
//!
//! A flow is one client that sends to one Service address ([`FlowKey`]). It keeps the upstream that it was
//! opened with for as long as that is valid. The worker reports what happened and when. The table returns
//! what to do, and returns every flow that ends, once, with the reason ([`EndedFlow`]); dropping that closes
//! the flow's sockets.
//!
//! * The table is bounded. At [`FlowLimits::capacity`], a new flow takes the place of another one; if no
//!   ephemeral port is left, it takes another flow's port. Which flow is evicted depends on how much its
//!   client holds ([`FlowLimits`]) and on the datagrams that have passed (`flow_class`).
//! * A flow ends if it is idle for [`Timeouts::idle`]; a conversation for [`Timeouts::stream`]. While the
//!   table is more than half full, a conversation has no more time than other flows, and an exchange (one
//!   datagram each way, as in most of DNS) ends after [`Timeouts::exchange`].
//! * A flow ends when its endpoint stops serving or its route is gone. This is noticed at the client's next
//!   datagram, or by a [sweep](FlowTable::request_sweep).
//!
//! Every datagram costs one or two look-ups and a few writes, however many flows there are. A flow is handled
//! only on its worker's thread.

use std::collections::HashMap;
use std::time::Instant;

use super::flow_class::{Class, FlowQueues, STREAM_AFTER};
use super::flow_clients::{ClientId, FlowClients};
use super::flow_queue::{Chain, Linked, Links};
use crate::client::ClientKey;
use crate::token::Slots;

pub(crate) use super::flow::{Cause, EndedFlow, Flow, FlowCounters, FlowId};
pub(crate) use super::flow_class::Lack;
pub(crate) use super::flow_key::FlowKey;
pub(crate) use super::flow_limits::FlowLimits;

/// What to do with a client's datagram.
#[derive(Debug)]
pub(crate) enum Action<U> {
    /// Send it to this flow's upstream.
    Forward(FlowId),
    /// Choose an endpoint, and call [`FlowTable::opened`] if there is one. Contains the flow that the
    /// datagram would have belonged to, if it has just ended because its upstream is no longer valid.
    Open(Option<EndedFlow<U>>),
}

/// The flows of one worker. See the [module](self).
#[derive(Debug)]
pub(crate) struct FlowTable<U> {
    limits: FlowLimits,
    ids: HashMap<FlowKey, FlowId, foldhash::fast::RandomState>,
    flows: Slots<Entry<U>>,
    queues: FlowQueues,
    clients: FlowClients,
    /// The number of uses so far. Uses are numbered because several may have the same time.
    uses: u64,
    /// The latest time seen. Time does not go back.
    latest: Option<Instant>,
    /// Flows that the current sweep still has to check.
    unswept: Vec<FlowId>,
    counters: FlowCounters,
}

#[derive(Debug)]
struct Entry<U> {
    flow: Flow<U>,
    /// The number of its last use.
    used: u64,
    /// Its class and its client determine the queues that it is in.
    class: Class,
    client: ClientId,
    links: Links,
    client_links: Links,
}

impl<U> FlowTable<U> {
    pub(crate) fn new(limits: FlowLimits) -> Self {
        Self {
            limits,
            ids: HashMap::default(),
            flows: Slots::default(),
            queues: FlowQueues::new(Chain::Table),
            clients: FlowClients::new(&limits),
            uses: 0,
            latest: None,
            unswept: Vec::new(),
            counters: FlowCounters::default(),
        }
    }

    /// Records that a client sent `count` datagrams, at least one. `valid` returns whether the upstream of
    /// their flow, if there is one, still serves and its route still exists.
    pub(crate) fn on_client_datagrams(
        &mut self,
        key: FlowKey,
        count: u64,
        now: Instant,
        valid: impl Fn(&Flow<U>) -> bool,
    ) -> Action<U> {
        let now = self.observe(now);
        let Some(&id) = self.ids.get(&key) else { return Action::Open(None) };
        let action = match self.flows.get(id) {
            Some(entry) if valid(&entry.flow) => {
                self.used(id, now, |flow| flow.datagrams += count);
                Action::Forward(id)
            }
            _ => Action::Open(self.end(id, Cause::Gone)),
        };
        self.check();
        action
    }

    /// Records a flow that was opened for `count` datagrams of a client. `client_key` is the client that the
    /// flow counts for; `has_port` is whether the flow has an ephemeral port of the node. Returns the flow
    /// that it replaced: one with the same key or, at capacity, the one that [`make_room`](Self::make_room)
    /// evicted.
    pub(crate) fn opened(
        &mut self,
        key: FlowKey,
        client_key: ClientKey,
        upstream: U,
        has_port: bool,
        count: u64,
        now: Instant,
    ) -> (FlowId, Option<EndedFlow<U>>) {
        let now = self.observe(now);
        let displaced = match self.ids.get(&key) {
            Some(&id) => self.end(id, Cause::Replaced),
            None if self.len() >= self.capacity() => self.make_room(client_key, Lack::Place, now),
            None => None,
        };
        let client = self.clients.found_or_new(client_key);
        let flow = Flow {
            key,
            opened: now,
            last_used: now,
            datagrams: count,
            replies: 0,
            is_stream: false,
            has_port,
            upstream,
        };
        let (class, used) = (flow.class(), self.next_use());
        let entry =
            Entry { flow, used, class, client, links: Links::default(), client_links: Links::default() };
        let id = self.flows.insert_with(|_| entry);
        self.queues.of_mut(has_port).push(class, &mut self.flows, id);
        if let Some(client) = self.clients.get_mut(client) {
            client.queues.of_mut(has_port).push(class, &mut self.flows, id);
        }
        self.clients.changed(client);
        self.ids.insert(key, id);
        self.counters.opened += 1;
        self.check();
        (id, displaced)
    }

    /// Records that a flow's upstream sent `count` datagrams, at least one. Returns the flow, whose client
    /// gets them; `None` if the flow has ended, and they are dropped.
    pub(crate) fn on_replies(&mut self, id: FlowId, count: u64, now: Instant) -> Option<&mut Flow<U>> {
        let now = self.observe(now);
        self.used(id, now, |flow| flow.replies += count);
        self.check();
        self.flow(id)
    }

    /// Ends a flow at the worker's request.
    pub(crate) fn close(&mut self, id: FlowId) -> Option<EndedFlow<U>> {
        let ended = self.end(id, Cause::Closed);
        self.check();
        ended
    }

    /// Evicts a flow that holds the resource that a client's new flow lacks, if there is one: a flow of a
    /// client above its share, or else of the client itself if it is large, or else of any client.
    /// [`FlowQueues::victim`] chooses among the flows.
    ///
    /// Ports are few, so one client may have most of them, in conversations that it keeps up. So if none of
    /// the above holds, the largest client gives up a port before clients that have few.
    pub(crate) fn make_room(
        &mut self,
        client_key: ClientKey,
        lack: Lack,
        now: Instant,
    ) -> Option<EndedFlow<U>> {
        let now = self.observe(now);
        let own = self.clients.find(client_key);
        let holders = self.clients.holders(lack);
        let over_share = holders.over_share(own);
        let large = own.filter(|&id| holders.is_large(id));
        let last_use = |id| self.flows.get(id).map(|entry| (entry.used, entry.flow.last_used));
        let of_client = |id| self.clients.get(id)?.queues.victim(lack, now, &last_use);
        let victim = match (over_share.or(large), holders.largest().filter(|_| lack == Lack::Port)) {
            (Some(client), _) => of_client(client),
            (None, Some((client, _))) => {
                self.queues.finished(lack, now, &last_use).or_else(|| of_client(client))
            }
            (None, None) => self.queues.victim(lack, now, &last_use),
        };
        let cause = match lack {
            Lack::Port => Cause::EvictedForPort,
            Lack::Place if over_share.is_some() => Cause::OverShare,
            Lack::Place => Cause::Evicted,
        };
        let ended = victim.and_then(|id| self.end(id, cause));
        self.check();
        ended
    }

    /// Ends flows that have expired, at most `limit`. Returns how many. If it returns `limit`, there may be
    /// more, and [`next_deadline`](Self::next_deadline) is in the past.
    ///
    /// Flows that have expired by the longer timeouts end first, because that may free so much of the table
    /// that the shorter ones no longer apply.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        limit: usize,
        ended: &mut impl FnMut(EndedFlow<U>),
    ) -> usize {
        let now = self.observe(now);
        let mut count = 0;
        while count < limit {
            let Some(flow) = self.overdue(now).and_then(|id| self.end(id, Cause::Idle)) else { break };
            ended(flow);
            count += 1;
        }
        self.check();
        count
    }

    /// When the next flow expires if nothing happens until then.
    #[cfg(test)]
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        let is_scarce = self.is_scarce();
        // `None` is not a later deadline: it means that there is no flow, or that its end exceeds the clock's
        // range.
        Class::ALL
            .into_iter()
            .filter_map(|class| self.first_deadline(class, is_scarce))
            .map(|(at, _)| at)
            .min()
    }

    /// Requests that all current flows are checked once, because endpoints or routes have changed. Restarts a
    /// sweep that is in progress.
    pub(crate) fn request_sweep(&mut self) {
        self.unswept = self.flows.ids();
    }

    /// Whether the sweep has flows left to check.
    pub(crate) fn sweep_pending(&self) -> bool {
        !self.unswept.is_empty()
    }

    /// Checks up to `limit` flows, and ends those that are no longer valid.
    pub(crate) fn sweep(
        &mut self,
        limit: usize,
        valid: impl Fn(&Flow<U>) -> bool,
        ended: &mut impl FnMut(EndedFlow<U>),
    ) {
        for _ in 0..limit {
            let Some(id) = self.unswept.pop() else { break };
            if self.flow(id).is_some_and(|flow| !valid(flow))
                && let Some(flow) = self.end(id, Cause::Gone)
            {
                ended(flow);
            }
        }
        self.check();
    }

    /// The flow with this id, if it exists.
    pub(crate) fn flow(&mut self, id: FlowId) -> Option<&mut Flow<U>> {
        self.flows.get_mut(id).map(|entry| &mut entry.flow)
    }

    /// The client that a flow counts for.
    pub(crate) fn client_key(&self, id: FlowId) -> Option<ClientKey> {
        Some(self.clients.get(self.flows.get(id)?.client)?.client_key)
    }

    /// Shows some flows, from a slot on. Returns the slot from which to continue, if there may be more.
    pub(crate) fn look(&self, slot: usize, most: usize, mut show: impl FnMut(&Flow<U>)) -> Option<usize> {
        self.flows.look(slot, most, |entry| show(&entry.flow))
    }

    /// Number of flows.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Number of flows with an ephemeral port.
    pub(crate) fn with_port(&self) -> usize {
        self.queues.holders(Lack::Port)
    }

    /// The client that holds most of a resource, and how much, if it is large.
    pub(crate) fn largest(&self, lack: Lack) -> Option<(ClientKey, usize)> {
        let (id, count) = self.clients.holders(lack).largest()?;
        Some((self.clients.get(id)?.client_key, count))
    }

    /// The maximum number of flows.
    pub(crate) fn capacity(&self) -> usize {
        self.limits.capacity.get()
    }

    /// How many flows were opened, and how many ended for each reason.
    #[cfg(test)]
    pub(crate) fn counters(&self) -> FlowCounters {
        self.counters
    }

    /// The time to use: the caller's, unless an earlier call had a later one.
    fn observe(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// Records a use of a flow: it becomes the most recently used one, in the queues that its class now calls
    /// for.
    fn used(&mut self, id: FlowId, now: Instant, count: impl FnOnce(&mut Flow<U>)) {
        let number = self.next_use();
        let Some(entry) = self.flows.get_mut(id) else { return };
        let flow = &mut entry.flow;
        let was_answered = flow.replies > 0;
        count(flow);
        flow.is_stream |= was_answered && now.saturating_duration_since(flow.opened) >= STREAM_AFTER;
        flow.last_used = now;
        entry.used = number;
        let classes = (entry.class, flow.class());
        entry.class = classes.1;
        let (client, has_port) = (entry.client, entry.flow.has_port);
        self.queues.of_mut(has_port).requeue(classes, &mut self.flows, id);
        if let Some(client) = self.clients.get_mut(client) {
            client.queues.of_mut(has_port).requeue(classes, &mut self.flows, id);
        }
    }

    /// Removes a flow.
    fn end(&mut self, id: FlowId, cause: Cause) -> Option<EndedFlow<U>> {
        let entry = self.flows.get(id)?;
        let (class, client, has_port) = (entry.class, entry.client, entry.flow.has_port);
        self.queues.of_mut(has_port).remove(class, &mut self.flows, id);
        if let Some(client) = self.clients.get_mut(client) {
            client.queues.of_mut(has_port).remove(class, &mut self.flows, id);
        }
        self.clients.changed(client);
        let flow = self.flows.remove(id)?.flow;
        self.ids.remove(&flow.key);
        *self.counters.of_mut(cause) += 1;
        Some(EndedFlow { id, flow, cause })
    }

    /// A flow that has expired by `now`, if there is one.
    fn overdue(&self, now: Instant) -> Option<FlowId> {
        let first = |is_scarce| {
            let overdue = Class::ALL.into_iter().filter_map(|class| self.first_deadline(class, is_scarce));
            let overdue = overdue.filter(|&(deadline, _)| deadline <= now).map(|(_, id)| id);
            overdue.min_by_key(|&id| self.flows.get(id).map(|entry| entry.used))
        };
        first(false).or_else(|| if self.is_scarce() { first(true) } else { None })
    }

    /// Whether more than half of the places are taken.
    fn is_scarce(&self) -> bool {
        self.len() > self.capacity() / 2
    }

    /// The first flow of a class to expire, with the time.
    fn first_deadline(&self, class: Class, is_scarce: bool) -> Option<(Instant, FlowId)> {
        let last_use = |id| self.flows.get(id).map(|entry| (entry.used, entry.flow.last_used));
        let id = self.queues.oldest(class, Lack::Place, &last_use)?;
        let timeout = self.limits.timeouts.of(class, is_scarce);
        let deadline = self.flows.get(id)?.flow.last_used.checked_add(timeout)?;
        Some((deadline, id))
    }
}

impl<U> Linked for Entry<U> {
    fn links(&mut self, chain: Chain) -> &mut Links {
        match chain {
            Chain::Table => &mut self.links,
            Chain::Client => &mut self.client_links,
        }
    }
}

mod check;
#[cfg(test)]
mod tests;
