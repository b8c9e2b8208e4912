//! Sets: their versions, and the ids of their endpoints.

use std::collections::HashSet;
use std::net::SocketAddr;

use sluice_table::{AtSocket, SetName, continue_from};

use super::{Full, IdChange, Maps, Parked, Port, PortState};
use crate::adopt::LivingSet;
use crate::affinity::SetAffinity;
use crate::desc::Desc;
use crate::kernel::Kernel;
use crate::layout::{Endpoint, FrontendKey, Set, protocol, verdict};
use crate::ranges::Range;

/// One version of a set.
#[derive(Debug)]
pub(crate) struct Members {
    /// In round-robin order, with their ids.
    pub(crate) list: Vec<(SocketAddr, u32)>,
    pub(crate) range: Range,
    pub(crate) rotation: u64,
    /// One of [`protocol`].
    pub(crate) protocol: u8,
}

#[derive(Debug)]
pub(super) struct SetState {
    pub(super) id: u32,
    pub(super) flags: u32,
    pub(super) affinity: SetAffinity,
    pub(super) members: Members,
}

impl<K: Kernel> Maps<K> {
    /// Takes over the sets of an earlier agent that only this port's frontends name.
    pub(super) fn claim(&mut self, state: &mut PortState, port: &Port) {
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
                    let LivingSet { flags, affinity, members, .. } = set;
                    *place = Some(SetState { id: lived.set, flags, affinity, members });
                }
            }
        }
        self.note_ids(IdChange::Found, found);
    }

    pub(super) fn make_set(
        &mut self,
        addresses: &[SocketAddr],
        protocol: u8,
        service: u32,
        parked: &mut Parked,
    ) -> Result<SetState, Full> {
        let id = self.set_ids.give().ok_or(Full::Others)?;
        let members = self.next_version(&[], addresses, protocol, service, parked);
        let mut members = members.inspect_err(|_| {
            // No program has seen it.
            self.set_ids.take_back(id);
        })?;
        members.rotation = 0;
        let desc = self.write(&members).pack();
        self.kernel.write_set(id, Set { desc, ..Set::default() });
        Ok(SetState { id, flags: 0, affinity: SetAffinity::default(), members })
    }

    /// Changes the endpoints of a set. Those that leave it and are in `serving` are parked.
    pub(super) fn change_set(
        &mut self,
        set: &mut SetState,
        addresses: &[SocketAddr],
        service: u32,
        serving: &[SocketAddr],
        parked: &mut Parked,
    ) -> Result<(), Full> {
        let before: Vec<SocketAddr> = set.members.list.iter().map(|(address, _)| *address).collect();
        if before == addresses {
            return Ok(());
        }
        let SetState { members: Members { list, protocol, .. }, .. } = &*set;
        let mut members = self.next_version(list, addresses, *protocol, service, parked)?;
        let turn = self.kernel.cursor(set.id);
        members.rotation = continue_from(turn, &before, set.members.rotation, addresses);
        let desc = self.write(&members).pack();
        self.kernel.publish(set.id, desc);
        self.retired.ranges.push(set.members.range);
        set.members.list.retain(|(address, _)| addresses.binary_search(address).is_err());
        park(&mut set.members, serving, parked);
        let gone: Vec<u32> = set.members.list.iter().map(|(_, id)| *id).collect();
        self.retired.add_endpoints(set.members.protocol, gone.iter().copied());
        self.leave(gone);
        self.renew_flowing();
        set.members = members;
        Ok(())
    }

    /// Removes a set once no frontend names it.
    pub(super) fn drop_set(&mut self, mut set: SetState, serving: &[SocketAddr], parked: &mut Parked) {
        park(&mut set.members, serving, parked);
        self.dropped.add_set(&set);
    }

    /// The next version of a set. Endpoints that stay or were parked keep their ids; others get new ids and
    /// are written.
    fn next_version(
        &mut self,
        before: &[(SocketAddr, u32)],
        addresses: &[SocketAddr],
        protocol: u8,
        service: u32,
        parked: &mut Parked,
    ) -> Result<Members, Full> {
        let count = u16::try_from(addresses.len()).map_err(|_| Full::Others)?;
        let range = self.ranges.give(count).ok_or(Full::Others)?;
        let mut list = Vec::with_capacity(addresses.len());
        let mut new = Vec::with_capacity(addresses.len().saturating_sub(before.len()));
        let mut back = Vec::new();
        for address in addresses {
            let stays = before.binary_search_by_key(address, |(address, _)| *address).ok();
            let id = if let Some((_, id)) = stays.and_then(|at| before.get(at)) {
                *id
            } else if let Some(id) = parked.take(*address) {
                back.push((*address, id));
                id
            } else if let Some(id) = self.endpoint_ids.give() {
                new.push((id, *address));
                id
            } else {
                parked.add(back);
                let stays = |address| before.binary_search_by_key(address, |(address, _)| *address).is_ok();
                let missing = addresses.iter().filter(|address| !stays(address)).count() - new.len();
                // No program has seen them.
                new.into_iter().for_each(|(id, _)| self.endpoint_ids.take_back(id));
                self.ranges.take_back(range);
                return Err(Full::Numbers(missing));
            };
            list.push((*address, id));
        }
        new.sort_unstable();
        // New TCP endpoints are unverified until the first connection. Datagrams prove nothing.
        for run in new.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let mut endpoint = |(id, address): &(u32, SocketAddr)| {
                let endpoint = self.endpoint(*id, *address);
                if protocol == protocol::TCP { endpoint.unproven() } else { endpoint.with_flows(service) }
            };
            let endpoints: Vec<Endpoint> = run.iter().map(&mut endpoint).collect();
            run.first().into_iter().for_each(|(first, _)| self.kernel.write_endpoints(*first, &endpoints));
        }
        // Only now: what ends under the id's earlier meaning is not counted any more.
        new.iter().for_each(|(id, _)| self.kernel.clear_account(*id));
        Ok(Members { list, range, rotation: 0, protocol })
    }

    /// A new endpoint with this id.
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

    /// Writes the slots of a version. Returns the word to publish.
    fn write(&mut self, members: &Members) -> Desc {
        let ids: Vec<u32> = members.list.iter().map(|(_, id)| *id).collect();
        self.kernel.write_slots(members.range.base, &ids);
        // `next_version` has checked both.
        let count = u16::try_from(ids.len()).unwrap_or(0);
        let rotation = u16::try_from(members.rotation).unwrap_or(0);
        Desc { base: members.range.base, count, rotation }
    }

    /// Records that no set contains these endpoints any more.
    pub(super) fn leave(&mut self, ids: Vec<u32>) {
        ids.iter().for_each(|id| self.kernel.leave(*id));
        self.note_ids(IdChange::Left, ids);
    }

    /// Sets how long the clients of a set keep their endpoints.
    pub(super) fn change_affinity(&mut self, set: &mut SetState, timeout_ms: u32) {
        if set.affinity.timeout_ms == timeout_ms {
            return;
        }
        let number = match set.affinity.number {
            _ if timeout_ms == 0 => 0,
            0 => {
                let number = self.next_affinity;
                self.next_affinity = number.checked_add(1).unwrap_or(1);
                number
            }
            number => number,
        };
        set.affinity = SetAffinity { number, timeout_ms };
        if !self.kernel.write_affinity(set.id, set.affinity) {
            // No connection is translated to the set, so no clients may be reported for it. The port's next
            // change tries again.
            set.affinity = SetAffinity { number: 0, timeout_ms: u32::MAX };
            self.failures += 1;
        }
    }

    /// Makes flows to endpoints that no set contains any more choose new ones.
    pub(super) fn renew_flowing(&mut self) {
        let flowing = std::mem::take(&mut self.retired.flowing);
        self.renew(&flowing);
        self.renewed[0].extend(flowing);
    }

    pub(super) fn renew(&mut self, ids: &[u32]) {
        for id in ids {
            let incarnation = self.next_incarnation(*id);
            self.kernel.renew_endpoint(*id, incarnation);
        }
    }
}

/// Moves a set's serving endpoints to the parked ones. For TCP, `serving` is empty.
fn park(members: &mut Members, serving: &[SocketAddr], parked: &mut Parked) {
    let serves = |(address, _): &mut (SocketAddr, u32)| serving.binary_search(address).is_ok();
    parked.add(members.list.extract_if(.., serves));
}

pub(super) fn index(name: SetName) -> usize {
    match name {
        SetName::Cluster => 0,
        SetName::Local => 1,
    }
}
