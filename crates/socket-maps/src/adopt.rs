//! What an earlier agent has left in the maps, still in use: sets with their positions, and endpoints with
//! their ids. Its successor takes them over.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::affinity::SetAffinity;
use crate::desc::Desc;
use crate::ids::Ids;
use crate::kernel::{Capacity, Kernel};
use crate::layout::{AffinityKey, Endpoint, FrontendKey, FrontendValue, Set, verdict};
use crate::maps::{Members, Strays};
use crate::ranges::{Range, Ranges};

/// The contents of the maps.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Every frontend, in no order.
    pub frontends: Vec<(FrontendKey, FrontendValue)>,
    /// The array of sets.
    pub sets: Vec<Set>,
    /// The array of slots.
    pub slots: Vec<u32>,
    /// The array of endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Clients with session affinity, in no order.
    pub clients: Vec<AffinityKey>,
}

impl Contents {
    /// A number for the clients of a set that was never used before.
    pub(crate) fn next_affinity(&self) -> u32 {
        let of_sets = self.sets.iter().map(|set| SetAffinity::unpack(set.affinity).number);
        let of_clients = self.clients.iter().map(|client| client.number);
        of_sets.chain(of_clients).max().unwrap_or(0).checked_add(1).unwrap_or(1)
    }
}

/// Maps that may have existed before.
pub trait Living: Kernel {
    /// The contents. New maps are empty.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn contents(&self) -> io::Result<Contents>;
}

/// A set of the earlier agent that no port has claimed yet.
#[derive(Debug)]
pub(crate) struct LivingSet {
    pub(crate) members: Members,
    pub(crate) service: u32,
    pub(crate) flags: u32,
    pub(crate) affinity: SetAffinity,
    /// The frontends that name it.
    pub(crate) named_by: HashSet<FrontendKey>,
}

/// What the earlier agent has left, and what is free.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) frontends: HashMap<FrontendKey, FrontendValue>,
    pub(crate) sets: HashMap<u32, LivingSet>,
    /// UDP endpoints that are in no set.
    pub(crate) strays: Strays,
    pub(crate) set_ids: Ids,
    pub(crate) endpoint_ids: Ids,
    pub(crate) ranges: Ranges,
    pub(crate) incarnations: Vec<u32>,
    pub(crate) next_service: u32,
}

impl Found {
    /// Interprets the contents; `None` if they are inconsistent.
    pub(crate) fn read(contents: &Contents, capacity: Capacity) -> Option<Self> {
        let mut sets: HashMap<u32, LivingSet> = HashMap::new();
        let mut frontends = HashMap::new();
        let mut ranges = Ranges::new(capacity.slots);
        let mut next_service = 1;
        for (key, value) in &contents.frontends {
            next_service = next_service.max(value.service.checked_add(1)?);
            for outcome in [value.node, value.pod] {
                if outcome.verdict == verdict::BALANCE {
                    let set = match sets.entry(outcome.set) {
                        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                        std::collections::hash_map::Entry::Vacant(entry) => {
                            entry.insert(living_set(contents, outcome.set, (key, value), &mut ranges)?)
                        }
                    };
                    set.named_by.insert(*key);
                } else if outcome.verdict > verdict::REFUSE {
                    return None;
                }
            }
            frontends.insert(*key, *value);
        }
        let mut endpoints: Vec<u32> =
            sets.values().flat_map(|set| &set.members.list).map(|(_, id)| *id).collect();
        let strays = strays(contents, &endpoints);
        endpoints.extend(strays.ids());
        Some(Self {
            set_ids: Ids::with_given(capacity.sets, sets.keys().copied().collect())?,
            endpoint_ids: Ids::with_given(capacity.endpoints, endpoints)?,
            incarnations: contents.endpoints.iter().map(|endpoint| endpoint.incarnation).collect(),
            frontends,
            sets,
            strays,
            ranges,
            next_service,
        })
    }
}

/// Endpoints that are in no set. Flows may stay with them until the id is reused.
fn strays(contents: &Contents, in_sets: &[u32]) -> Strays {
    let in_sets: HashSet<u32> = in_sets.iter().copied().collect();
    let mut strays = Strays::of_services(&contents.frontends);
    for (id, endpoint) in (0..).zip(&contents.endpoints) {
        if endpoint.has_flows() && !in_sets.contains(&id) {
            strays.add(id, endpoint);
        }
    }
    strays
}

/// The set that a frontend names.
fn living_set(
    contents: &Contents,
    id: u32,
    (key, value): (&FrontendKey, &FrontendValue),
    ranges: &mut Ranges,
) -> Option<LivingSet> {
    let set = contents.sets.get(id as usize)?;
    let desc = Desc::unpack(set.desc);
    let range = Range::at(desc.base, desc.count);
    if desc.count == 0 || desc.rotation >= desc.count || !ranges.give_this(range) {
        return None;
    }
    let base = desc.base as usize;
    let slots = contents.slots.get(base..base + usize::from(desc.count))?;
    let endpoint = |id: &u32| Some((contents.endpoints.get(*id as usize)?.address(), *id));
    let list = slots.iter().map(endpoint).collect::<Option<Vec<_>>>()?;
    let is_in_order = list.is_sorted_by(|(a, _), (b, _)| a < b);
    let members = Members { list, range, rotation: u64::from(desc.rotation), protocol: key.protocol };
    is_in_order.then(|| LivingSet {
        members,
        service: value.service,
        flags: set.flags,
        affinity: SetAffinity::unpack(set.affinity),
        named_by: HashSet::new(),
    })
}
