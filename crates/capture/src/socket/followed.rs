//! Clients that keep their endpoints (`sessionAffinity: ClientIP`): the table chooses, and the programs lead a client that has
//! connected before to where it has led it.
//!
//! Whatever the table remembers or forgets of a client of this node it says at once, by the worker that does; how long ago a
//! client was led is asked before it is forgotten. So there is nothing to carry to and fro, and no client that only one of
//! both knows: but for what an earlier agent has left, until all frontends are there and it is [adopted](adopt).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice_model::Protocol;
use sluice_socket_maps::{AffinityKey, Kept, Kernel, Maps, PortKey, SharedClients};
use sluice_table::{Follower, ServicePort, SetName, SharedFollower, Upstream};
use tracing::warn;

use super::canonical;
use super::offered::Offered;

/// The clients that the programs know, for all service ports.
#[derive(Debug)]
pub(super) struct Clients {
    known: SharedClients,
    /// Whether they are another agent's now.
    is_over: AtomicBool,
    /// How often there was no room.
    refused: AtomicU64,
}

/// Those of one service port.
#[derive(Debug)]
struct OfPort {
    clients: Arc<Clients>,
    numbers: Numbers,
}

/// By what they are found, in each set that connections are led to.
type Numbers = [(SetName, Option<u32>); 2];

/// A port whose clients are told.
#[derive(Debug)]
pub(super) struct Told(Numbers);

/// That they are this agent's. What is in the maps stays when this is dropped, and may be another agent's from then on.
#[derive(Debug)]
pub(super) struct Tenure(Arc<Clients>);

impl Tenure {
    pub(super) fn new(known: SharedClients) -> Self {
        Self(Arc::new(Clients { known, is_over: AtomicBool::new(false), refused: AtomicU64::new(0) }))
    }

    pub(super) fn clients(&self) -> &Arc<Clients> {
        &self.0
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Clients {
    /// How often a client was left to the relay for want of room.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn forget(&self, key: AffinityKey) {
        // What the kernel refuses to delete it has no memory for, or it is gone.
        let _ = self.known.forget(key);
    }
}

impl OfPort {
    fn keys(&self, client: IpAddr) -> impl Iterator<Item = (SetName, AffinityKey)> {
        let key =
            move |(name, number): (SetName, Option<u32>)| Some((name, AffinityKey::new(client, number?)));
        self.numbers.into_iter().filter_map(key)
    }
}

impl Follower for OfPort {
    fn follow(&self, client: IpAddr, upstream: &Upstream) -> bool {
        if self.clients.is_over() {
            return false;
        }
        let mut is_led = false;
        for (name, key) in self.keys(client) {
            match upstream.socket_number(name).map(|number| self.clients.known.keep(key, number)) {
                Some(Ok(())) => is_led = true,
                Some(Err(_)) => {
                    self.clients.refused.fetch_add(1, Ordering::Relaxed);
                    self.clients.forget(key);
                }
                // It is in the other set only.
                None => self.clients.forget(key),
            }
        }
        is_led
    }

    fn forget(&self, client: IpAddr) {
        if !self.clients.is_over() {
            self.keys(client).for_each(|(_, key)| self.clients.forget(key));
        }
    }

    fn idle(&self, client: IpAddr) -> Option<Duration> {
        if self.clients.is_over() {
            return None;
        }
        self.keys(client).filter_map(|(_, key)| self.clients.known.idle(key)).min()
    }
}

/// Has a port tell of its clients as it is now, where that is another way than it was told.
pub(super) fn share<K: Kernel>(
    port: &ServicePort,
    key: PortKey,
    maps: &Maps<K>,
    clients: &Arc<Clients>,
    told: &mut HashMap<PortKey, Told>,
) {
    // Nearly all there are: looking them up would be much of loading.
    if port.name().protocol != Protocol::Tcp || (told.is_empty() && port.affinity().is_none()) {
        return;
    }
    let numbers = [SetName::Cluster, SetName::Local].map(|name| (name, maps.clients_of(key, name)));
    let has_clients = numbers.iter().any(|(_, number)| number.is_some());
    let before = told.get(&key).map(|Told(numbers)| *numbers);
    if before == has_clients.then_some(numbers) {
        return;
    }
    let follower =
        || -> SharedFollower { Arc::new(Box::new(OfPort { clients: Arc::clone(clients), numbers })) };
    port.share_affinity(has_clients.then(follower));
    if has_clients {
        told.insert(key, Told(numbers));
    } else {
        told.remove(&key);
    }
}

/// Has the table remember whom an earlier agent's programs lead, as far as that leads to where it did; others are not led any
/// more.
pub(super) fn adopt<K: Kernel>(offered: &Offered, maps: &Maps<K>, clients: &Clients, now: Instant) {
    let mut kept = match clients.known.all() {
        Ok(kept) => kept,
        Err(error) => {
            warn!(
                "clients of Services with session affinity may be led to what an earlier agent has chosen: {error}"
            );
            return;
        }
    };
    // As they are remembered: whoever was seen last is the last to be forgotten.
    kept.sort_by_key(|kept| std::cmp::Reverse(kept.idle));
    let sets = maps.with_clients();
    // By number, of the sets that anybody has asked for so far.
    let mut endpoints: HashMap<u32, HashMap<u32, (SocketAddr, u32)>> = HashMap::new();
    for Kept { key, number, idle } in kept {
        let set = sets.get(&key.number);
        let endpoint = set.and_then(|set| {
            let of_set = endpoints.entry(key.number).or_insert_with(|| {
                let numbers = maps.numbers(set.0, set.1);
                numbers.map(|(address, number)| (number.id, (address, number.incarnation))).collect()
            });
            let (address, incarnation) = of_set.get(&number.id)?;
            (*incarnation == number.incarnation).then_some(*address)
        });
        let is_known = set.zip(endpoint).is_some_and(|((port, name), address)| {
            let Some(known) = offered.get(*port) else { return false };
            let upstream = known.upstream(*name, address);
            upstream.is_some_and(|upstream| known.port.adopt_client(key.client(), &upstream, idle, now))
        });
        if !is_known {
            clients.forget(key);
        }
    }
}

impl super::offered::Known {
    /// One of its endpoints, by address.
    fn upstream(&self, set: SetName, address: SocketAddr) -> Option<Arc<Upstream>> {
        let backends = self.port.backends();
        let upstreams = match set {
            SetName::Cluster => backends.cluster().upstreams(),
            SetName::Local => backends.local().upstreams(),
        };
        // In the order of addresses.
        let at = upstreams.binary_search_by_key(&address, |upstream| canonical(upstream.address())).ok()?;
        upstreams.get(at).cloned()
    }
}
