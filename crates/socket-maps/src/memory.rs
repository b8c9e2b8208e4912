//! Maps in plain memory, with the programs' view of them, for tests and measurements.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_model::{Frontend, Protocol};
use sluice_table::{SharedHealth, SocketHealth, SocketNumber};

use crate::adopt::{Contents, Living};
use crate::affinity::{Kept, KeptClients, KeptPart, SetAffinity, SharedClients};
use crate::desc::Desc;
use crate::kernel::{Capacity, Kernel};
use crate::layout::{
    Account, AffinityKey, Endpoint, FrontendKey, FrontendValue, Set, endpoint_flags, verdict,
};

/// Maps without programs. A clone shares the state of health and clients with the original.
#[derive(Debug, Clone)]
pub struct Memory {
    capacity: Capacity,
    /// Without frontends and endpoints.
    contents: Contents,
    endpoints: Endpoints,
    frontends: HashMap<FrontendKey, FrontendValue>,
    accounts: HashMap<u32, Account>,
    clients: Clients,
    has_relay: bool,
    writes: Writes,
}

/// The array of endpoints, which others change too.
#[derive(Debug, Clone)]
struct Endpoints(Arc<Mutex<Vec<Endpoint>>>);

/// Clients with session affinity; at most as many as there may be sets. There is no clock: all have just
/// connected.
#[derive(Debug, Clone)]
struct Clients {
    known: Arc<Mutex<HashMap<AffinityKey, SocketNumber>>>,
    most: usize,
    calls: Arc<AtomicU64>,
}

/// The number of writes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Writes {
    /// Endpoints.
    pub endpoints: u64,
    /// Slots.
    pub slots: u64,
    /// Complete sets.
    pub sets: u64,
    /// Descriptors of sets.
    pub published: u64,
    /// Frontends put.
    pub put: u64,
    /// Frontends removed.
    pub removed: u64,
    /// How often the source addresses of the node's own sockets were forgotten.
    pub sources: u64,
    /// Barriers.
    pub barriers: u64,
}

/// A program's decision about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picked {
    /// Not translated.
    Untranslated,
    /// Refused.
    Refused,
    /// Translated to this endpoint.
    Endpoint(SocketAddr),
}

impl Memory {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        let contents = Contents {
            frontends: Vec::new(),
            sets: vec![Set::default(); capacity.sets as usize],
            slots: vec![0; capacity.slots as usize],
            ..Contents::default()
        };
        let endpoints = vec![Endpoint::default(); capacity.endpoints as usize];
        Self {
            capacity,
            contents,
            endpoints: Endpoints(Arc::new(Mutex::new(endpoints))),
            frontends: HashMap::new(),
            accounts: HashMap::new(),
            clients: Clients { known: Arc::default(), most: capacity.sets as usize, calls: Arc::default() },
            has_relay: false,
            writes: Writes::default(),
        }
    }

    /// The number of writes so far.
    pub fn writes(&self) -> Writes {
        self.writes
    }

    /// A frontend's value.
    pub fn frontend(&self, key: FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(&key).copied()
    }

    /// A set.
    pub fn set(&self, id: u32) -> Set {
        self.contents.sets.get(id as usize).copied().unwrap_or_default()
    }

    /// The endpoint in a slot, and its id.
    pub fn slot(&self, slot: u32) -> (u32, Endpoint) {
        let id = self.contents.slots.get(slot as usize).copied().unwrap_or_default();
        (id, self.endpoint(id))
    }

    /// An endpoint.
    pub fn endpoint(&self, id: u32) -> Endpoint {
        self.endpoints.lock().get(id as usize).copied().unwrap_or_default()
    }

    /// Sets the counters of an endpoint, in place of the programs.
    pub fn set_account(&mut self, id: u32, account: Account) {
        self.accounts.insert(id, account);
    }

    /// The number of calls about clients, each of which would be a system call.
    pub fn client_calls(&self) -> u64 {
        self.clients.calls.load(Ordering::Relaxed)
    }

    /// Takes the next turn of a set.
    pub fn turn(&mut self, id: u32) -> u64 {
        let Some(set) = self.contents.sets.get_mut(id as usize) else { return 0 };
        set.cursor += 1;
        (set.cursor - 1).into()
    }

    /// Ends the relay, to which programs may leave connections.
    pub fn end_relay(&mut self) {
        self.has_relay = false;
    }

    /// The endpoint to which a program translates a client's connection, if the set has session affinity.
    pub fn follow(&self, client: IpAddr, frontend: Frontend) -> Option<SocketAddr> {
        let outcome = self.frontend(frontend.into())?.pod;
        let set = Some(outcome).filter(|outcome| outcome.verdict == verdict::BALANCE)?.set;
        let set = self.set(set);
        let key = AffinityKey::new(client, SetAffinity::unpack(set.affinity).number);
        let number = *self.clients.known().get(&key)?;
        let endpoint = self.endpoint(number.id);
        let is_it = endpoint.incarnation == number.incarnation && endpoint.flags & endpoint_flags::LEFT == 0;
        (is_it && !endpoint.is_in_doubt()).then(|| endpoint.address())
    }

    /// A program's decision about a connection of an unknown client, by the kind of its socket. Without a
    /// relay, health is ignored.
    pub fn pick(&mut self, frontend: Frontend, is_node: bool) -> Picked {
        let Some(value) = self.frontend(frontend.into()) else { return Picked::Untranslated };
        let outcome = if is_node { value.node } else { value.pod };
        match outcome.verdict {
            verdict::RELAY => Picked::Untranslated,
            verdict::REFUSE => Picked::Refused,
            _ if self.set(outcome.set).affinity != 0 => Picked::Untranslated,
            _ => {
                let turn = self.turn(outcome.set);
                let slot = Desc::unpack(self.set(outcome.set).desc).slot(turn);
                let endpoint = slot.map(|slot| self.slot(slot).1);
                let is_left = |endpoint: &Endpoint| {
                    frontend.protocol == Protocol::Tcp && self.has_relay && endpoint.is_in_doubt()
                };
                let endpoint = endpoint.filter(|endpoint| !is_left(endpoint));
                endpoint.map_or(Picked::Untranslated, |endpoint| Picked::Endpoint(endpoint.address()))
            }
        }
    }
}

