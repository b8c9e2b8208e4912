//! What the facts mean. No system here: facts in, findings out.

mod kernel;
mod limits;
mod network;
mod rivals;

use super::facts::Facts;
use super::finding::Finding;

/// Everything there is to say, in the order that a person would mend it.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    [kernel::judge, rivals::judge, network::judge, limits::judge]
        .iter()
        .flat_map(|judge| judge(facts))
        .collect()
}

#[cfg(test)]
mod tests;
