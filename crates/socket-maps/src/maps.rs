//! The contents of the maps, and the order in which they change.
//!
//! * An endpoint has an id in each set that contains it. A set's slots are written before the set's one word
//!   refers to them, and a set before a frontend names it. Frontends stop naming a set before it is removed.
//! * An id or a range that programs could have read is not reused until a barrier guarantees that no program
//!   uses it any more. A barrier takes milliseconds, so there is one only if nothing else is free.
//! * What does not fit is left to the other capture modes, and tried again.
//!
//! `port`: a service port as it should be. `sets`, `frontends`: its form in the maps. `parked`: endpoints
//! that keep their flows. `retired`: what waits for a barrier.

mod frontends;
mod parked;
mod port;
mod retired;
mod sets;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use sluice_table::{SetName, SocketNumber};

pub(crate) use self::parked::Strays;
pub use self::port::{Port, PortKey};
pub(crate) use self::sets::Members;

use self::frontends::Placed;
use self::parked::Parked;
use self::retired::Retired;
use self::sets::{SetState, index};
use crate::address::in_order;
use crate::adopt::{Found, Living, LivingSet};
use crate::affinity::SetClients;
use crate::ids::Ids;
use crate::kernel::Kernel;
use crate::layout::{Account, FrontendKey, Outcome, protocol, verdict};
use crate::ranges::Ranges;

/// The number of sets of a service port: one for each traffic policy.
const SETS: usize = 2;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A change of an endpoint's id, for the owner of the endpoints' accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdChange {
    /// An earlier agent gave the id, which stays in use. The earlier agent has reported its account so far.
    Found(u32),
    /// No set contains the endpoint any more; connections to it may be open.
    Left(u32),
    /// The id is free to be reused, and this is its final account.
    Freed(u32, Account),
}

/// How much the maps contain, and what did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Frontends that the programs know.
    pub frontends: usize,
    /// Sets. Neither this number nor the next ones include what is unused and waits for a barrier, because
    /// that is available as soon as it is needed.
    pub sets: usize,
    /// Endpoints, counted in each set.
    pub endpoints: usize,
    /// Slots, in powers of two.
    pub slots: usize,
    /// Service ports with something that did not fit, which is left to the other capture modes.
    pub waiting: usize,
    /// How often something did not fit, or the kernel failed to make a change.
    pub failures: u64,
    /// Clients with session affinity in the programs' map, counted in each set, including those that are
    /// about to be forgotten.
    pub clients: usize,
    /// The maximum number of such clients.
    pub most_clients: u32,
    /// How often such a client was left to the relay, because there was no room for it or its Service had its
    /// share.
    pub refused_clients: u64,
}

#[derive(Debug, Default)]
struct PortState {
    service: u32,
    frontends: Vec<FrontendKey>,
    sets: [Option<SetState>; SETS],
    parked: Parked,
}

/// A map is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// How many more endpoint ids are needed than are free, including those that were parked for it.
    Numbers(usize),
    /// There are not enough sets, slots or frontends.
    Others,
}

/// The contents of the maps. Nothing else changes them.
#[derive(Debug)]
pub struct Maps<K> {
    kernel: K,
    set_ids: Ids,
    endpoint_ids: Ids,
    ranges: Ranges,
    /// How often each endpoint id was given.
    incarnations: Vec<u32>,
    next_service: u32,
    /// The next [`SetAffinity::number`](crate::SetAffinity::number).
    next_affinity: u32,
    ports: Map<PortKey, PortState>,
    /// The programs' view of the frontends, once [`Maps::flush`] has written those in `touched`.
    placed: Map<FrontendKey, Placed>,
    touched: HashSet<FrontendKey, foldhash::fast::RandomState>,
    /// Parts that no outcome names any more, but frontends in the map may until the next flush.
    dropped: Retired,
    retired: Retired,
    /// Ids whose incarnation changed lately, and before that. A program that had picked one just before may
    /// have begun a flow with the new incarnation just after, so they are changed once more.
    renewed: [Vec<u32>; 2],
    /// Ports with something that did not fit.
    waiting: BTreeMap<PortKey, Port>,
    /// Whether there may be more room since the waiting ports were tried.
    has_room: bool,
    /// Sets of an earlier agent that no port has claimed.
    living: HashMap<u32, LivingSet>,
    /// UDP endpoints of an earlier agent that were in no set.
    strays: Strays,
    failures: u64,
    /// Changes of ids, once [`Maps::follow_ids`] was called.
    id_changes: Option<Vec<IdChange>>,
}