fn write<T: Copy>(array: &mut [T], first: u32, items: &[T]) -> u64 {
    let first = first as usize;
    if let Some(place) = array.get_mut(first..first + items.len()) {
        place.copy_from_slice(items);
    }
    items.len() as u64
}

impl Endpoints {
    fn lock(&self) -> MutexGuard<'_, Vec<Endpoint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an endpoint, if the id still has this incarnation.
    fn change(&self, number: SocketNumber, change: impl FnOnce(&mut Endpoint)) {
        let mut endpoints = self.lock();
        let endpoint = endpoints.get_mut(number.id as usize);
        if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.incarnation == number.incarnation) {
            change(endpoint);
        }
    }
}

impl Clients {
    fn known(&self) -> MutexGuard<'_, HashMap<AffinityKey, SocketNumber>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) -> MutexGuard<'_, HashMap<AffinityKey, SocketNumber>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.known()
    }
}

impl KeptClients for Clients {
    fn room(&self) -> usize {
        self.most
    }

    fn keep(&self, key: AffinityKey, number: SocketNumber) -> io::Result<()> {
        let mut known = self.call();
        if known.len() >= self.most && !known.contains_key(&key) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        known.insert(key, number);
        Ok(())
    }

    fn forget(&self, key: AffinityKey) -> io::Result<bool> {
        Ok(self.call().remove(&key).is_some())
    }

    fn idle(&self, key: AffinityKey) -> Option<Duration> {
        self.call().contains_key(&key).then_some(Duration::ZERO)
    }

    fn part(&self, from: Option<u32>, most: usize) -> io::Result<KeptPart> {
        let known = self.call();
        let mut part = KeptPart { keys: Vec::new(), next: Some(from.unwrap_or(0)) };
        // Like the kernel's buckets, each of which holds the keys with one hash.
        while let Some(bucket) = part.next.filter(|_| part.keys.len() < most) {
            part.keys.extend(known.keys().filter(|key| u32::from(key.addr[15]) == bucket));
            part.next = Some(bucket + 1).filter(|next| *next <= u32::from(u8::MAX));
        }
        Ok(part)
    }

    fn all(&self) -> io::Result<Vec<Kept>> {
        let kept = |(key, number): (&AffinityKey, &SocketNumber)| Kept {
            key: *key,
            number: *number,
            idle: Duration::ZERO,
        };
        Ok(self.call().iter().map(kept).collect())
    }
}

