//! Endpoints of UDP that no set has any more and that serve whom they have: they keep their numbers, and so flows stay there,
//! as those of the relay do. One that is in a set again has its number as before.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::{IdChange, Maps, PortState, Retired};
use crate::kernel::Kernel;
use crate::layout::protocol;

/// The parked endpoints of a service port: of each address that serves at the most two, one from each set, and what an
/// earlier agent had parked.
#[derive(Debug, Default)]
pub(super) struct Parked(Vec<(SocketAddr, u32)>);

/// Numbers that an earlier agent has given to endpoints of UDP, and that no set has: it may have parked them.
pub(crate) type Strays = HashMap<SocketAddr, Vec<u32>>;

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, endpoints: impl IntoIterator<Item = (SocketAddr, u32)>) {
        self.0.extend(endpoints);
        self.0.sort_unstable();
    }

    /// The number of an endpoint that is to be in a set again.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<u32> {
        let at = self.0.partition_point(|(other, _)| *other < address);
        self.0.get(at).is_some_and(|(other, _)| *other == address).then(|| self.0.remove(at).1)
    }

    /// Has those go to `retired` that serve no more. `serving` is in order.
    pub(super) fn retire_unless(&mut self, serving: &[SocketAddr], retired: &mut Retired) {
        let is_over = |(address, _): &mut (SocketAddr, u32)| serving.binary_search(address).is_err();
        retired.add_endpoints(protocol::UDP, self.0.extract_if(.., is_over).map(|(_, id)| id));
    }
}

impl<K: Kernel> Maps<K> {
    /// Takes over what an earlier agent may have parked of a port.
    pub(super) fn claim_strays(&mut self, state: &mut PortState, serving: &[SocketAddr]) {
        if self.strays.is_empty() {
            return;
        }
        for address in serving {
            let ids = self.strays.remove(address).unwrap_or_default();
            self.note_ids(IdChange::Found, ids.iter().copied());
            state.parked.add(ids.into_iter().map(|id| (*address, id)));
        }
    }

    /// Has numbers that nobody has claimed mean something else.
    pub(super) fn forget_strays(&mut self) {
        let ids = self.strays.drain().flat_map(|(_, ids)| ids);
        self.dropped.add_endpoints(protocol::UDP, ids);
    }

    /// Gives up what is parked, for others that have no number: those flows choose anew. Whether there was any.
    pub(super) fn give_up_parked(&mut self) -> bool {
        let before = self.dropped.endpoints.len();
        self.forget_strays();
        for state in self.ports.values_mut() {
            state.parked.retire_unless(&[], &mut self.dropped);
        }
        self.dropped.endpoints.len() > before
    }
}
