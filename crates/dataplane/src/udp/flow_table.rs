//! Which flows there are, and which of them must end: all that a worker decides about UDP without
//! looking at a socket or a clock.
//!
//! A flow is one client talking to one service address ([`FlowKey`]); it sticks to the upstream that
//! it was opened with for as long as that is valid. The worker tells what happened and when; the
//! table answers what to do, and hands every flow that ends back, once, with the reason
//! ([`Ended`]): whoever owns sockets closes them by dropping it.
//!
//! * Bounded: at [`FlowLimits::capacity`], a new flow takes the place of the least recently used.
//! * A flow that nobody used for [`FlowLimits::idle`] ends. While the table is more than half full,
//!   an answered one-shot (one datagram each way: most of DNS) ends after
//!   [`FlowLimits::exchange_idle`] already.
//! * A flow ends at once when its endpoint stops serving or its route is gone: seen at the client's
//!   next datagram, or by a [sweep](FlowTable::request_sweep).
//!
//! Every datagram costs one or two look-ups and a few writes, however many flows there are.
//! Everything about one flow happens on its worker's thread.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use super::flow_queue::{Linked, Links, Queue};
use crate::token::{SlotId, Slots};

/// Names a flow for as long as it lives, and nothing afterwards. Fits the worker's tokens.
pub(crate) type FlowId = SlotId;

/// Who talks to which service address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    /// Where the client sends from, and where replies go.
    pub(crate) client: SocketAddr,
    /// Where the client sends to, and where replies must seem to come from.
    pub(crate) destination: SocketAddr,
}

/// Bounds of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowLimits {
    /// Most flows at a time.
    pub(crate) capacity: NonZeroUsize,
    /// How long a flow may be silent, in both directions.
    pub(crate) idle: Duration,
    /// The same for an answered one-shot while the table is more than half full.
    pub(crate) exchange_idle: Duration,
}

/// How long an answered question may be silent under pressure, at most: time enough for a second answer
/// to the same question.
const EXCHANGE_IDLE: Duration = Duration::from_secs(5);

impl FlowLimits {
    pub(crate) fn new(capacity: NonZeroUsize, idle: Duration) -> Self {
        Self { capacity, idle, exchange_idle: idle.min(EXCHANGE_IDLE) }
    }
}

/// A flow, with whatever the worker keeps for it.
#[derive(Debug)]
pub(crate) struct Flow<U> {
    key: FlowKey,
    last_used: Instant,
    datagrams: u64,
    replies: u64,
    /// Where it leads: endpoint, route, socket.
    pub(crate) upstream: U,
}

/// What to do with a client's datagram.
#[derive(Debug)]
pub(crate) enum Action<U> {
    /// Send it to this flow's upstream.
    Forward(FlowId),
    /// Decide where it leads, and call [`FlowTable::opened`] if it leads anywhere. A flow that it
    /// would have belonged to has just ended, its upstream being no longer valid.
    Open(Option<Ended<U>>),
}

/// A flow that is no longer in the table. Dropping it drops what the worker kept for it.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "held to be dropped: that closes the flow's socket"))]
pub(crate) struct Ended<U> {
    pub(crate) id: FlowId,
    pub(crate) flow: Flow<U>,
    pub(crate) cause: Cause,
}

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// Nobody used it for as long as is allowed.
    Idle,
    /// Another flow needed its place, or its file descriptor.
    Evicted,
    /// Its endpoint stopped serving, or its route is gone.
    Gone,
    /// The worker closed it: its socket failed.
    Closed,
    /// The same client opened it again.
    Replaced,
}

/// How many flows there have been, and why they ended. Those that live are the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FlowCounters {
    pub(crate) opened: u64,
    pub(crate) idle: u64,
    pub(crate) evicted: u64,
    pub(crate) gone: u64,
    pub(crate) closed: u64,
    pub(crate) replaced: u64,
}

/// The flows of one worker. See the [module](self).
#[derive(Debug)]
pub(crate) struct FlowTable<U> {
    limits: FlowLimits,
    ids: HashMap<FlowKey, FlowId, foldhash::fast::RandomState>,
    flows: Slots<Entry<U>>,
    queues: Queues,
    /// Uses so far; numbers them, since two may happen at the same instant.
    uses: u64,
    /// The latest time heard of. Time does not go back.
    latest: Option<Instant>,
    /// Flows that the sweep under way has yet to look at.
    unswept: Vec<FlowId>,
    counters: FlowCounters,
}

