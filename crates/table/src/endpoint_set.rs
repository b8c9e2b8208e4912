//! One version of a set of endpoints, in round-robin order.

use std::sync::Arc;

use sluice_model::Family;

use crate::balance::maglev::Maglev;
use crate::balance::rotation::{self, Rotation};
use crate::{Balance, Upstream};

/// Endpoints in round-robin order: by address.
#[derive(Debug, Default)]
pub struct EndpointSet {
    upstreams: Box<[Arc<Upstream>]>,
    /// The family of all of them.
    family: Option<Family>,
    /// The index of turn 0.
    offset: u64,
    /// For [`Balance::SourceHash`].
    maglev: Option<Arc<Maglev>>,
}

impl EndpointSet {
    /// The endpoints, sorted by address.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// The family of all of its endpoints. `None` if there are several families, or no endpoints.
    pub(crate) fn family(&self) -> Option<Family> {
        self.family
    }

    /// Whether this version of the set contains this endpoint.
    pub fn contains(&self, upstream: &Arc<Upstream>) -> bool {
        let at = self.upstreams.binary_search_by_key(&upstream.address(), |candidate| candidate.address());
        at.ok().and_then(|at| self.upstreams.get(at)).is_some_and(|found| Arc::ptr_eq(found, upstream))
    }

    /// The index of a turn.
    pub(crate) fn position(&self, turn: u64) -> usize {
        rotation::position(turn, self.offset, self.upstreams.len())
    }

    /// Takes the next turn.
    pub(crate) fn turn(&self, rotation: &Rotation) -> Option<&Arc<Upstream>> {
        self.upstreams.get(self.position(rotation.next()))
    }

    pub(crate) fn maglev(&self) -> Option<&Maglev> {
        self.maglev.as_deref()
    }

    /// The next version, with these endpoints, sorted by address. The round robin continues where it is.
    pub(crate) fn next_version(
        &self,
        upstreams: Vec<Arc<Upstream>>,
        rotation: &Rotation,
        balance: Balance,
    ) -> Self {
        let same_addresses =
            self.upstreams.iter().map(|u| u.address()).eq(upstreams.iter().map(|u| u.address()));
        let offset = if same_addresses {
            self.offset
        } else {
            let addresses = |set: &[Arc<Upstream>]| set.iter().map(|u| u.address()).collect::<Vec<_>>();
            let (old, new) = (addresses(&self.upstreams), addresses(&upstreams));
            rotation::continue_from(rotation.peek(), &old, self.offset, &new)
        };
        let maglev = match &self.maglev {
            _ if balance != Balance::SourceHash => None,
            Some(maglev) if same_addresses => Some(Arc::clone(maglev)),
            _ => Maglev::new(upstreams.iter().map(|upstream| upstream.address())).map(Arc::new),
        };
        Self { family: family_of(&upstreams), upstreams: upstreams.into(), offset, maglev }
    }

    /// Whether it consists of exactly these endpoints.
    pub(crate) fn is(&self, upstreams: &[Arc<Upstream>]) -> bool {
        self.upstreams.len() == upstreams.len()
            && self.upstreams.iter().zip(upstreams).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

fn family_of(upstreams: &[Arc<Upstream>]) -> Option<Family> {
    let mut families = upstreams.iter().map(|upstream| Family::of(upstream.address().ip().to_canonical()));
    let first = families.next()?;
    families.all(|family| family == first).then_some(first)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::upstream::tests::test_port;

    /// Endpoints with the ports 1 to `n`.
    pub(crate) fn upstreams(n: u16) -> Vec<Arc<Upstream>> {
        (1..=n).map(|port| Arc::new(Upstream::new(([10, 0, 0, 1], port).into(), test_port()))).collect()
    }

    pub(crate) fn set(upstreams: &[Arc<Upstream>]) -> EndpointSet {
        EndpointSet::default().next_version(upstreams.to_vec(), &Rotation::default(), Balance::RoundRobin)
    }

    pub(crate) fn hashed_set(upstreams: &[Arc<Upstream>]) -> EndpointSet {
        EndpointSet::default().next_version(upstreams.to_vec(), &Rotation::default(), Balance::SourceHash)
    }

    #[test]
    fn a_namesake_is_not_contained() {
        let members = upstreams(3);
        let set = set(&members);
        assert!(members.iter().all(|upstream| set.contains(upstream)));
        assert!(!upstreams(4).iter().any(|upstream| set.contains(upstream)), "same address, other life");
    }

    #[test]
    fn the_maglev_table_is_kept_while_addresses_stay() {
        let set = hashed_set(&upstreams(3));
        let rotation = Rotation::default();
        let same = set.next_version(upstreams(3), &rotation, Balance::SourceHash);
        assert!(Arc::ptr_eq(set.maglev.as_ref().unwrap(), same.maglev.as_ref().unwrap()));
        let other = set.next_version(upstreams(4), &rotation, Balance::SourceHash);
        assert_ne!(set.maglev, other.maglev);
        assert!(set.next_version(upstreams(3), &rotation, Balance::Random).maglev.is_none());
    }
}
