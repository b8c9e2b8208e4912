//! Session affinity: a client keeps its endpoint (`sessionAffinity: ClientIP`).
//!
//! One map for each service port, so all of its addresses share it; and another one for clients that ask for endpoints of
//! both of its sets, and keep one that only one of them has. An entry is renewed by every new
//! connection, is worth nothing once it was idle for the timeout or its endpoint cannot be used, and
//! is forgotten at the latest when the map is full and it is the one unseen for longest, or nearly.
//!
//! Where connections are decided at clients' sockets somebody [follows](crate::Follower) what is remembered here of this
//! node's clients. So they may have connected since they were last seen: before one is forgotten as idle it is asked. Who follows is
//! told with the client's entry locked, though that may be a system call: of what two workers say of a client the last has to
//! be what is known here, or it would be led to one endpoint and relayed to another.
//!
//! Entries that are worth nothing are cleared away from the head of a queue. Its lock is held to take a few out, and not while
//! they are looked at: no worker waits for what another one tells.

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

/// Locks of one map: enough that workers seldom meet, few enough that thousands of service ports
/// can have a map each.
const SHARDS: usize = 8;

/// How many entries get a second chance before one is evicted all the same.
const SECOND_CHANCES: usize = 3;

/// What a clock that a worker has read may be behind at the most.
const CLOCKS: Duration = Duration::from_secs(1);

/// How many entries that are worth nothing each new client clears away.
const CLEARED_PER_CLIENT: usize = 2;

/// How many are evicted for a new client while the service ports together have too many.
const EVICTED_WHEN_CROWDED: usize = 2;

/// How many entries are taken out of the queue at a time when nobody waits for a connection.
const EXAMINED_AT_ONCE: usize = 4;

/// How many are looked at each time, to leave the thread to others. A full map is through in a
/// quarter of an hour if that is once a second; where new clients come each clears away some, too.
const EXAMINED_PER_EXPIRY: usize = 1_024;

/// How many clients all service ports remember, and how many one may.
///
/// Sources of UDP datagrams may be made up, and one client may have 2^64 IPv6 addresses: so a Service that is
/// flooded fills its map, and several of them would fill the node's memory. While there are too many in total
/// a service port that has more than [`SHARE`](Self::SHARE) loses two for each that comes.
#[derive(Debug)]
pub(crate) struct Budget {
    per_port: usize,
    total: usize,
    clients: AtomicUsize,
}

impl Budget {
    /// Service ports that may be full at the same time.
    const FULL_PORTS: usize = 2;

    /// What a service port may have in any case.
    const SHARE: usize = 1_024;

    pub(crate) fn new(per_port: usize) -> Arc<Self> {
        let per_port = per_port.max(1);
        let total = per_port.saturating_mul(Self::FULL_PORTS);
        Arc::new(Self { per_port, total, clients: AtomicUsize::new(0) })
    }
}

/// The endpoints that clients of one service port keep.
#[derive(Debug)]
pub struct Affinity {
    clients: DashMap<IpAddr, Binding, foldhash::fast::RandomState>,
    /// Every client, in the order of first or, after a second chance, later appearance; but for those that somebody has
    /// taken out, who looks whether they are to be forgotten.
    queue: Mutex<VecDeque<IpAddr>>,
    budget: Arc<Budget>,
    evicted: AtomicU64,
    /// Who is told of this node's clients.
    follower: ArcSwapOption<Box<dyn Follower>>,
    /// How many in the queue have not been looked at since an endpoint left.
    unlooked: AtomicUsize,
    /// What clients keep in one set while what they keep here is in the other set only. Nobody follows it.
    apart: OnceLock<Box<Affinity>>,
}

/// Who asks for an endpoint, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    /// The next connections of one of this node may be decided at their sockets.
    pub(crate) client: Client,
    pub(crate) now: Instant,
}

#[derive(Debug)]
struct Binding {
    upstream: Arc<Upstream>,
    /// The endpoint's [tenure](Upstream::tenure) when it was chosen.
    tenure: u32,
    /// The latest new connection.
    seen: Instant,
    /// Whether there was one since it last stood at the head of the queue.
    renewed: bool,
    /// Where those lead it who follow it.
    led: Led,
    /// Who follows it.
    told: Option<SharedFollower>,
}

impl Binding {
    fn new(upstream: Arc<Upstream>, now: Instant) -> Self {
        Self { tenure: upstream.tenure(), upstream, seen: now, renewed: false, led: Led::NOWHERE, told: None }
    }