/// Answered one-shots, and all others, each in the order of their last use: as both kinds have one
/// timeout each, the first of a queue is the first to expire.
#[derive(Debug, Default)]
struct Queues {
    exchanges: Queue,
    others: Queue,
}

#[derive(Debug)]
struct Entry<U> {
    flow: Flow<U>,
    /// Number of its last use.
    used: u64,
    /// Which queue it is in: that of answered one-shots, or the other.
    exchange: bool,
    links: Links,
}

impl<U> FlowTable<U> {
    pub(crate) fn new(limits: FlowLimits) -> Self {
        Self {
            limits,
            ids: HashMap::default(),
            flows: Slots::default(),
            queues: Queues::default(),
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
        let action = match self.flows.get_mut(id) {
            Some(entry) if valid(&entry.flow) => {
                entry.flow.datagrams += count;
                self.used(id, now);
                Action::Forward(id)
            }
            _ => Action::Open(self.end(id, Cause::Gone)),
        };
        self.check();
        action
    }

    /// A flow was opened for `count` datagrams of a client. The flow whose place it takes is to be
    /// closed: at capacity the least recently used, and one with the same key if there is one.
    pub(crate) fn opened(
        &mut self,
        key: FlowKey,
        upstream: U,
        count: u64,
        now: Instant,
    ) -> (FlowId, Option<Ended<U>>) {
        let now = self.observe(now);
        let displaced = match self.ids.get(&key) {
            Some(&id) => self.end(id, Cause::Replaced),
            None if self.len() >= self.capacity() => self.evict(),
            None => None,
        };
        let flow = Flow { key, last_used: now, datagrams: count, replies: 0, upstream };
        let entry = Entry { flow, used: self.next_use(), exchange: false, links: Links::default() };
        let id = self.flows.insert_with(|_| entry);
        self.queues.others.push(&mut self.flows, id);
        self.ids.insert(key, id);
        self.counters.opened += 1;
        self.check();
        (id, displaced)
    }

    /// A flow's upstream sent `count` datagrams, at least one; they go to the client of the flow
    /// returned. None: the flow has ended, and they go nowhere.
    pub(crate) fn on_replies(&mut self, id: FlowId, count: u64, now: Instant) -> Option<&mut Flow<U>> {
        let now = self.observe(now);
        self.flows.get_mut(id)?.flow.replies += count;
        self.used(id, now);
        self.check();
        self.flow(id)
    }

    /// The worker ends a flow.
    pub(crate) fn close(&mut self, id: FlowId) -> Option<Ended<U>> {
        let ended = self.end(id, Cause::Closed);
        self.check();
        ended
    }

    /// Ends the least recently used flow, for its place or its file descriptor.
    pub(crate) fn evict(&mut self) -> Option<Ended<U>> {
        let ended = self.least_recently_used().and_then(|id| self.end(id, Cause::Evicted));
        self.check();
        ended
    }

    /// Ends flows whose time is over, `limit` at most; returns how many. If it returns `limit`, there
    /// may be more, and [`next_deadline`](Self::next_deadline) is in the past.
    ///
    /// The general timeout goes first: flows that it ends may relieve the table so far that the short
    /// one for answered one-shots no longer applies.
    pub(crate) fn expire(&mut self, now: Instant, limit: usize, ended: &mut impl FnMut(Ended<U>)) -> usize {
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
        let idle = self.limits.idle;
        let oldest = self.least_recently_used().and_then(|id| self.deadline(id, idle));
        let exchange = self.hurried().and_then(|id| self.deadline(id, self.limits.exchange_idle));
        // None is later than any deadline: there is no flow, or its end is beyond the clock's.
        [oldest, exchange].into_iter().flatten().min()
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
        ended: &mut impl FnMut(Ended<U>),
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

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
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

    /// Makes a flow the most recently used, in the queue that it belongs to by now.
    fn used(&mut self, id: FlowId, now: Instant) {
        let number = self.next_use();
        let Some(entry) = self.flows.get_mut(id) else { return };
        let before = entry.exchange;
        let after = entry.flow.is_answered_exchange();
        entry.flow.last_used = now;
        entry.used = number;
        entry.exchange = after;
        self.queues.of(before).remove(&mut self.flows, id);
        self.queues.of(after).push(&mut self.flows, id);
    }

    /// Takes a flow out.
    fn end(&mut self, id: FlowId, cause: Cause) -> Option<Ended<U>> {
        let exchange = self.flows.get_mut(id)?.exchange;
        self.queues.of(exchange).remove(&mut self.flows, id);
        let flow = self.flows.remove(id)?.flow;
        self.ids.remove(&flow.key);
        let counter = match cause {
            Cause::Idle => &mut self.counters.idle,
            Cause::Evicted => &mut self.counters.evicted,
            Cause::Gone => &mut self.counters.gone,
            Cause::Closed => &mut self.counters.closed,
            Cause::Replaced => &mut self.counters.replaced,
        };
        *counter += 1;
        Some(Ended { id, flow, cause })
    }

    fn least_recently_used(&mut self) -> Option<FlowId> {
        let heads = [self.queues.exchanges.oldest(), self.queues.others.oldest()];
        heads.into_iter().flatten().min_by_key(|&id| self.flows.get_mut(id).map(|entry| entry.used))
    }

    /// The flow whose time is over by `now`, if there is one.
    fn overdue(&mut self, now: Instant) -> Option<FlowId> {
        let idle = self.limits.idle;
        let oldest = self.least_recently_used()?;
        if self.deadline(oldest, idle).is_some_and(|deadline| deadline <= now) {
            return Some(oldest);
        }
        let exchange = self.hurried()?;
        let deadline = self.deadline(exchange, self.limits.exchange_idle)?;
        (deadline <= now).then_some(exchange)
    }

    /// The first flow to which the short timeout applies: none unless the table is more than half
    /// full.
    fn hurried(&self) -> Option<FlowId> {
        let pressed = self.len() > self.capacity() / 2;
        self.queues.exchanges.oldest().filter(|_| pressed)
    }

    fn deadline(&mut self, id: FlowId, timeout: Duration) -> Option<Instant> {
        self.flow(id)?.last_used.checked_add(timeout)
    }

    /// Panics in debug builds if the table contradicts itself. Sizes after every transition; every
    /// link as well while there are few flows, so that a debug build can still carry many.
    fn check(&mut self) {
        const EVERY_LINK_UP_TO: usize = 64;
        if !cfg!(debug_assertions) {
            return;
        }
        let (len, queues) = (self.len(), &self.queues);
        assert!(len <= self.capacity(), "{len} flows, {} allowed", self.capacity());
        assert_eq!(len, self.ids.len(), "every flow has a key and every key a flow");
        assert_eq!(len, queues.exchanges.len() + queues.others.len(), "every flow is in one queue");
        assert_eq!(len as u64, self.counters.opened - self.counters.ended(), "what opened lives or ended");
        if len > EVERY_LINK_UP_TO {
            return;
        }
        for exchange in [true, false] {
            let walked = self.queues.of(exchange).walk(&mut self.flows);
            assert_eq!(walked.len(), self.queues.of(exchange).len(), "links agree in both directions");
            let mut before = None;
            for id in walked {
                let Some(entry) = self.flows.get_mut(id) else { unreachable!("a walk yields slots in use") };
                assert_eq!(self.ids.get(&entry.flow.key), Some(&id), "a key leads to its flow");
                assert_eq!(entry.exchange, exchange, "a flow is in its queue");
                assert_eq!(exchange, entry.flow.is_answered_exchange(), "its queue is up to date");
                let order = Some((entry.used, entry.flow.last_used));
                assert!(before < order, "a queue is in the order of use");
                assert!(Some(entry.flow.last_used) <= self.latest, "no flow was used in the future");
                before = order;
            }
        }
    }
}

impl<U> Flow<U> {
    pub(crate) fn key(&self) -> FlowKey {
        self.key
    }

    /// One datagram each way, and nothing else.
    fn is_answered_exchange(&self) -> bool {
        self.datagrams == 1 && self.replies == 1
    }
}

impl FlowCounters {
    /// Flows that are no more.
    pub(crate) fn ended(self) -> u64 {
        self.idle + self.evicted + self.gone + self.closed + self.replaced
    }
}

impl Queues {
    fn of(&mut self, exchange: bool) -> &mut Queue {
        if exchange { &mut self.exchanges } else { &mut self.others }
    }
}

impl<U> Linked for Entry<U> {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Three words into the hasher. Not folded into fewer beforehand: clients choose their addresses and
/// ports, and must not be able to choose them so that all land in one place.
impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let bits = |ip| match ip {
            IpAddr::V4(ip) => u128::from(Ipv4Addr::to_bits(ip)),
            IpAddr::V6(ip) => Ipv6Addr::to_bits(ip),
        };
        state.write_u128(bits(self.client.ip()));
        state.write_u128(bits(self.destination.ip()));
        state.write_u32(u32::from(self.client.port()) << 16 | u32::from(self.destination.port()));
    }
}

#[cfg(test)]
mod tests;
