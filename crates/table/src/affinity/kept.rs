//! Session affinity that one agent hands over to the next: which clients keep which endpoints.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::Entry;

use super::{Affinity, Binding};
use crate::Upstream;
use crate::affinity::Budget;

/// A client of a service port, and the endpoint that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The client's address.
    pub client: IpAddr,
    /// The endpoint's address.
    pub endpoint: SocketAddr,
    /// How long ago the client's latest connection was made.
    pub idle: Duration,
    /// Whether the client keeps this endpoint only for connections for which the other endpoint that it keeps
    /// cannot be used (internal and external traffic policies differ).
    pub is_apart: bool,
}

impl Affinity {
    /// The clients that keep an endpoint at this moment, at most `limit` of them. Clients that a
    /// [`Follower`](crate::Follower) translates are left out: the follower hands them over itself.
    pub(crate) fn all_kept(&self, timeout: Duration, now: Instant, limit: usize) -> Vec<Kept> {
        let mut all = Vec::new();
        for (affinity, is_apart) in [(Some(self), false), (self.apart.get().map(|apart| &**apart), true)] {
            let Some(affinity) = affinity else { continue };
            let room = limit.saturating_sub(all.len());
            let kept = affinity.clients.iter().filter_map(|entry| {
                let binding = entry.value();
                let idle = now.saturating_duration_since(binding.seen);
                let is_over = binding.tenure != binding.upstream.tenure() || idle >= timeout;
                (binding.told.is_none() && !is_over).then(|| Kept {
                    client: *entry.key(),
                    endpoint: binding.upstream.address(),
                    idle,
                    is_apart,
                })
            });
            all.extend(kept.take(room));
        }
        all
    }

    /// Remembers a client of another agent, unless it is known here or there is no room. Returns whether it
    /// was added.
    pub(crate) fn recall(
        &self,
        kept: &Kept,
        upstream: &Arc<Upstream>,
        timeout: Duration,
        now: Instant,
    ) -> bool {
        if kept.is_apart {
            let apart = self.apart.get_or_init(|| Box::new(Self::new(Arc::clone(&self.budget))));
            return apart.recall(&Kept { is_apart: false, ..*kept }, upstream, timeout, now);
        }
        let Some(seen) = now.checked_sub(kept.idle).filter(|_| kept.idle < timeout) else { return false };
        if self.len() >= self.budget.per_port || self.budget.is_crowded() {
            return false;
        }
        match self.clients.entry(kept.client) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                drop(entry.insert(Binding::new(Arc::clone(upstream), seen)));
                self.enqueue(kept.client, timeout, now);
                true
            }
        }
    }
}

impl Budget {
    fn is_crowded(&self) -> bool {
        self.clients.load(std::sync::atomic::Ordering::Relaxed) >= self.total
    }
}
