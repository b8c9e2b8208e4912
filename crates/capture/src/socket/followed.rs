//! Clients that keep their endpoints (`sessionAffinity: ClientIP`): the table chooses the endpoint, and the
//! programs lead a client that has connected before to the same one.
//!
//! When the table remembers or forgets a client of this node, the worker that does it updates the maps at once.
//! Before the table forgets a client, it asks the maps when the client was last led. So there is nothing to
//! synchronise, and no client that only one of them knows, except those that an earlier agent left, until all
//! frontends are known and they are [adopted](Followed::adopt).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use sluice_model::{ObjectName, Protocol};
use sluice_socket_maps::{Kept, Kernel, Maps, PortKey, SharedClients, Stats};
use sluice_table::{Adopted, ServicePort, SetName, SharedFollower, Upstream};
use tracing::warn;

use super::canonical;
use super::ended::Ended;
use super::kept::{Clients, NAMES, OfPort, OfSet, Sets, Share};
use super::offered::Offered;

/// The clients that are led. The contents of the maps stay when this is dropped, and may then be another agent's.
#[derive(Debug)]
pub(super) struct Followed {
    clients: Arc<Clients>,
    /// The ports that report their clients.
    told: HashMap<PortKey, Sets>,
    shares: Shares,
    ended: Ended,
}

/// The Services' use of the room, kept as long as one of their clients may be known.
#[derive(Debug, Default)]
struct Shares {
    of: HashMap<ObjectName, Weak<Share>>,
    /// At this number, entries of Services that are gone are looked for.
    most: usize,
}

impl Shares {
    fn get(&mut self, service: &ObjectName) -> Arc<Share> {
        if let Some(share) = self.of.get(service).and_then(Weak::upgrade) {
            return share;
        }
        if self.of.len() >= self.most {
            self.of.retain(|_, share| share.strong_count() > 0);
            self.most = 2 * self.of.len() + 16;
        }
        let share = Arc::default();
        self.of.insert(service.clone(), Arc::downgrade(&share));
        share
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.clients.end();
    }
}

impl Followed {
    pub(super) fn new(known: SharedClients) -> Self {
        let (told, shares, ended) = Default::default();
        Self { clients: Arc::new(Clients::new(known)), told, shares, ended }
    }

    /// Adds the number of clients to the statistics.
    pub(super) fn count(&self, stats: Stats) -> Stats {
        let (clients, most) = self.clients.count();
        let most_clients = u32::try_from(most).unwrap_or(u32::MAX);
        Stats { clients, most_clients, refused_clients: self.clients.refused(), ..stats }
    }

    /// Makes a port report its clients according to its current sets, if they have changed.
    pub(super) fn share<K: Kernel>(&mut self, port: &ServicePort, key: PortKey, maps: &Maps<K>) {
        // Nearly all ports: looking them up would be a large part of loading.
        if port.affinity().is_none() || port.name().protocol != Protocol::Tcp {
            return;
        }
        let wanted = NAMES.map(|name| maps.clients_of(key, name));
        let is_so = |sets: &Sets| sets.each_ref().map(|set| set.as_ref().map(|(_, whom)| *whom)) == wanted;
        if self.told.get(&key).map_or(wanted == [None; 2], is_so) {
            return;
        }
        let mut before = self.told.remove(&key).unwrap_or_default();
        let Self { clients, shares, .. } = self;
        let mut sets = Sets::default();
        for ((set, before), whom) in sets.iter_mut().zip(&mut before).zip(wanted) {
            let Some(whom) = whom else { continue };
            let stays = before.take_if(|(set, _)| set.number() == whom.number).map(|(set, _)| set);
            let of_set = || {
                let share = shares.get(&port.name().service);
                Arc::new(OfSet::new(whom.number, clients, share))
            };
            *set = Some((stays.unwrap_or_else(of_set), whom));
        }
        let has_clients = wanted != [None; 2];
        let follower = || -> SharedFollower { Arc::new(Box::new(OfPort(sets.clone()))) };
        port.share_affinity(has_clients.then(follower));
        self.end(before);
        if has_clients {
            self.told.insert(key, sets);
        }
    }

    /// Forgets a port that is gone: another one may get its place in memory.
    pub(super) fn forget(&mut self, key: PortKey) {
        let sets = self.told.remove(&key).unwrap_or_default();
        self.end(sets);
    }

    fn end(&mut self, sets: Sets) {
        sets.into_iter().flatten().for_each(|(set, _)| self.ended.add(set));
    }

    /// Forgets some clients of sets that are gone. Must be called several times a second.
    pub(super) fn forget_some(&mut self) {
        self.ended.forget_some(&self.clients);
    }

    /// Adds clients that an earlier agent's programs lead to the table's memory, if their endpoints still exist;
    /// the others are no longer led.
    pub(super) fn adopt<K: Kernel>(&self, offered: &Offered, maps: &Maps<K>, now: Instant) {
        let mut kept = match self.clients.known.all() {
            Ok(kept) => kept,
            Err(error) => {
                warn!(
                    "clients of Services with session affinity may be led to what an earlier agent has chosen: {error}"
                );
                return;
            }
        };
        if kept.is_empty() {
            return;
        }
        // The client that was seen last is added last, and forgotten last.
        kept.sort_by_key(|kept| std::cmp::Reverse(kept.idle));
        let sets = maps.with_clients();
        // By id, for the sets looked up so far.
        let mut endpoints: HashMap<u32, HashMap<u32, (SocketAddr, u32)>> = HashMap::new();
        for Kept { key, number, idle } in kept.into_iter().filter(|kept| !self.ended.has(kept.key.number)) {
            let set = sets.get(&key.number);
            let endpoint = set.and_then(|set| {
                let of_set = endpoints.entry(key.number).or_insert_with(|| {
                    let numbers = maps.numbers(set.0, set.1);
                    numbers.map(|(address, number)| (number.id, (address, number.incarnation))).collect()
                });
                let (address, incarnation) = of_set.get(&number.id)?;
                (*incarnation == number.incarnation).then_some(*address)
            });
            let is_led = set.zip(endpoint).is_some_and(|((port, set), address)| {
                let Some(known) = offered.get(*port) else { return false };
                let upstream = known.upstream(*set, address);
                upstream.is_some_and(|upstream| {
                    let adopted = Adopted { client: key.client(), set: *set, upstream: &upstream, idle };
                    known.port.adopt_client(&adopted, now)
                })
            });
            if !is_led {
                // It was not counted here. The kernel deletes any entry.
                let _ = self.clients.known.forget(key);
            }
        }
    }
}

impl super::offered::Known {
    /// An endpoint of the set, by address.
    fn upstream(&self, set: SetName, address: SocketAddr) -> Option<Arc<Upstream>> {
        let backends = self.port.backends();
        let upstreams = match set {
            SetName::Cluster => backends.cluster().upstreams(),
            SetName::Local => backends.local().upstreams(),
        };
        // They are ordered by address.
        let at = upstreams.binary_search_by_key(&address, |upstream| canonical(upstream.address())).ok()?;
        upstreams.get(at).cloned()
    }
}
