//! What there is in the maps, and in which order it changes.
//!
//! * An endpoint has a number in each set that it is in. A set's slots are written before the set's one word says so,
//!   and a set before a frontend names it; frontends stop naming a set before it goes.
//! * A number or a range that programs could have read is not used for anything else until a barrier says that
//!   nobody holds it any more. A barrier takes milliseconds, so there is one when nothing else is free.
//! * What does not fit is left to the other ways of capturing, and tried again.
//!
//! `port`: a service port as it is to be. `sets`, `frontends`: what is made of it. `parked`: endpoints that keep their flows.
//! `retired`: what waits for a barrier.

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

/// Sets that a service port has: one for each traffic policy.
const SETS: usize = 2;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What became of an endpoint's number, for whoever keeps accounts of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdChange {
    /// An earlier agent has given it, and it goes on: what it has done so far is known to that one.
    Found(u32),
    /// Nothing leads there any more; connections may be open.
    Left(u32),
    /// It is free to mean something else from now on, and this is all that it has done.
    Freed(u32, Account),
}

/// How much there is, and what did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Frontends that the programs know.
    pub frontends: usize,
    /// Sets. What is not in use any more and waits for a barrier is had as soon as it is needed, so neither this nor what follows
    /// has it.
    pub sets: usize,
    /// Endpoints, counted in each set.
    pub endpoints: usize,
    /// Slots, in powers of two.
    pub slots: usize,
    /// Service ports with something that did not fit, and is left to the other ways of capturing.
    pub waiting: usize,
    /// How often something did not fit, or the kernel refused a change.
    pub failures: u64,
    /// Clients that keep their endpoints and that the programs lead, counted in each set, and those that are about to be
    /// forgotten.
    pub clients: usize,
    /// How many of these there may be.
    pub most_clients: u32,
    /// How often such a client was left to the relay: there was no room for it, or its Service had its share.
    pub refused_clients: u64,
}

#[derive(Debug, Default)]
struct PortState {
    service: u32,
    frontends: Vec<FrontendKey>,
    sets: [Option<SetState>; SETS],
    parked: Parked,
}

/// Something has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// This many more numbers of endpoints are needed than are free, those included that have been parked for it.
    Numbers(usize),
    /// There are not enough sets, slots or frontends.
    Others,
}

/// The contents of the maps, and the only one who changes them.
#[derive(Debug)]
pub struct Maps<K> {
    kernel: K,
    set_ids: Ids,
    endpoint_ids: Ids,
    ranges: Ranges,
    /// How often each endpoint's number was given.
    incarnations: Vec<u32>,
    next_service: u32,
    /// The next [`SetAffinity::number`](crate::SetAffinity::number).
    next_affinity: u32,
    ports: Map<PortKey, PortState>,
    /// What the programs know, once [`Maps::flush`] is done with what was touched.
    placed: Map<FrontendKey, Placed>,
    touched: HashSet<FrontendKey, foldhash::fast::RandomState>,
    /// No outcome names these any more, but frontends may until then.
    dropped: Retired,
    retired: Retired,
    /// Numbers that were renewed lately, and before that: a program that had picked one just before may have begun
    /// a flow by the new meaning just after.
    renewed: [Vec<u32>; 2],
    /// Ports with something that did not fit.
    waiting: BTreeMap<PortKey, Port>,
    /// Whether there may be more room since the waiting ones were tried.
    has_room: bool,
    /// Sets of an earlier agent that nobody has claimed.
    living: HashMap<u32, LivingSet>,
    /// Its endpoints that were in no set.
    strays: Strays,
    failures: u64,
    /// What became of numbers, if somebody wants to know.
    id_changes: Option<Vec<IdChange>>,
}

impl<K: Kernel> Maps<K> {
    /// Maps that have nothing in them.
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

    /// From now on remembers what becomes of endpoints' numbers, for [`Maps::take_id_changes`].
    pub fn follow_ids(&mut self) {
        self.id_changes.get_or_insert_default();
    }

    /// What has become of numbers since this was last asked, in order.
    pub fn take_id_changes(&mut self) -> Vec<IdChange> {
        self.id_changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note_ids(&mut self, change: impl Fn(u32) -> IdChange, ids: impl IntoIterator<Item = u32>) {
        if let Some(changes) = &mut self.id_changes {
            changes.extend(ids.into_iter().map(change));
        }
    }

    /// Maps that an earlier agent may have left. What lives there serves on; ports that are told claim their part, and
    /// what nobody has claimed goes with [`Maps::forget_unclaimed`]. Contents that make no sense are emptied.
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

    /// Takes away what an earlier agent has left and no port has claimed: all ports there are have been told.
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

    /// Makes ports what they are to be; one without frontends is gone.
    pub fn apply(&mut self, ports: impl IntoIterator<Item = (PortKey, Port)>) {
        for (key, port) in ports {
            self.set_port(key, port);
        }
        self.flush();
    }

    /// Tries again what did not fit, if there may be room, and what the kernel has refused. Which ports may have changed.
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

    /// How much there is.
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

    /// The endpoints that a port has in a set, by address, and their numbers. None where the set is not used, or has no room.
    pub fn numbers(&self, key: PortKey, name: SetName) -> impl Iterator<Item = (SocketAddr, SocketNumber)> {
        let set = self.ports.get(&key).and_then(|state| state.sets[index(name)].as_ref());
        set.into_iter().flat_map(|set| &set.members.list).map(|(address, id)| {
            let incarnation = self.incarnations.get(*id as usize).copied().unwrap_or_default();
            (*address, SocketNumber { id: *id, incarnation })
        })
    }

    /// The clients of a port's set that keep their endpoints. None where none do, or the set is not used.
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

    /// The ports with such sets, by what their clients are found by.
    pub fn with_clients(&self) -> HashMap<u32, (PortKey, SetName)> {
        let of_port = |(key, state): (&PortKey, &PortState)| {
            [SetName::Cluster, SetName::Local].map(|name| Some((with_clients(state, name)?.1, (*key, name))))
        };
        self.ports.iter().flat_map(of_port).flatten().collect()
    }

    /// What all is written through.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The same, for a successor.
    pub fn into_kernel(self) -> K {
        self.kernel
    }

    /// The same, to be changed in what is not the contents.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Waits for readers, and has what they may have held be free; whether there is anything now that was not.
    pub fn reclaim(&mut self) -> bool {
        self.flush();
        if self.retired.is_empty() {
            return false;
        }
        if self.kernel.barrier().is_err() {
            self.failures += 1;
            return false;
        }
        // Whatever they mean next, it is something else.
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

    /// Makes a port what it is to be. Where something has no room: nothing more than to that point, or, as the last
    /// resort, all else, with what has no room left alone.
    fn try_port(&mut self, key: PortKey, port: &Port, is_last_resort: bool) -> Result<(), Full> {
        let mut state = self.ports.remove(&key).unwrap_or_default();
        if state.service == 0 {
            state.service = self.next_service;
            // After four billion ports numbers come again; they only count.
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
        // A port's frontends are all of one.
        let protocol =
            port.frontends.first().map_or(0, |(frontend, _)| FrontendKey::from(*frontend).protocol);
        // Without a frontend it is gone, and its flows with it.
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
                // What it has is out of date.
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

/// A set whose clients keep their endpoints, and by what they are found.
fn with_clients(state: &PortState, name: SetName) -> Option<(u32, u32)> {
    let set = state.sets[index(name)].as_ref()?;
    (set.affinity.number != 0).then_some((set.id, set.affinity.number))
}

#[cfg(test)]
mod tests;
