//! What there is in the maps, and in which order it changes.
//!
//! * An endpoint has a number in each set that it is in. A set's slots are written before the set's one word says so,
//!   and a set before a frontend names it; frontends stop naming a set before it goes.
//! * A number or a range that programs could have read is not used for anything else until a barrier says that
//!   nobody holds it any more. A barrier takes milliseconds, so there is one when nothing else is free.
//! * What does not fit is left to the other ways of capturing, and tried again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use sluice_model::Frontend;
use sluice_table::{AtSocket, SetName, SocketNumber, SocketOutcomes, continue_from};

use crate::address::in_order;
use crate::adopt::{Found, Living, LivingSet};
use crate::desc::Desc;
use crate::ids::Ids;
use crate::kernel::Kernel;
use crate::layout::{
    Account, Endpoint, FrontendKey, FrontendValue, Outcome, Set, protocol, set_flags, verdict,
};
use crate::ranges::{Range, Ranges};

/// Sets that a service port has: one for each traffic policy.
const SETS: usize = 2;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A service port, by a number of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey(pub u64);

/// A service port as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// Its frontends, and what happens to connections there. What is the same as no entry needs not be here.
    pub frontends: Vec<(Frontend, SocketOutcomes)>,
    /// The endpoints for traffic policy Cluster; looked at only where an outcome names the set.
    pub cluster: Vec<SocketAddr>,
    /// Those for traffic policy Local.
    pub local: Vec<SocketAddr>,
    /// Whether any is chosen, with equal chances, instead of turns.
    pub is_random: bool,
}

impl Port {
    fn set(&self, name: SetName) -> &[SocketAddr] {
        match name {
            SetName::Cluster => &self.cluster,
            SetName::Local => &self.local,
        }
    }

    fn set_flags(&self) -> u32 {
        if self.is_random { set_flags::RANDOM } else { 0 }
    }

    fn names(&self, name: SetName) -> bool {
        let is_named = |outcome: AtSocket| outcome == AtSocket::Balance(name);
        self.frontends.iter().any(|(_, outcomes)| is_named(outcomes.node) || is_named(outcomes.pod))
    }
}

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
    /// Sets, those included that wait to be used again; so are the next two.
    pub sets: usize,
    /// Endpoints, counted in each set.
    pub endpoints: usize,
    /// Slots, in powers of two.
    pub slots: usize,
    /// Service ports with something that did not fit, and is left to the other ways of capturing.
    pub waiting: usize,
    /// How often something did not fit, or the kernel refused a change.
    pub failures: u64,
}

/// One version of a set.
#[derive(Debug)]
pub(crate) struct Members {
    /// In the order of their turns, with their numbers.
    pub(crate) list: Vec<(SocketAddr, u32)>,
    pub(crate) range: Range,
    pub(crate) rotation: u64,
    /// One of [`protocol`].
    pub(crate) protocol: u8,
}

#[derive(Debug)]
struct SetState {
    id: u32,
    flags: u32,
    members: Members,
}

#[derive(Debug, Default)]
struct PortState {
    service: u32,
    frontends: Vec<FrontendKey>,
    sets: [Option<SetState>; SETS],
}

#[derive(Debug)]
struct Placed {
    value: FrontendValue,
    /// Whose it is; of an earlier agent's, nobody has said so yet.
    owner: Option<PortKey>,
}

/// What is not in use any more, but may still be held by a reader.
#[derive(Debug, Default)]
struct Retired {
    sets: Vec<u32>,
    ranges: Vec<Range>,
    endpoints: Vec<u32>,
    /// Those of them that flows of unconnected sockets keep to until they are told.
    flowing: Vec<u32>,
}

impl Retired {
    fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.ranges.is_empty() && self.endpoints.is_empty()
    }

    fn append(&mut self, other: &mut Self) {
        self.sets.append(&mut other.sets);
        self.ranges.append(&mut other.ranges);
        self.endpoints.append(&mut other.endpoints);
        self.flowing.append(&mut other.flowing);
    }

    fn add_members(&mut self, members: &Members) {
        self.ranges.push(members.range);
        self.add_endpoints(members.protocol, members.list.iter().map(|(_, id)| *id));
    }

    fn add_endpoints(&mut self, protocol: u8, ids: impl Iterator<Item = u32>) {
        let before = self.endpoints.len();
        self.endpoints.extend(ids);
        // What connections of TCP did is counted at their end only while the number means the same.
        if protocol == protocol::UDP {
            self.flowing.extend(self.endpoints.iter().skip(before));
        }
    }

    fn add_set(&mut self, set: &SetState) {
        self.sets.push(set.id);
        self.add_members(&set.members);
    }
}

