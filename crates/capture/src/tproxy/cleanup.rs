//! Removing from the kernel what is ours, and nothing else.

use super::generation::Generations;
use super::ruleset::{BRIDGE, INET, TABLE};
use super::{Error, listed, nft, owner, routing, settings};

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Each thing in words: `the nftables table inet sluice`.
    pub removed: Vec<String>,
    /// Settings of the kernel that are as they were before the first agent: `net.ipv4.tcp_tw_reuse=2`.
    pub restored: Vec<String>,
    /// Settings that are left as they are, and why.
    pub kept: Vec<String>,
}

/// Removes the tables, the policy rules and the routes, and sets back the settings that agents have changed. Where there are none, nothing is done. An agent that
/// still runs makes all of it again.
///
/// # Errors
/// Something could not be removed; what was removed before is gone.
pub fn cleanup() -> Result<Cleaned, Error> {
    // Says what is missing, where that is a capability, better than nft does.
    Generations::open()?.current()?;
    let mut removed = Vec::new();
    for family in [INET, BRIDGE] {
        if listed::structure(family, TABLE)?.is_some() {
            nft::execute(&format!("delete table {family} {TABLE}\n"))?;
            removed.push(format!("the nftables table {family} {TABLE}"));
        }
    }
    removed.extend(routing::remove()?.into_iter().map(|item| format!("the {item} for captured packets")));
    if listed::structure(INET, owner::TABLE)?.is_some() {
        nft::execute(&format!("delete table {INET} {}\n", owner::TABLE))?;
        removed.push(format!("the nftables table {INET} {}", owner::TABLE));
    }
    let settings::Restored { any, restored, kept } = settings::restore()?;
    if any {
        removed.push(format!("the nftables table {INET} {}", settings::TABLE));
    }
    Ok(Cleaned { removed, restored, kept })
}
