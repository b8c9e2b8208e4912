//! Session affinity: a client keeps its endpoint (`sessionAffinity: ClientIP`).
//!
//! Each service port has one map, shared by all of its frontends. A second map exists only for clients that
//! use both of its sets and keep an endpoint that is in only one of them. Every new connection renews the
//! client's entry. An entry is void once it was idle for the timeout or its endpoint is unusable. If the map
//! is full, the entry that is (nearly) the longest unused is evicted.
//!
//! In socket mode a [`Follower`](crate::Follower) translates this node's clients to the endpoints that they
//! keep. Such a client may have connected since the table last saw it, so the follower is asked before the
//! client is forgotten as idle. The follower is called with the client's entry locked, although this may be a
//! system call: of two workers' notifications about a client, the last one has to match the table, or the
//! client would be translated to one endpoint and relayed to another.
//!
//! Void entries are removed from the head of a queue. Its lock is held to take a few out, but not while they
//! are examined, so no worker waits for another worker's notification.

mod kept;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use dashmap::{DashMap, Entry};

pub use self::kept::Kept;
use crate::follower::{Adopted, Follower, Led, SharedFollower};
use crate::{Client, Upstream};

/// Number of locks in one map: enough that workers seldom contend, few enough that each of thousands of
/// service ports can have a map.
const SHARDS: usize = 8;

/// How many entries get a second chance before one is evicted regardless.
const SECOND_CHANCES: usize = 3;

/// The most by which the time that a worker has read may be behind.
const CLOCKS: Duration = Duration::from_secs(1);

/// How many void entries each new client removes.
const CLEARED_PER_CLIENT: usize = 2;

/// How many entries each new client evicts while all service ports together have too many.
const EVICTED_WHEN_CROWDED: usize = 2;

/// How many entries are taken out of the queue at a time when no connection waits.
const EXAMINED_AT_ONCE: usize = 4;

/// How many entries are examined in one call of [`Affinity::expire`], to leave the thread to others. At one
/// call per second, a full map is examined in a quarter of an hour; new clients remove void entries too.
const EXAMINED_PER_EXPIRY: usize = 1_024;

/// The limits on remembered clients: for each service port, and for all of them together.
///
/// Sources of UDP datagrams may be forged, and one client may have 2^64 IPv6 addresses. So a Service that is
/// flooded fills its map, and several of them would fill the node's memory. While there are too many clients
/// in total, a service port with more than [`SHARE`](Self::SHARE) evicts two for each new one.
#[derive(Debug)]
pub(crate) struct Budget {
    per_port: usize,
    total: usize,
    clients: AtomicUsize,
}

impl Budget {
    /// Number of service ports that may be full at the same time.
    const FULL_PORTS: usize = 2;

    /// Number of clients that a service port may have in any case.
    const SHARE: usize = 1_024;

    pub(crate) fn new(per_port: usize) -> Arc<Self> {
        let per_port = per_port.max(1);
        let total = per_port.saturating_mul(Self::FULL_PORTS);
        Arc::new(Self { per_port, total, clients: AtomicUsize::new(0) })
    }
}

/// The clients of one service port and the endpoints that they keep.
#[derive(Debug)]
pub struct Affinity {
    clients: DashMap<IpAddr, Binding, foldhash::fast::RandomState>,
    /// Every client, in the order of first appearance or, after a second chance, of the latest one. Clients
    /// that a thread has taken out to examine are missing meanwhile.
    queue: Mutex<VecDeque<IpAddr>>,
    budget: Arc<Budget>,
    evicted: AtomicU64,
    /// Translates this node's clients in socket mode.
    follower: ArcSwapOption<Box<dyn Follower>>,
    /// How many clients in the queue were not examined since an endpoint left.
    unlooked: AtomicUsize,
    /// Endpoints that clients keep in one set, while the endpoint that they keep here is only in the other
    /// set. Has no follower.
    apart: OnceLock<Box<Affinity>>,
}

/// The client that asks for an endpoint, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    /// In socket mode, BPF programs may translate the next connections of a client of this node.
    pub(crate) client: Client,
    pub(crate) now: Instant,
}

