//! UDP endpoints that still serve but are in no set. They keep their ids, so flows stay with them, as relayed
//! flows do. If one is in a set again, it has the same id as before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use super::{IdChange, Maps, Port, PortState, Retired};
use crate::address::owner;
use crate::kernel::Kernel;
use crate::layout::{Endpoint, FrontendKey, FrontendValue, protocol};

/// The parked endpoints of a service port: at most two for each serving address, one from each set, and those
/// that an earlier agent had parked.
#[derive(Debug, Default)]
pub(super) struct Parked(Vec<(SocketAddr, u32)>);

/// Ids of UDP endpoints of an earlier agent that are in no set: it may have parked them.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    /// By the number of the service port that they belonged to.
    services: HashMap<u32, Strayed>,
    /// Those whose service port is not known.
    others: Vec<u32>,
    /// The service port for each owner in the endpoints' flags; `None` if several have the same value.
    owners: HashMap<u16, Option<u32>>,
}

/// The strays of one service port.
#[derive(Debug, Default)]
struct Strayed {
    /// Its frontends.
    named_by: HashSet<FrontendKey>,
    endpoints: HashMap<SocketAddr, Vec<u32>>,
}

impl Strays {
    /// Prepares for the strays of the UDP service ports of these frontends.
    pub(crate) fn of_services(frontends: &[(FrontendKey, FrontendValue)]) -> Self {
        let mut strays = Self::default();
        for (key, FrontendValue { service, .. }) in
            frontends.iter().filter(|(key, _)| key.protocol == protocol::UDP)
        {
            strays.services.entry(*service).or_default().named_by.insert(*key);
            let known = strays.owners.entry(owner(*service)).or_insert(Some(*service));
            *known = known.filter(|known| known == service);
        }
        strays
    }

    pub(crate) fn add(&mut self, id: u32, endpoint: &Endpoint) {
        let service = self.owners.get(&endpoint.owner()).copied().flatten();
        match service.and_then(|service| self.services.get_mut(&service)) {
            Some(strayed) => strayed.endpoints.entry(endpoint.address()).or_default().push(id),
            None => self.others.push(id),
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        let endpoints = self.services.values().flat_map(|strayed| strayed.endpoints.values().flatten());
        endpoints.chain(&self.others).copied()
    }
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, endpoints: impl IntoIterator<Item = (SocketAddr, u32)>) {
        self.0.extend(endpoints);
        self.0.sort_unstable();
    }

    /// Removes and returns the id of an endpoint that is to be in a set again.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<u32> {
        let at = self.0.partition_point(|(other, _)| *other < address);
        self.0.get(at).is_some_and(|(other, _)| *other == address).then(|| self.0.remove(at).1)
    }

    /// Moves those that do not serve any more to `retired`. `serving` is sorted.
    pub(super) fn retire_unless(&mut self, serving: &[SocketAddr], retired: &mut Retired) {
        let is_over = |(address, _): &mut (SocketAddr, u32)| serving.binary_search(address).is_err();
        retired.add_endpoints(protocol::UDP, self.0.extract_if(.., is_over).map(|(_, id)| id));
    }
}

impl<K: Kernel> Maps<K> {
    /// Takes over the endpoints that an earlier agent may have parked for a port, if all frontends of the
    /// earlier service port are this port's: other ports may have the same endpoints.
    pub(super) fn claim_strays(&mut self, state: &mut PortState, port: &Port, serving: &[SocketAddr]) {
        if self.strays.services.is_empty() || serving.is_empty() {
            return;
        }
        let own: HashSet<FrontendKey> =
            port.frontends.iter().map(|(frontend, _)| (*frontend).into()).collect();
        let placed = own.iter().filter_map(|key| self.placed.get(key));
        let services: BTreeSet<u32> = placed.map(|placed| placed.value.service).collect();
        for service in services {
            let strayed = self.strays.services.get_mut(&service);
            let Some(strayed) = strayed.filter(|strayed| strayed.named_by.is_subset(&own)) else { continue };
            let mut found = Vec::new();
            for address in serving {
                let ids = strayed.endpoints.remove(address).unwrap_or_default();
                found.extend(ids.into_iter().map(|id| (*address, id)));
            }
            if !found.is_empty() {
                // The port parks endpoints under that number from now on.
                state.service = service;
            }
            self.note_ids(IdChange::Found, found.iter().map(|(_, id)| *id));
            state.parked.add(found);
        }
    }

    /// Drops the ids that no port has claimed.
    pub(super) fn forget_strays(&mut self) {
        self.dropped.add_endpoints(protocol::UDP, std::mem::take(&mut self.strays).ids());
    }

    /// Gives up all parked endpoints if that frees as many ids as others need; their flows choose new
    /// endpoints. Returns whether it did.
    pub(super) fn give_up_parked(&mut self, needed: usize) -> bool {
        let parked: usize = self.ports.values().map(|state| state.parked.len()).sum();
        if parked + self.strays.ids().count() < needed {
            return false;
        }
        self.forget_strays();
        for state in self.ports.values_mut() {
            state.parked.retire_unless(&[], &mut self.dropped);
        }
        true
    }
}
