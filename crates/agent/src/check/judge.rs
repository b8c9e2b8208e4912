//! Draws conclusions from the facts. Pure: facts in, findings out.

mod kernel;
mod limits;
mod network;
mod node;
mod rivals;

use super::facts::Facts;
use super::finding::Finding;
pub(super) use network::{FIREWALL, REVERSE_PATH};
pub(super) use node::address_in_range;

/// The subjects of the findings of [`again`].
pub(super) const FOLLOWED: [&str; 5] =
    [REVERSE_PATH, network::PACKET_MARKS, FIREWALL, network::POLICIES, rivals::LEFTOVERS];

/// All findings, in the order in which a person would fix them.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    [kernel::judge, rivals::judge, network::judge, limits::judge, node::judge]
        .iter()
        .flat_map(|judge| judge(facts))
        .collect()
}

/// Findings about obstacles that may appear while an agent runs.
pub(super) fn again(facts: &Facts) -> Vec<Finding> {
    rivals::leftovers(facts).into_iter().chain(network::again(facts)).collect()
}

#[cfg(test)]
mod tests;
