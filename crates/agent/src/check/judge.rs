//! What the facts mean. No system here: facts in, findings out.

mod kernel;
mod limits;
mod network;
mod node;
mod rivals;

use super::facts::Facts;
use super::finding::Finding;
pub(super) use node::address_in_range;

/// Everything there is to say, in the order that a person would fix it.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    [kernel::judge, rivals::judge, network::judge, limits::judge, node::judge]
        .iter()
        .flat_map(|judge| judge(facts))
        .collect()
}

#[cfg(test)]
mod tests;
