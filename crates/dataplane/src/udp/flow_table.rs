//! Which flows there are, and which of them must end: all that a worker decides about UDP without
//! looking at a socket or a clock.
//!
//! A flow is one client talking to one service address ([`FlowKey`]); it sticks to the upstream that
//! it was opened with for as long as that is valid. The worker tells what happened and when; the
//! table answers what to do, and hands every flow that ends back, once, with the reason
//! ([`EndedFlow`]): whoever owns sockets closes them by dropping it.
//!
//! * Bounded: at [`FlowLimits::capacity`], a new flow takes another one's place, and where there is no ephemeral port left
//!   for one, another one's port. Whose, is a matter of who has much of that ([`FlowLimits`]) and of what has passed in
//!   a flow (`flow_class`).
//! * A flow that nobody used for [`Timeouts::idle`] ends; a conversation after [`Timeouts::stream`]. While the
//!   table is more than half full, a conversation has no more time than others, and an answered one-shot
//!   (one datagram each way: most of DNS) ends after [`Timeouts::exchange`] already.
//! * A flow ends at once when its endpoint stops serving or its route is gone: seen at the client's
//!   next datagram, or by a [sweep](FlowTable::request_sweep).
//!
//! Every datagram costs one or two look-ups and a few writes, however many flows there are.
//! Everything about one flow happens on its worker's thread.

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
    /// Decide where it leads, and call [`FlowTable::opened`] if it leads anywhere. A flow that it
    /// would have belonged to has just ended, its upstream being no longer valid.
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
    /// Uses so far; numbers them, since two may happen at the same instant.
    uses: u64,
    /// The latest time heard of. Time does not go back.
    latest: Option<Instant>,
    /// Flows that the sweep under way has yet to look at.
    unswept: Vec<FlowId>,
    counters: FlowCounters,
}

#[derive(Debug)]
struct Entry<U> {
    flow: Flow<U>,
    /// Number of its last use.
    used: u64,
    /// Which queues it is in: among all flows, and among its client's.
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

    /// A client sent `count` datagrams, at least one. `valid` says of their flow, if there is one,
    /// whether its upstream still serves and its route is still there.
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

    /// A flow was opened for `count` datagrams of a client, which counts as `client_key`, with an ephemeral port of the node or without. The flow
    /// whose place it takes is to be closed: at capacity that of [`make_room`](Self::make_room), and one with the same
    /// key if there is one.
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

    /// A flow's upstream sent `count` datagrams, at least one; they go to the client of the flow
    /// returned. None: the flow has ended, and they go nowhere.
    pub(crate) fn on_replies(&mut self, id: FlowId, count: u64, now: Instant) -> Option<&mut Flow<U>> {
        let now = self.observe(now);
        self.used(id, now, |flow| flow.replies += count);
        self.check();
        self.flow(id)
    }

    /// The worker ends a flow.
    pub(crate) fn close(&mut self, id: FlowId) -> Option<EndedFlow<U>> {
        let ended = self.end(id, Cause::Closed);
        self.check();
        ended
    }

    /// Ends a flow that has what a client's new one lacks, if there is one: one of a client that has more than its share
    /// of that, or else the client's own if it has many, or else anybody's. Whose of those, says [`FlowQueues::victim`].
    ///
    /// Ports are so few that one client may have most of them, and in conversations that it keeps up: before anybody
    /// else who has few gives one, that client does.
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

    /// Ends flows whose time is over, `limit` at most; returns how many. If it returns `limit`, there
    /// may be more, and [`next_deadline`](Self::next_deadline) is in the past.
    ///
    /// What is over with or without room goes first: flows that end may relieve the table so far that the shorter
    /// timeouts no longer apply.
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
        // None is later than any deadline: there is no flow, or its end is beyond the clock's.
        Class::ALL
            .into_iter()
            .filter_map(|class| self.first_deadline(class, is_scarce))
            .map(|(at, _)| at)
            .min()
    }

    /// Endpoints or routes have changed: all flows there are must be looked at once. A sweep under way
    /// starts again.
    pub(crate) fn request_sweep(&mut self) {
        self.unswept = self.flows.ids();
    }

    /// Whether a sweep has flows left to look at.
    pub(crate) fn sweep_pending(&self) -> bool {
        !self.unswept.is_empty()
    }

    /// Looks at up to `limit` flows and ends those that are no longer valid.
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

    /// The flow of this name, if it lives.
    pub(crate) fn flow(&mut self, id: FlowId) -> Option<&mut Flow<U>> {
        self.flows.get_mut(id).map(|entry| &mut entry.flow)
    }

    /// Whose a flow is.
    pub(crate) fn client_key(&self, id: FlowId) -> Option<ClientKey> {
        Some(self.clients.get(self.flows.get(id)?.client)?.client_key)
    }

    /// Shows flows, some from a slot on; where to go on, if there may be more.
    pub(crate) fn look(&self, slot: usize, most: usize, mut show: impl FnMut(&Flow<U>)) -> Option<usize> {
        self.flows.look(slot, most, |entry| show(&entry.flow))
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// How many flows have an ephemeral port.
    pub(crate) fn with_port(&self) -> usize {
        self.queues.holders(Lack::Port)
    }

    /// The client that has most of what is lacking, and how much, if it is large.
    pub(crate) fn largest(&self, lack: Lack) -> Option<(ClientKey, usize)> {
        let (id, count) = self.clients.holders(lack).largest()?;
        Some((self.clients.get(id)?.client_key, count))
    }

    /// How many flows there may be.
    pub(crate) fn capacity(&self) -> usize {
        self.limits.capacity.get()
    }

    /// What has been opened and ended so far.
    #[cfg(test)]
    pub(crate) fn counters(&self) -> FlowCounters {
        self.counters
    }

    /// The time to go by: that of the caller, unless it was told a later one before.
    fn observe(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// Counts a use of a flow, which makes it the most recently used, in the queues that it belongs to by now.
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

    /// Takes a flow out.
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

    /// The flow whose time is over by `now`, if there is one.
    fn overdue(&self, now: Instant) -> Option<FlowId> {
        let first = |is_scarce| {
            let overdue = Class::ALL.into_iter().filter_map(|class| self.first_deadline(class, is_scarce));
            let overdue = overdue.filter(|&(deadline, _)| deadline <= now).map(|(_, id)| id);
            overdue.min_by_key(|&id| self.flows.get(id).map(|entry| entry.used))
        };
        first(false).or_else(|| if self.is_scarce() { first(true) } else { None })
    }

    /// Whether more than half of all places are taken.
    fn is_scarce(&self) -> bool {
        self.len() > self.capacity() / 2
    }

    /// The first flow of a class to expire, and when.
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
