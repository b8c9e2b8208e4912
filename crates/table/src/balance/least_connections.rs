//! `least-connections`: the endpoint with the fewest connections from this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::rotation::Rotation;
use crate::Upstream;
use crate::endpoint_set::EndpointSet;

/// Chooses the usable endpoint with the fewest connections, established or being established. Among equals,
/// it takes the one that is next in round robin, so an idle Service is served in turns.
pub(super) fn choose<'a>(
    set: &'a EndpointSet,
    rotation: &Rotation,
    is_usable: impl Fn(&Arc<Upstream>) -> bool,
) -> Option<&'a Arc<Upstream>> {
    let (before, after) = set.upstreams().split_at_checked(set.position(rotation.next()))?;
    let load = |upstream: &&Arc<Upstream>| {
        let stats = upstream.stats();
        stats.active.load(Ordering::Relaxed) + stats.connecting.load(Ordering::Relaxed)
    };
    after.iter().chain(before).filter(|upstream| is_usable(upstream)).min_by_key(load)
}

/// Counts one connection attempt at an endpoint until it is dropped. Otherwise all connections of one batch
/// would go to the same endpoint.
#[derive(Debug)]
pub(crate) struct Connecting(Arc<Upstream>);

impl Connecting {
    pub(crate) fn new(upstream: &Arc<Upstream>) -> Self {
        upstream.stats().connecting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(upstream))
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.stats().connecting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lease;
    use crate::endpoint_set::tests::{set, upstreams};

    #[test]
    fn the_least_loaded_is_chosen_and_equals_take_turns() {
        let upstreams = upstreams(3);
        let set = set(&upstreams);
        let rotation = Rotation::default();
        let choose = || choose(&set, &rotation, |_| true).unwrap().address().port();
        assert_eq!([choose(), choose(), choose(), choose()], [1, 2, 3, 1]);
        let _held = [Lease::of(&upstreams[0]), Lease::of(&upstreams[1]), Lease::of(&upstreams[1])];
        assert_eq!([choose(), choose(), choose()], [3, 3, 3]);
        let connecting = [Connecting::new(&upstreams[2]), Connecting::new(&upstreams[2])];
        assert_eq!([choose(), choose()], [1, 1]);
        drop(connecting);
        assert_eq!([choose(), choose()], [3, 3]);
    }

    #[test]
    fn only_usable_ones_are_compared() {
        let upstreams = upstreams(2);
        let _held = Lease::of(&upstreams[1]);
        let set = set(&upstreams);
        let rotation = Rotation::default();
        let second = choose(&set, &rotation, |upstream| upstream.address().port() == 2);
        assert_eq!(second.unwrap().address().port(), 2);
        assert!(choose(&set, &rotation, |_| false).is_none());
    }
}