impl<K: Kernel> Maps<K> {
    /// Empty maps.
    pub fn new(kernel: K) -> Self {
        let capacity = kernel.capacity();
        Self {
            kernel,
            set_ids: Ids::new(capacity.sets),
            endpoint_ids: Ids::new(capacity.endpoints),
            ranges: Ranges::new(capacity.slots),
            incarnations: Vec::new(),
            next_service: 1,
            next_affinity: 1,
            ports: Map::default(),
            placed: Map::default(),
            touched: HashSet::default(),
            dropped: Retired::default(),
            retired: Retired::default(),
            renewed: Default::default(),
            waiting: BTreeMap::new(),
            has_room: false,
            living: HashMap::new(),
            strays: Strays::default(),
            failures: 0,
            id_changes: None,
        }
    }

    /// From now on, records changes of endpoint ids for [`Maps::take_id_changes`].
    pub fn follow_ids(&mut self) {
        self.id_changes.get_or_insert_default();
    }

    /// The changes of ids since the last call, in order.
    pub fn take_id_changes(&mut self) -> Vec<IdChange> {
        self.id_changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note_ids(&mut self, change: impl Fn(u32) -> IdChange, ids: impl IntoIterator<Item = u32>) {
        if let Some(changes) = &mut self.id_changes {
            changes.extend(ids.into_iter().map(change));
        }
    }

    /// Takes over maps that an earlier agent may have left. Their contents stay in use. Ports that are
    /// applied claim their parts, and [`Maps::forget_unclaimed`] removes what no port has claimed.
    /// Inconsistent contents are discarded.
    ///
    /// # Errors
    /// The maps cannot be read or emptied.
    pub fn adopt(mut kernel: K) -> io::Result<Self>
    where
        K: Living,
    {
        let contents = kernel.contents()?;
        let next_affinity = contents.next_affinity();
        let Some(found) = Found::read(&contents, kernel.capacity()) else {
            let keys: Vec<FrontendKey> = contents.frontends.iter().map(|(key, _)| *key).collect();
            kernel.remove_frontends(&keys)?;
            kernel.barrier()?;
            let incarnations = contents.endpoints.iter().map(|endpoint| endpoint.incarnation).collect();
            return Ok(Self { incarnations, next_affinity, ..Self::new(kernel) });
        };
        let placed = |(key, value)| (key, Placed { value, owner: None });
        Ok(Self {
            set_ids: found.set_ids,
            endpoint_ids: found.endpoint_ids,
            ranges: found.ranges,
            incarnations: found.incarnations,
            next_service: found.next_service,
            next_affinity,
            placed: found.frontends.into_iter().map(placed).collect(),
            living: found.sets,
            strays: found.strays,
            ..Self::new(kernel)
        })
    }

    /// Removes what an earlier agent has left and no port has claimed. To be called after all ports were
    /// applied.
    pub fn forget_unclaimed(&mut self) {
        let unclaimed = self.placed.iter().filter(|(_, placed)| placed.owner.is_none());
        let unclaimed: Vec<FrontendKey> = unclaimed.map(|(key, _)| *key).collect();
        for key in unclaimed {
            self.placed.remove(&key);
            self.touched.insert(key);
        }
        for (id, set) in self.living.drain() {
            self.dropped.sets.push(id);
            self.dropped.add_members(&set.members);
        }
        self.forget_strays();
        self.flush();
    }

    /// Updates ports to their wanted state; one without frontends is removed.
    pub fn apply(&mut self, ports: impl IntoIterator<Item = (PortKey, Port)>) {
        for (key, port) in ports {
            self.set_port(key, port);
        }
        self.flush();
    }

    /// Tries again what did not fit, if there may be room, and what the kernel failed to do. Returns the
    /// ports that may have changed.
    pub fn retry(&mut self) -> Vec<PortKey> {
        let [lately, before] = &mut self.renewed;
        let again = std::mem::replace(before, std::mem::take(lately));
        self.renew(&again);
        again.iter().for_each(|id| self.kernel.end_flows(*id));
        if !self.touched.is_empty() {
            self.flush();
        }
        if !self.waiting.is_empty() && (std::mem::take(&mut self.has_room) || self.reclaim()) {
            let waiting = std::mem::take(&mut self.waiting);
            let keys = waiting.keys().copied().collect();
            self.apply(waiting);
            self.has_room = false;
            return keys;
        }
        Vec::new()
    }

    /// How much the maps contain.
    pub fn stats(&self) -> Stats {
        let waiting = [&self.dropped, &self.retired];
        let but =
            |given: usize, of: fn(&Retired) -> usize| given.saturating_sub(waiting.map(of).iter().sum());
        Stats {
            frontends: self.placed.len(),
            sets: but(self.set_ids.given(), |retired| retired.sets.len()),
            endpoints: but(self.endpoint_ids.given(), |retired| retired.endpoints.len()),
            slots: but(self.ranges.given() as usize, Retired::slots),
            waiting: self.waiting.len(),
            failures: self.failures,
            clients: 0,
            most_clients: 0,
            refused_clients: 0,
        }
    }

    /// A port's endpoints in a set, by address, and their ids. Empty if the set is unused, or has no room.
    pub fn numbers(&self, key: PortKey, name: SetName) -> impl Iterator<Item = (SocketAddr, SocketNumber)> {
        let set = self.ports.get(&key).and_then(|state| state.sets[index(name)].as_ref());
        set.into_iter().flat_map(|set| &set.members.list).map(|(address, id)| {
            let incarnation = self.incarnations.get(*id as usize).copied().unwrap_or_default();
            (*address, SocketNumber { id: *id, incarnation })
        })
    }

    /// The clients of a port's set with session affinity. `None` if there is no affinity, or the set is
    /// unused.
    pub fn clients_of(&self, key: PortKey, name: SetName) -> Option<SetClients> {
        let state = self.ports.get(&key)?;
        let (id, number) = with_clients(state, name)?;
        let values = state.frontends.iter().filter_map(|frontend| Some(self.placed.get(frontend)?.value));
        let leads = |outcome: Outcome| outcome.verdict == verdict::BALANCE && outcome.set == id;
        let none = SetClients { number, of_node: false, of_pods: false };
        Some(values.fold(none, |clients, value| SetClients {
            of_node: clients.of_node || leads(value.node),
            of_pods: clients.of_pods || leads(value.pod),
            ..clients
        }))
    }

    /// The ports with such sets, by [`SetClients::number`].
    pub fn with_clients(&self) -> HashMap<u32, (PortKey, SetName)> {
        let of_port = |(key, state): (&PortKey, &PortState)| {
            [SetName::Cluster, SetName::Local].map(|name| Some((with_clients(state, name)?.1, (*key, name))))
        };
        self.ports.iter().flat_map(of_port).flatten().collect()
    }

    /// The kernel interface.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel interface, for a successor.
    pub fn into_kernel(self) -> K {
        self.kernel
    }

    /// The kernel interface, for changes other than the contents.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Waits for a barrier, and frees what programs may have used. Returns whether anything was freed.
    pub fn reclaim(&mut self) -> bool {
        self.flush();
        if self.retired.is_empty() {
            return false;
        }
        if self.kernel.barrier().is_err() {
            self.failures += 1;
            return false;
        }
        // What these ids mean next is new anyway.
        self.renewed = Default::default();
        let Retired { sets, ranges, endpoints, flowing: _ } = std::mem::take(&mut self.retired);
        sets.into_iter().for_each(|id| self.set_ids.take_back(id));
        ranges.into_iter().for_each(|range| self.ranges.take_back(range));
        for id in endpoints {
            let account = self.kernel.account(id);
            self.note_ids(|id| IdChange::Freed(id, account), [id]);
            self.kernel.end_flows(id);
            self.endpoint_ids.take_back(id);
        }
        true
    }

    fn set_port(&mut self, key: PortKey, port: Port) {
        self.waiting.remove(&key);
        let mut result = self.try_port(key, &port, false);
        if result.is_err() && self.reclaim() {
            result = self.try_port(key, &port, false);
        }
        if let Err(Full::Numbers(missing)) = result
            && self.give_up_parked(missing)
            && self.reclaim()
        {
            result = self.try_port(key, &port, false);
        }
        if result.is_err() && self.try_port(key, &port, true).is_err() {
            self.failures += 1;
            self.waiting.insert(key, port);
        }
    }

    /// Updates a port. If something does not fit, stops there or, as the last resort, makes all other changes
    /// and leaves that out.
    fn try_port(&mut self, key: PortKey, port: &Port, is_last_resort: bool) -> Result<(), Full> {
        let mut state = self.ports.remove(&key).unwrap_or_default();
        if state.service == 0 {
            state.service = self.next_service;
            // The number wraps around after four billion ports. It is used only for statistics.
            self.next_service = self.next_service.checked_add(1).unwrap_or(1);
        }
        let result = self.update(key, &mut state, port, is_last_resort);
        if !state.frontends.is_empty() || state.sets.iter().any(Option::is_some) || !state.parked.is_empty() {
            self.ports.insert(key, state);
        }
        result
    }

    fn update(
        &mut self,
        key: PortKey,
        state: &mut PortState,
        port: &Port,
        is_last_resort: bool,
    ) -> Result<(), Full> {
        let mut result = Ok(());
        let wanted = [SetName::Cluster, SetName::Local].map(|name| {
            let addresses = if port.names(name) { in_order(port.set(name)) } else { Vec::new() };
            (name, addresses)
        });
        self.claim(state, port);
        // All frontends of a port have the same protocol.
        let protocol =
            port.frontends.first().map_or(0, |(frontend, _)| FrontendKey::from(*frontend).protocol);
        // A port without frontends is gone, and its flows with it.
        let serving = if protocol == protocol::UDP { in_order(&port.serving) } else { Vec::new() };
        self.claim_strays(state, port, &serving);
        let PortState { sets, parked, service, .. } = state;
        for (name, addresses) in &wanted {
            let place = &mut sets[index(*name)];
            if addresses.is_empty() {
                continue;
            }
            let done = match place {
                Some(set) => self.change_set(set, addresses, *service, &serving, parked),
                None => self.make_set(addresses, protocol, *service, parked).map(|set| *place = Some(set)),
            };
            if done.is_err() {
                if !is_last_resort {
                    return done;
                }
                // Its contents are outdated.
                let outdated = place.take();
                outdated.iter().for_each(|set| self.dropped.add_set(set));
                result = done;
            }
            if let Some(set) = place
                && set.flags != port.set_flags()
            {
                set.flags = port.set_flags();
                self.kernel.write_flags(set.id, set.flags);
            }
            if let Some(set) = place {
                self.change_affinity(set, port.timeout_ms());
            }
        }
        let placed = self.place_frontends(key, state, port, is_last_resort);
        if placed.is_err() && !is_last_resort {
            return placed;
        }
        for (name, addresses) in &wanted {
            if addresses.is_empty() {
                let left = state.sets[index(*name)].take();
                left.into_iter().for_each(|set| self.drop_set(set, &serving, &mut state.parked));
            }
        }
        state.parked.retire_unless(&serving, &mut self.dropped);
        result.and(placed)
    }
}

/// A set with session affinity: its id and its [`SetAffinity::number`](crate::SetAffinity::number).
fn with_clients(state: &PortState, name: SetName) -> Option<(u32, u32)> {
    let set = state.sets[index(name)].as_ref()?;
    (set.affinity.number != 0).then_some((set.id, set.affinity.number))
}

#[cfg(test)]
mod tests;