    /// Has the client be led to the endpoint from now on, by these and no others.
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

    /// Has nobody lead the client any more.
    fn untell(&mut self, client: IpAddr) {
        if let Some(told) = self.told.take() {
            told.forget(client, std::mem::take(&mut self.led));
        }
    }

    /// Takes note that the client has been led all the time, as far as that is to where it is to be led. Whether it is.
    fn adopt(&mut self, adopted: &Adopted<'_>) -> bool {
        // Whom nobody leads is told of with the next connection.
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

    /// Learns of connections that others have led.
    fn catch_up(&mut self, client: IpAddr, now: Instant) {
        let idle = self.told.as_ref().and_then(|told| told.idle(client, self.led));
        if let Some(led) = idle.and_then(|idle| now.checked_sub(idle)).filter(|led| *led > self.seen) {
            // Who is told has a clock of its own, which is ahead of a worker's.
            self.renewed |= led.duration_since(self.seen) > CLOCKS;
            self.seen = led;
        }
    }

    /// Whether it is worth nothing any more: it was idle for too long, or its endpoint has left. One
    /// without a timeout is of a Service that has no affinity any more.
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

    /// Endpoints have left: of all clients that there are now some may be worth nothing any more.
    pub(crate) fn look_at_all(&self) {
        self.unlooked.store(self.queue().len(), Ordering::Relaxed);
        if let Some(apart) = self.apart.get() {
            apart.look_at_all();
        }
    }

    /// From now on somebody else, or nobody, is told of clients of this node; of each with its next connection that comes here.
    pub(crate) fn set_follower(&self, follower: Option<SharedFollower>) {
        self.follower.store(follower);
    }

    /// Remembers a client that is already led. What is known of it here counts for more. Whether it is led from now on, too.
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

    /// The client's endpoint: the one that it has, if that is still usable, else a new one. Of
    /// connections that arrive at the same time the first one chooses for all.
    ///
    /// `is_usable` and `choose` are called with a lock held; they must not wait for anything.
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

    /// The same where a client may ask for an endpoint of one set now and of another one then: what it keeps and
    /// `is_elsewhere`, in the other set only, it goes on keeping there (kube-proxy: a set of clients for each endpoint).
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

    /// Makes room in the queue for a new client, and puts it there.
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

    /// Puts a new client into the queue if there is room. Where there is not, or there are too many in all and more than this
    /// port's share here, it takes the oldest one out instead.
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

    /// Takes a client out of the map, if that is what is wanted; whether it is not there any more.
    fn forget(&self, client: &IpAddr, is_wanted: impl Fn(&mut Binding) -> bool) -> bool {
        let is_gone = self.clients.remove_if_mut(client, |_, binding| {
            let is_wanted = is_wanted(binding);
            if is_wanted {
                // While nobody can remember the client anew.
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

    /// Forgets clients that were idle for the timeout or whose endpoints have left: those at the head of the
    /// queue, and no more than a thousand at a time. Without a timeout, any. Returns how many were looked at.
    pub(crate) fn expire(&self, timeout: Option<Duration>, now: Instant) -> usize {
        let mut examined = 0;
        while examined < EXAMINED_PER_EXPIRY {
            let in_this_hold = self.expire_some(timeout, now);
            examined += in_this_hold;
            if in_this_hold < EXAMINED_AT_ONCE {
                break;
            }
            // Who waits for the queue is to have it now.
            thread::yield_now();
        }
        examined + self.apart.get().map_or(0, |apart| apart.expire(timeout, now))
    }

    /// Looks at a few. One that has been renewed since it was last looked at goes to the end of the queue; the
    /// first of the others that is still worth something ends it, as those behind it are younger. But where endpoints have
    /// left since, it goes to the end as well, until all have been looked at: those behind may have been theirs. Returns how
    /// many were looked at.
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
        // Who says that endpoints have left is on this thread, too: the table's writer.
        self.unlooked.store(unlooked, Ordering::Relaxed);
        examined
    }

    /// How many clients are remembered, counting those whose time is over and who were not cleared
    /// away yet, and twice those that keep two endpoints.
    pub fn len(&self) -> usize {
        self.clients.len() + self.apart.get().map_or(0, |apart| apart.len())
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many clients were forgotten before their time because there were too many.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed) + self.apart.get().map_or(0, |apart| apart.evicted())
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<IpAddr>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        // Nobody is told: whoever leads clients has heard that the port is gone, and this may be a worker that ends a session.
        self.budget.clients.fetch_sub(self.clients.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
