//! Removes everything of ours from the kernel, and nothing else.

use super::generation::Generations;
use super::ruleset::{BRIDGE, INET, TABLE};
use super::{Error, listed, nft, owner, routing, settings};

/// The result of the clean-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// The removed objects in words: `the nftables table inet sluice`.
    pub removed: Vec<String>,
    /// Settings of the kernel that have their values of before the first agent again: `net.ipv4.tcp_tw_reuse=2`.
    pub restored: Vec<String>,
    /// Settings that were not restored, and why.
    pub kept: Vec<String>,
}

/// Removes the tables, the policy rules and the routes, and restores the settings that agents have changed. Does
/// nothing if there are none. An agent that still runs creates all of it again.
///
/// # Errors
/// Something could not be removed; everything before it is removed.
pub fn cleanup() -> Result<Cleaned, Error> {
    // If a capability is missing, this reports it better than nft does.
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