impl SocketHealth for Endpoints {
    fn is_in_doubt(&self, number: SocketNumber) -> bool {
        let endpoint = self.lock().get(number.id as usize).copied().unwrap_or_default();
        endpoint.incarnation == number.incarnation && endpoint.is_in_doubt()
    }

    fn has_served(&self, number: SocketNumber) {
        self.change(number, |endpoint| {
            endpoint.flags &= !endpoint_flags::UNPROVEN;
            endpoint.failures = 0;
        });
    }

    fn has_failed(&self, number: SocketNumber) {
        // There is no clock.
        self.change(number, |endpoint| endpoint.failures = endpoint.failures().and_one(0).pack());
    }
}

impl Kernel for Memory {
    fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]) {
        self.writes.endpoints += write(&mut self.endpoints.lock(), first, endpoints);
    }

    fn renew_endpoint(&mut self, id: u32, incarnation: u32) {
        if let Some(endpoint) = self.endpoints.lock().get_mut(id as usize) {
            endpoint.incarnation = incarnation;
        }
    }

    fn end_flows(&mut self, id: u32) {
        if let Some(endpoint) = self.endpoints.lock().get_mut(id as usize) {
            endpoint.flags &= !endpoint_flags::FLOWS;
        }
    }

    fn account(&self, id: u32) -> Account {
        self.accounts.get(&id).copied().unwrap_or_default()
    }

    fn clear_account(&mut self, id: u32) {
        self.accounts.remove(&id);
    }

    fn write_slots(&mut self, first: u32, ids: &[u32]) {
        self.writes.slots += write(&mut self.contents.slots, first, ids);
    }

    fn write_set(&mut self, id: u32, set: Set) {
        self.writes.sets += write(&mut self.contents.sets, id, &[set]);
    }

    fn publish(&mut self, id: u32, desc: u64) {
        self.writes.published += 1;
        if let Some(set) = self.contents.sets.get_mut(id as usize) {
            set.desc = desc;
        }
    }

    fn write_flags(&mut self, id: u32, flags: u32) {
        if let Some(set) = self.contents.sets.get_mut(id as usize) {
            set.flags = flags;
        }
    }

    fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool {
        // As in the kernel: one set in four.
        let most = (self.contents.sets.len() / 4).max(1);
        let keeps = |set: &&Set| SetAffinity::unpack(set.affinity).number != 0;
        let has_room = affinity == SetAffinity::default()
            || self.contents.sets.get(id as usize).is_some_and(|set| keeps(&set))
            || self.contents.sets.iter().filter(keeps).count() < most;
        if let Some(set) = self.contents.sets.get_mut(id as usize) {
            let nowhere = SetAffinity { number: 0, timeout_ms: u32::MAX };
            set.affinity = if has_room { affinity } else { nowhere }.pack();
        }
        has_room
    }

    fn leave(&mut self, id: u32) {
        if let Some(endpoint) = self.endpoints.lock().get_mut(id as usize)
            && !endpoint.has_flows()
        {
            endpoint.flags |= endpoint_flags::LEFT;
        }
    }

    fn cursor(&self, id: u32) -> u64 {
        self.set(id).cursor.into()
    }

    fn barrier(&mut self) -> io::Result<()> {
        self.writes.barriers += 1;
        Ok(())
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()> {
        for (key, value) in entries {
            let is_full = self.frontends.len() >= self.capacity.frontends as usize;
            if is_full && !self.frontends.contains_key(key) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.frontends.insert(*key, *value);
            self.writes.put += 1;
        }
        Ok(())
    }

    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> io::Result<()> {
        for key in keys {
            self.frontends.remove(key);
            self.writes.removed += 1;
        }
        Ok(())
    }

    fn health(&self) -> SharedHealth {
        Arc::new(Box::new(self.endpoints.clone()))
    }

    fn clients(&self) -> SharedClients {
        Arc::new(self.clients.clone())
    }

    fn forget_sources(&mut self) {
        self.writes.sources += 1;
    }

    fn take_over(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn beat(&mut self) {
        self.has_relay = true;
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }
}

impl Living for Memory {
    fn contents(&self) -> io::Result<Contents> {
        let frontends = self.frontends.iter().map(|(key, value)| (*key, *value)).collect();
        let endpoints = self.endpoints.lock().clone();
        let clients = self.clients.known().keys().copied().collect();
        Ok(Contents { frontends, endpoints, clients, ..self.contents.clone() })
    }
}