/// Something has no room.
#[derive(Debug)]
struct Full;

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
    ports: Map<PortKey, PortState>,
    /// What the programs know, once [`Maps::flush`] is done with what was touched.
    placed: Map<FrontendKey, Placed>,
    touched: HashSet<FrontendKey>,
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
            ports: Map::default(),
            placed: Map::default(),
            touched: HashSet::new(),
            dropped: Retired::default(),
            retired: Retired::default(),
            renewed: Default::default(),
            waiting: BTreeMap::new(),
            has_room: false,
            living: HashMap::new(),
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

    /// The endpoints of a port with their numbers; one that is in two sets has two.
    pub fn members(&self, port: PortKey) -> impl Iterator<Item = (SocketAddr, u32)> {
        let sets = self.ports.get(&port).into_iter().flat_map(|state| state.sets.iter().flatten());
        sets.flat_map(|set| set.members.list.iter().copied())
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
        let Some(found) = Found::read(&contents, kernel.capacity()) else {
            let keys: Vec<FrontendKey> = contents.frontends.iter().map(|(key, _)| *key).collect();
            kernel.remove_frontends(&keys)?;
            kernel.barrier()?;
            let incarnations = contents.endpoints.iter().map(|endpoint| endpoint.incarnation).collect();
            return Ok(Self { incarnations, ..Self::new(kernel) });
        };
        let placed = |(key, value)| (key, Placed { value, owner: None });
        Ok(Self {
            set_ids: found.set_ids,
            endpoint_ids: found.endpoint_ids,
            ranges: found.ranges,
            incarnations: found.incarnations,
            next_service: found.next_service,
            placed: found.frontends.into_iter().map(placed).collect(),
            living: found.sets,
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
        Stats {
            frontends: self.placed.len(),
            sets: self.set_ids.given(),
            endpoints: self.endpoint_ids.given(),
            slots: self.ranges.given() as usize,
            waiting: self.waiting.len(),
            failures: self.failures,
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
            self.endpoint_ids.take_back(id);
        }
        true
    }

    fn set_port(&mut self, key: PortKey, port: Port) {
        self.waiting.remove(&key);
        if self.try_port(key, &port, false).is_ok() {
            return;
        }
        if self.reclaim() && self.try_port(key, &port, false).is_ok() {
            return;
        }
        if self.try_port(key, &port, true).is_err() {
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
        if !state.frontends.is_empty() || state.sets.iter().any(Option::is_some) {
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
        for (name, addresses) in &wanted {
            let place = &mut state.sets[index(*name)];
            if addresses.is_empty() {
                continue;
            }
            let done = match place {
                Some(set) => self.change_set(set, addresses),
                None => self.make_set(addresses, protocol, state.service).map(|set| *place = Some(set)),
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
        }
        let placed = self.place_frontends(key, state, port, is_last_resort);
        if placed.is_err() && !is_last_resort {
            return placed;
        }
        for (name, addresses) in &wanted {
            if addresses.is_empty() {
                let left = state.sets[index(*name)].take();
                left.iter().for_each(|set| self.dropped.add_set(set));
            }
        }
        result.and(placed)
    }

    /// Brings frontends in line with outcomes and with the sets that there are.
    fn place_frontends(
        &mut self,
        key: PortKey,
        state: &mut PortState,
        port: &Port,
        is_last_resort: bool,
    ) -> Result<(), Full> {
        let mut result = Ok(());
        let before = std::mem::take(&mut state.frontends);
        let mut now = HashSet::with_capacity(port.frontends.len());
        for (frontend, outcomes) in &port.frontends {
            let frontend = FrontendKey::from(*frontend);
            let [node, pod] = [outcomes.node, outcomes.pod].map(|outcome| outcome_of(outcome, &state.sets));
            if node.verdict == verdict::RELAY && pod.verdict == verdict::RELAY {
                continue;
            }
            let value = FrontendValue { node, pod, flags: 0, service: state.service };
            let is_full = self.placed.len() >= self.kernel.capacity().frontends as usize;
            if is_full && !self.placed.contains_key(&frontend) {
                result = Err(Full);
                if is_last_resort {
                    continue;
                }
                now.extend(before);
                state.frontends.extend(now);
                return result;
            }
            now.insert(frontend);
            let is_so = |placed: &mut Placed| {
                placed.owner = Some(key);
                std::mem::replace(&mut placed.value, value) == value
            };
            let is_so = match self.placed.get_mut(&frontend) {
                Some(placed) => is_so(placed),
                None => {
                    self.placed.insert(frontend, Placed { value, owner: Some(key) });
                    false
                }
            };
            if !is_so {
                self.touched.insert(frontend);
            }
        }
        for frontend in before.iter().filter(|frontend| !now.contains(frontend)) {
            if self.placed.get(frontend).is_some_and(|placed| placed.owner == Some(key)) {
                self.placed.remove(frontend);
                self.touched.insert(*frontend);
            }
        }
        state.frontends.extend(now);
        result
    }

    /// Has the programs know the frontends as they are to be. Only then is what they named before out of use.
    fn flush(&mut self) {
        let (mut put, mut remove) = (Vec::new(), Vec::new());
        for key in self.touched.drain() {
            match self.placed.get(&key) {
                Some(placed) => put.push((key, placed.value)),
                None => remove.push(key),
            }
        }
        // First, as they make room.
        let mut is_left = false;
        if !remove.is_empty() && self.kernel.remove_frontends(&remove).is_err() {
            self.touched.extend(remove.drain(..));
            is_left = true;
        }
        if !put.is_empty() && self.kernel.put_frontends(&put).is_err() {
            self.failures += 1;
            // Some may have what they had: better nothing, until it is tried again.
            let keys: Vec<FrontendKey> = put.iter().map(|(key, _)| *key).collect();
            is_left |= self.kernel.remove_frontends(&keys).is_err();
            self.touched.extend(keys);
        }
        if is_left {
            self.failures += 1;
            return;
        }
        self.has_room |= !self.dropped.is_empty() || !remove.is_empty();
        let left = self.dropped.endpoints.clone();
        self.note_ids(IdChange::Left, left);
        self.retired.append(&mut self.dropped);
        self.renew_flowing();
    }

    /// Has flows to endpoints that nothing leads to any more choose anew.
    fn renew_flowing(&mut self) {
        let flowing = std::mem::take(&mut self.retired.flowing);
        self.renew(&flowing);
        self.renewed[0].extend(flowing);
    }

    fn renew(&mut self, ids: &[u32]) {
        for id in ids {
            let incarnation = self.next_incarnation(*id);
            self.kernel.renew_endpoint(*id, incarnation);
        }
    }

    /// Takes over what an earlier agent has left of a port: sets that only its frontends lead to.
    fn claim(&mut self, state: &mut PortState, port: &Port) {
        if self.living.is_empty() {
            return;
        }
        let own: HashSet<FrontendKey> =
            port.frontends.iter().map(|(frontend, _)| (*frontend).into()).collect();
        let mut found = Vec::new();
        for (frontend, outcomes) in &port.frontends {
            let Some(placed) = self.placed.get(&FrontendKey::from(*frontend)) else { continue };
            let lived = placed.value;
            for (outcome, lived) in [(outcomes.node, lived.node), (outcomes.pod, lived.pod)] {
                let AtSocket::Balance(name) = outcome else { continue };
                let place = &mut state.sets[index(name)];
                let is_its = |set: &LivingSet| set.named_by.is_subset(&own);
                if place.is_none()
                    && lived.verdict == verdict::BALANCE
                    && self.living.get(&lived.set).is_some_and(is_its)
                    && let Some(set) = self.living.remove(&lived.set)
                {
                    state.service = set.service;
                    found.extend(set.members.list.iter().map(|(_, id)| *id));
                    *place = Some(SetState { id: lived.set, flags: set.flags, members: set.members });
                }
            }
        }
        self.note_ids(IdChange::Found, found);
    }

    fn make_set(&mut self, addresses: &[SocketAddr], protocol: u8, service: u32) -> Result<SetState, Full> {
        let id = self.set_ids.give().ok_or(Full)?;
        let Ok(mut members) = self.next_version(&[], addresses, protocol) else {
            // Nobody has seen it.
            self.set_ids.take_back(id);
            return Err(Full);
        };
        members.rotation = 0;
        let desc = self.write(&members).pack();
        self.kernel.write_set(id, Set { desc, service, ..Set::default() });
        Ok(SetState { id, flags: 0, members })
    }

    fn change_set(&mut self, set: &mut SetState, addresses: &[SocketAddr]) -> Result<(), Full> {
        let before: Vec<SocketAddr> = set.members.list.iter().map(|(address, _)| *address).collect();
        if before == addresses {
            return Ok(());
        }
        let mut members = self.next_version(&set.members.list, addresses, set.members.protocol)?;
        let turn = self.kernel.cursor(set.id);
        members.rotation = continue_from(turn, &before, set.members.rotation, addresses);
        let desc = self.write(&members).pack();
        self.kernel.publish(set.id, desc);
        self.retired.ranges.push(set.members.range);
        let is_gone = |(address, _): &&(SocketAddr, u32)| addresses.binary_search(address).is_err();
        let gone: Vec<u32> = set.members.list.iter().filter(is_gone).map(|(_, id)| *id).collect();
        self.retired.add_endpoints(set.members.protocol, gone.iter().copied());
        self.note_ids(IdChange::Left, gone);
        self.renew_flowing();
        set.members = members;
        Ok(())
    }

    /// The next version of a set: endpoints that stay keep their numbers, others are given new ones and written.
    fn next_version(
        &mut self,
        before: &[(SocketAddr, u32)],
        addresses: &[SocketAddr],
        protocol: u8,
    ) -> Result<Members, Full> {
        let count = u16::try_from(addresses.len()).map_err(|_| Full)?;
        let range = self.ranges.give(count).ok_or(Full)?;
        let mut list = Vec::with_capacity(addresses.len());
        let mut new = Vec::new();
        for address in addresses {
            let stays = before.binary_search_by_key(address, |(address, _)| *address).ok();
            let id = match stays.and_then(|at| before.get(at)) {
                Some((_, id)) => *id,
                None => match self.endpoint_ids.give() {
                    Some(id) => {
                        new.push((id, *address));
                        id
                    }
                    None => {
                        // Nobody has seen them.
                        new.into_iter().for_each(|(id, _)| self.endpoint_ids.take_back(id));
                        self.ranges.take_back(range);
                        return Err(Full);
                    }
                },
            };
            list.push((*address, id));
        }
        new.sort_unstable();
        // It shows with the first connection whether somebody is there. Datagrams show nothing.
        let is_unproven = protocol == protocol::TCP;
        for run in new.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let mut endpoint = |(id, address): &(u32, SocketAddr)| {
                let endpoint = self.endpoint(*id, *address);
                if is_unproven { endpoint.unproven() } else { endpoint }
            };
            let endpoints: Vec<Endpoint> = run.iter().map(&mut endpoint).collect();
            run.first().into_iter().for_each(|(first, _)| self.kernel.write_endpoints(*first, &endpoints));
        }
        // Only now: what is over by the number's former meaning is not counted any more.
        new.iter().for_each(|(id, _)| self.kernel.clear_account(*id));
        Ok(Members { list, range, rotation: 0, protocol })
    }

    /// An endpoint that is given a number.
    fn endpoint(&mut self, id: u32, address: SocketAddr) -> Endpoint {
        Endpoint::new(address, self.next_incarnation(id))
    }

    fn next_incarnation(&mut self, id: u32) -> u32 {
        let at = id as usize;
        if self.incarnations.len() <= at {
            self.incarnations.resize(at + 1, 0);
        }
        self.incarnations.get_mut(at).map_or(0, |incarnation| {
            *incarnation = incarnation.wrapping_add(1);
            *incarnation
        })
    }

    /// Writes the slots of a version; what is to be published of it.
    fn write(&mut self, members: &Members) -> Desc {
        let ids: Vec<u32> = members.list.iter().map(|(_, id)| *id).collect();
        self.kernel.write_slots(members.range.base, &ids);
        // Neither is more than what `next_version` has checked.
        let count = u16::try_from(ids.len()).unwrap_or(0);
        let rotation = u16::try_from(members.rotation).unwrap_or(0);
        Desc { base: members.range.base, count, rotation }
    }
}

fn index(name: SetName) -> usize {
    match name {
        SetName::Cluster => 0,
        SetName::Local => 1,
    }
}

/// An outcome with the number of its set; without one, nothing is decided.
fn outcome_of(outcome: AtSocket, sets: &[Option<SetState>; SETS]) -> Outcome {
    let set = match outcome {
        AtSocket::Balance(name) => sets[index(name)].as_ref(),
        AtSocket::Relay | AtSocket::Refuse => None,
    };
    let (set, verdict) = match (outcome, set) {
        (AtSocket::Refuse, _) => (0, verdict::REFUSE),
        (AtSocket::Balance(_), Some(set)) => (set.id, verdict::BALANCE),
        _ => (0, verdict::RELAY),
    };
    Outcome { set, verdict, pad: [0; 3] }
}

#[cfg(test)]
mod tests;
