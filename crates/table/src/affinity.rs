//! Session affinity: a client keeps its endpoint (`sessionAffinity: ClientIP`).
//!
//! One map for each service port, so all of its addresses share it. An entry is renewed by every new
//! connection, is worth nothing once it was idle for the timeout or its endpoint cannot be used, and
//! is forgotten at the latest when the map is full and it is the one unseen for longest, or nearly.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::{DashMap, Entry};

use crate::Upstream;

/// Locks of one map: enough that workers seldom meet, few enough that thousands of service ports
/// can have a map each.
const SHARDS: usize = 8;

/// How many entries get a second chance before one is evicted all the same.
const SECOND_CHANCES: usize = 8;

/// How many expired entries each new client clears away.
const CLEARED_PER_CLIENT: usize = 2;

/// The endpoints that clients of one service port keep.
#[derive(Debug)]
pub struct Affinity {
    clients: DashMap<IpAddr, Binding, foldhash::fast::RandomState>,
    /// Every client, in the order of first or, after a second chance, later appearance.
    queue: Mutex<VecDeque<IpAddr>>,
    capacity: usize,
    evicted: AtomicU64,
}

#[derive(Debug)]
struct Binding {
    upstream: Arc<Upstream>,
    /// The latest new connection.
    seen: Instant,
    /// Whether there was one since it last stood at the head of the queue.
    renewed: bool,
}

impl Affinity {
    pub(crate) fn new(capacity: usize) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self {
            clients: DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS),
            queue: Mutex::default(),
            capacity: capacity.max(1),
            evicted: AtomicU64::new(0),
        }
    }

    /// The client's endpoint: the one that it has, if that is still usable, else a new one. Of
    /// connections that arrive at the same time the first one chooses for all.
    ///
    /// `is_usable` and `choose` are called with a lock held; they must not wait for anything.
    pub(crate) fn pick(
        &self,
        client: IpAddr,
        timeout: Duration,
        now: Instant,
        is_usable: impl Fn(&Arc<Upstream>) -> bool,
        choose: impl FnOnce() -> Option<Arc<Upstream>>,
    ) -> Option<Arc<Upstream>> {
        match self.clients.entry(client) {
            Entry::Occupied(mut entry) => {
                let binding = entry.get_mut();
                if is_idle(binding, timeout, now) || !is_usable(&binding.upstream) {
                    binding.upstream = choose()?;
                }
                (binding.seen, binding.renewed) = (now, true);
                Some(Arc::clone(&binding.upstream))
            }
            Entry::Vacant(entry) => {
                let upstream = choose()?;
                let binding = Binding { upstream: Arc::clone(&upstream), seen: now, renewed: false };
                // The queue is locked without holding a shard: whoever holds it locks shards.
                drop(entry.insert(binding));
                self.enqueue(client, timeout, now);
                Some(upstream)
            }
        }
    }

    /// Makes room in the queue for a new client, and puts it there.
    fn enqueue(&self, client: IpAddr, timeout: Duration, now: Instant) {
        let mut queue = self.queue();
        for _ in 0..CLEARED_PER_CLIENT {
            let is_over = |oldest: &mut IpAddr| {
                self.clients.get(oldest).is_none_or(|binding| is_idle(&binding, timeout, now))
            };
            queue.pop_front_if(is_over).and_then(|oldest| self.clients.remove(&oldest));
        }
        let mut chances = SECOND_CHANCES;
        while queue.len() >= self.capacity {
            let Some(oldest) = queue.pop_front() else { break };
            let was_renewed =
                self.clients.get_mut(&oldest).is_some_and(|mut b| std::mem::take(&mut b.renewed));
            if was_renewed && chances > 0 {
                chances -= 1;
                queue.push_back(oldest);
            } else if self.clients.remove(&oldest).is_some() {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
        queue.push_back(client);
    }

    /// Forgets every client whose endpoint is not to be kept.
    pub(crate) fn retain(&self, keep: impl Fn(&Arc<Upstream>) -> bool) {
        let mut queue = self.queue();
        self.clients.retain(|_, binding| keep(&binding.upstream));
        queue.retain(|client| self.clients.contains_key(client));
    }

    /// Forgets every client that was idle for the timeout.
    pub(crate) fn expire(&self, timeout: Duration, now: Instant) {
        let mut queue = self.queue();
        self.clients.retain(|_, binding| !is_idle(binding, timeout, now));
        queue.retain(|client| self.clients.contains_key(client));
    }

    /// How many clients are remembered, counting those whose time is over and who were not cleared
    /// away yet.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// How many clients were forgotten before their time because there were too many.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<IpAddr>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_idle(binding: &Binding, timeout: Duration, now: Instant) -> bool {
    now.saturating_duration_since(binding.seen) >= timeout
}

#[cfg(test)]
mod tests;
