//! What the facts mean. No system here: facts in, findings out.

mod kernel;
mod limits;
mod network;
mod node;
mod rivals;

use super::facts::Facts;
use super::finding::Finding;
pub(super) use network::{FIREWALL, REVERSE_PATH};
pub(super) use node::address_in_range;

/// What findings of [`again`] are about.
pub(super) const FOLLOWED: [&str; 5] =
    [REVERSE_PATH, network::PACKET_MARKS, FIREWALL, network::POLICIES, rivals::LEFTOVERS];

/// Everything there is to say, in the order that a person would fix it.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    [kernel::judge, rivals::judge, network::judge, limits::judge, node::judge]
        .iter()
        .flat_map(|judge| judge(facts))
        .collect()
}

/// What may come into the way of a running agent.
pub(super) fn again(facts: &Facts) -> Vec<Finding> {
    rivals::leftovers(facts).into_iter().chain(network::again(facts)).collect()
}

#[cfg(test)]
mod tests;