#[derive(Debug)]
struct Binding {
    upstream: Arc<Upstream>,
    /// The endpoint's [tenure](Upstream::tenure) when it was chosen.
    tenure: u32,
    /// The time of the latest new connection.
    seen: Instant,
    /// Whether there was a new connection since the entry was last at the head of the queue.
    renewed: bool,
    /// The sets in which `told` translates the client.
    led: Led,
    /// The follower that was notified of the client.
    told: Option<SharedFollower>,
}

impl Binding {
    fn new(upstream: Arc<Upstream>, now: Instant) -> Self {
        Self { tenure: upstream.tenure(), upstream, seen: now, renewed: false, led: Led::NOWHERE, told: None }
    }

    /// Notifies the follower of the client's endpoint. From now on, this follower and no other one translates
    /// the client.
    fn tell(&mut self, client: Client, follower: Option<&SharedFollower>) {
        if self.told.as_ref().is_some_and(|told| !follower.is_some_and(|f| Arc::ptr_eq(told, f))) {
            self.untell(client.ip);
        }
        if let Some(follower) = follower {
            self.led = follower.follow(client, &self.upstream, self.led);
            if self.led == Led::NOWHERE {
                self.told = None;
            } else if self.told.is_none() {
                self.told = Some(Arc::clone(follower));
            }
        }
    }

    /// Ends the translation of the client.
    fn untell(&mut self, client: IpAddr) {
        if let Some(told) = self.told.take() {
            told.forget(client, std::mem::take(&mut self.led));
        }
    }

    /// Records that the client was being translated in a set, if it is to be translated to the same endpoint.
    /// Returns whether it is to go on.
    fn adopt(&mut self, adopted: &Adopted<'_>) -> bool {
        // A client without a follower is reported to one at its next connection.
        let Some(told) = &self.told else { return false };
        if !self.led.is_in(adopted.set) {
            if !Arc::ptr_eq(&self.upstream, adopted.upstream) {
                return false;
            }
            told.adopt(adopted.set);
            self.led = self.led.and_in(adopted.set);
        }
        true
    }

    /// Takes account of connections that the follower has translated.
    fn catch_up(&mut self, client: IpAddr, now: Instant) {
        let idle = self.told.as_ref().and_then(|told| told.idle(client, self.led));
        if let Some(led) = idle.and_then(|idle| now.checked_sub(idle)).filter(|led| *led > self.seen) {
            // The follower has a clock of its own, which is ahead of a worker's.
            self.renewed |= led.duration_since(self.seen) > CLOCKS;
            self.seen = led;
        }
    }

    /// Whether the entry is void: it was idle for too long, or its endpoint has left. `timeout` is `None` if
    /// the Service does not have session affinity any more.
    fn is_over(&mut self, client: IpAddr, timeout: Option<Duration>, now: Instant) -> bool {
        if self.tenure != self.upstream.tenure() {
            return true;
        }
        let Some(timeout) = timeout else { return true };
        let is_idle = |seen| now.saturating_duration_since(seen) >= timeout;
        if is_idle(self.seen) {
            self.catch_up(client, now);
        }
        is_idle(self.seen)
    }
}

