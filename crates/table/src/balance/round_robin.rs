//! `round-robin`: in turns.

use std::sync::Arc;

use super::rotation::Rotation;
use crate::Upstream;
use crate::endpoint_set::EndpointSet;

/// The endpoint whose turn it is. One that is not usable loses its turn and the next turn is taken
/// from the shared rotation, so the load of a dead endpoint spreads over all others instead of
/// doubling that of its neighbour.
pub(super) fn choose<'a>(
    set: &'a EndpointSet,
    rotation: &Rotation,
    is_usable: impl Fn(&Arc<Upstream>) -> bool,
) -> Option<&'a Arc<Upstream>> {
    // As many turns as there are endpoints: alone, that meets each of them; other threads may take
    // turns in between, so what it missed is looked for without one.
    set.upstreams()
        .iter()
        .find_map(|_| set.turn(rotation).filter(|upstream| is_usable(upstream)))
        .or_else(|| set.upstreams().iter().find(|upstream| is_usable(upstream)))
}
