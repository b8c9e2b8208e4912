//! `round-robin`: each endpoint in turn.

use std::sync::Arc;

use super::random;
use super::rotation::Rotation;
use crate::Upstream;
use crate::endpoint_set::EndpointSet;

/// The maximum number of turns that one pick takes. Each is a write that all workers contend for, so a set
/// with hundreds of unusable endpoints must not cost hundreds of them.
const TURNS: usize = 8;

/// Chooses the endpoint whose turn it is. If it is unusable, it loses its turn and the next turn is taken
/// from the shared rotation. So the load of a dead endpoint spreads over all others instead of doubling the
/// load of its neighbour.
///
/// If [`TURNS`] turns meet no usable endpoint, it checks each endpoint once and chooses among the usable ones
/// with equal probability.
pub(super) fn choose<'a>(
    set: &'a EndpointSet,
    rotation: &Rotation,
    seed: u64,
    is_usable: impl Fn(&Arc<Upstream>) -> bool,
) -> Option<&'a Arc<Upstream>> {
    (0..set.upstreams().len().min(TURNS))
        .find_map(|_| set.turn(rotation).filter(|upstream| is_usable(upstream)))
        .or_else(|| random::choose(set.upstreams(), seed, rotation.peek(), is_usable))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::endpoint_set::tests::{set, upstreams};

    #[test]
    fn where_few_are_usable_a_pick_takes_few_turns_and_they_share_evenly() {
        let members = upstreams(200);
        let (set, rotation) = (set(&members), Rotation::default());
        let mut counts = [0; 5];
        for _ in 0..1_000 {
            let before = rotation.peek();
            let looks = Cell::new(0);
            let is_usable = |upstream: &Arc<Upstream>| {
                looks.set(looks.get() + 1);
                upstream.address().port() <= 5
            };
            let port = choose(&set, &rotation, 7, is_usable).unwrap().address().port();
            counts[usize::from(port) - 1] += 1;
            assert!(rotation.peek() - before <= 8 && looks.get() <= 8 + 1 + 2 * 200, "{}", looks.get());
        }
        assert!(counts.iter().all(|count| (120..360).contains(count)), "{counts:?}");
        assert!(choose(&set, &rotation, 7, |_| false).is_none());
    }
}