impl Affinity {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self {
            clients: DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS),
            queue: Mutex::default(),
            budget,
            evicted: AtomicU64::new(0),
            follower: ArcSwapOption::empty(),
            unlooked: AtomicUsize::new(0),
            apart: OnceLock::new(),
        }
    }

    /// Marks all clients as to be examined, because endpoints have left and some entries may be void.
    pub(crate) fn look_at_all(&self) {
        self.unlooked.store(self.queue().len(), Ordering::Relaxed);
        if let Some(apart) = self.apart.get() {
            apart.look_at_all();
        }
    }

    /// Replaces the follower. It is notified of each client of this node at the client's next relayed
    /// connection.
    pub(crate) fn set_follower(&self, follower: Option<SharedFollower>) {
        self.follower.store(follower);
    }

    /// Remembers a client that is already being translated. An entry that is already here takes precedence.
    /// Returns whether the client is to be translated from now on, too.
    pub(crate) fn adopt(&self, adopted: &Adopted<'_>, timeout: Duration, now: Instant) -> bool {
        let Some(follower) = self.follower.load_full() else { return false };
        let Adopted { client, set, upstream, idle } = *adopted;
        match self.clients.entry(client) {
            Entry::Occupied(mut entry) => entry.get_mut().adopt(adopted),
            Entry::Vacant(entry) => {
                follower.adopt(set);
                let seen = now.checked_sub(idle).unwrap_or(now);
                let led = Led::NOWHERE.and_in(set);
                let binding =
                    Binding { led, told: Some(follower), ..Binding::new(Arc::clone(upstream), seen) };
                drop(entry.insert(binding));
                self.enqueue(client, timeout, now);
                true
            }
        }
    }

    /// Returns the client's endpoint: the one that it keeps, if that is still usable, or else a new one. Of
    /// connections that arrive at the same time, the first one chooses for all.
    ///
    /// `is_usable` and `choose` are called with a lock held; they must not block.
    pub(crate) fn pick(
        &self,
        asking: Asking,
        timeout: Duration,
        is_usable: impl Fn(&Arc<Upstream>) -> bool,
        choose: impl FnOnce() -> Option<Arc<Upstream>>,
    ) -> Option<Arc<Upstream>> {
        let Asking { client, now } = asking;
        let follower = if client.origin.is_inside() { self.follower.load_full() } else { None };
        match self.clients.entry(client.ip) {
            Entry::Occupied(mut entry) => {
                let binding = entry.get_mut();
                if binding.is_over(client.ip, Some(timeout), now) || !is_usable(&binding.upstream) {
                    let new = Binding::new(choose()?, now);
                    let (led, told) = (binding.led, binding.told.take());
                    *binding = Binding { led, told, ..new };
                }
                (binding.seen, binding.renewed) = (now, true);
                binding.tell(client, follower.as_ref());
                Some(Arc::clone(&binding.upstream))
            }
            Entry::Vacant(entry) => {
                let upstream = choose()?;
                let mut binding = Binding::new(Arc::clone(&upstream), now);
                binding.tell(client, follower.as_ref());
                drop(entry.insert(binding));
                self.enqueue(client.ip, timeout, now);
                Some(upstream)
            }
        }
    }

    /// Like [`Self::pick`], for a client that may ask for endpoints of either set. If the endpoint that it
    /// keeps is in the other set only (`is_elsewhere`), it keeps that one and gets another one for this set
    /// (kube-proxy: a set of clients for each endpoint).
    pub(crate) fn pick_of_two(
        &self,
        asking: Asking,
        timeout: Duration,
        is_usable: impl Fn(&Arc<Upstream>) -> bool,
        is_elsewhere: impl Fn(&Arc<Upstream>) -> bool,
        choose: impl FnOnce() -> Option<Arc<Upstream>>,
    ) -> Option<Arc<Upstream>> {
        let kept = self.kept(asking, timeout);
        if kept.is_some_and(|upstream| is_elsewhere(&upstream)) {
            let apart = self.apart.get_or_init(|| Box::new(Self::new(Arc::clone(&self.budget))));
            return apart.pick(asking, timeout, is_usable, choose);
        }
        let kept_apart = || self.apart.get()?.kept(asking, timeout).filter(&is_usable);
        self.pick(asking, timeout, &is_usable, || kept_apart().or_else(choose))
    }

    /// The endpoint that a client keeps, whether or not it is usable.
    fn kept(&self, asking: Asking, timeout: Duration) -> Option<Arc<Upstream>> {
        let mut binding = self.clients.get_mut(&asking.client.ip)?;
        let is_over = binding.is_over(asking.client.ip, Some(timeout), asking.now);
        (!is_over).then(|| Arc::clone(&binding.upstream))
    }

    /// Appends a new client to the queue, and makes room for it if necessary.
    fn enqueue(&self, client: IpAddr, timeout: Duration, now: Instant) {
        let is_crowded = self.budget.clients.fetch_add(1, Ordering::Relaxed) >= self.budget.total;
        for _ in 0..CLEARED_PER_CLIENT {
            let Some(oldest) = self.take_oldest() else { break };
            if !self.forget(&oldest, |binding| binding.is_over(oldest, Some(timeout), now)) {
                self.queue().push_front(oldest);
                break;
            }
        }
        let mut surplus = if is_crowded { EVICTED_WHEN_CROWDED } else { 0 };
        let mut chances = SECOND_CHANCES;
        while let Some(oldest) = self.take_surplus_or_put(client, surplus > 0) {
            let is_renewed = |binding: &mut Binding| {
                binding.catch_up(oldest, now);
                std::mem::take(&mut binding.renewed)
            };
            if chances > 0 && self.clients.get_mut(&oldest).is_some_and(|mut b| is_renewed(&mut b)) {
                chances -= 1;
                self.queue().push_back(oldest);
            } else if self.forget(&oldest, |_| true) {
                surplus = surplus.saturating_sub(1);
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Appends a new client to the queue if there is room. Removes and returns the oldest client instead if
    /// there is none, or if there are too many clients in total and more than the share of this port.
    fn take_surplus_or_put(&self, client: IpAddr, are_too_many: bool) -> Option<IpAddr> {
        let mut queue = self.queue();
        let is_surplus = queue.len() >= self.budget.per_port || are_too_many && queue.len() > Budget::SHARE;
        let surplus = if is_surplus { queue.pop_front() } else { None };
        if surplus.is_none() {
            queue.push_back(client);
        }
        surplus
    }

    fn take_oldest(&self) -> Option<IpAddr> {
        self.queue().pop_front()
    }

    /// Removes a client from the map if `is_wanted` holds. Returns whether it was removed.
    fn forget(&self, client: &IpAddr, is_wanted: impl Fn(&mut Binding) -> bool) -> bool {
        let is_gone = self.clients.remove_if_mut(client, |_, binding| {
            let is_wanted = is_wanted(binding);
            if is_wanted {
                // The entry is locked, so no worker can add the client again meanwhile.
                binding.untell(*client);
            }
            is_wanted
        });
        let is_gone = is_gone.is_some();
        if is_gone {
            self.budget.clients.fetch_sub(1, Ordering::Relaxed);
        }
        is_gone
    }

    /// Forgets clients that were idle for the timeout or whose endpoints have left; without a timeout, all
    /// clients. Examines about a thousand entries at the head of the queue. Returns how many were examined.
    pub(crate) fn expire(&self, timeout: Option<Duration>, now: Instant) -> usize {
        let mut examined = 0;
        while examined < EXAMINED_PER_EXPIRY {
            let in_this_hold = self.expire_some(timeout, now);
            examined += in_this_hold;
            if in_this_hold < EXAMINED_AT_ONCE {
                break;
            }
            // Let threads that wait for the queue have it now.
            thread::yield_now();
        }
        examined + self.apart.get().map_or(0, |apart| apart.expire(timeout, now))
    }

    /// Examines a few clients at the head of the queue. A client that was renewed since it was last examined
    /// is moved to the end of the queue. The first other one whose entry is not void ends the pass, because
    /// those behind it are younger. But if endpoints have left, such a client is moved to the end as well
    /// until all were examined, because the ones behind it may have had these endpoints. Returns how many
    /// were examined.
    fn expire_some(&self, timeout: Option<Duration>, now: Instant) -> usize {
        let mut oldest: VecDeque<IpAddr> = {
            let mut queue = self.queue();
            let count = queue.len().min(EXAMINED_AT_ONCE);
            queue.drain(..count).collect()
        };
        let mut unlooked = self.unlooked.load(Ordering::Relaxed);
        let (mut examined, mut kept) = (0, Vec::new());
        while let Some(client) = oldest.pop_front() {
            if !self.forget(&client, |binding| binding.is_over(client, timeout, now)) {
                let is_renewed =
                    self.clients.get_mut(&client).is_some_and(|mut b| std::mem::take(&mut b.renewed));
                if unlooked == 0 && !is_renewed {
                    oldest.push_front(client);
                    break;
                }
                kept.push(client);
            }
            examined += 1;
            unlooked = unlooked.saturating_sub(1);
        }
        let mut queue = self.queue();
        oldest.into_iter().rev().for_each(|client| queue.push_front(client));
        queue.extend(kept);
        // No race with [`Self::look_at_all`]: the table's writer calls both.
        self.unlooked.store(unlooked, Ordering::Relaxed);
        examined
    }

    /// Number of remembered clients. Includes void entries that were not removed yet, and counts clients that
    /// keep two endpoints twice.
    pub fn len(&self) -> usize {
        self.clients.len() + self.apart.get().map_or(0, |apart| apart.len())
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many clients were evicted before their time because there were too many.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed) + self.apart.get().map_or(0, |apart| apart.evicted())
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<IpAddr>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        // The follower is not notified: it knows that the port is gone, and this may run on a worker that
        // ends a session.
        self.budget.clients.fetch_sub(self.clients.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
