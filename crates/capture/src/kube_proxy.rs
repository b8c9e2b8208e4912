//! Finds and removes what kube-proxy leaves on a node, in each of its modes.
//!
//! kube-proxy cleans up only on request (`kube-proxy --cleanup`), and its leftovers go on catching packets,
//! before our rules or after them. Objects of others are never touched: kubelet's chains, which look similar,
//! and chains that somebody else's rules refer to.
//!
//! It runs the programs `nft`, `iptables-legacy-save` and `-restore`, `ip`, `ipvsadm` and `ipset`; all except
//! the first only if there is something for them. It blocks.
//!
//! * `look`: reads the system's state.
//! * `plan`: decides what to do about it; pure.

mod chains;
mod command;
mod iptables_save;
mod ipvs;
mod look;
mod nft_listing;
mod plan;

use std::fmt;

use sluice_model::Family;

use look::Sight;
use plan::{Plan, Step};
use thiserror::Error;

use crate::program;

/// kube-proxy's leftovers cannot be found or removed.
#[derive(Debug, Error)]
pub enum Error {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// The output of a program is not understood; another version may work.
    #[error("what {program} prints is not understood: {error}")]
    Unexpected {
        /// The program.
        program: &'static str,
        /// The parser's error.
        error: serde_json::Error,
    },
}

/// A leftover of kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// The table of the nftables mode.
    NftTable(Family),
    /// Chains of the iptables and IPVS modes in one table, and rules of other chains that lead to them.
    Chains {
        /// Which of the two iptables.
        backend: Backend,
        /// Of `iptables` or `ip6tables`.
        family: Family,
        /// The table: `nat`, `filter`, `mangle`.
        table: String,
        /// How many chains.
        chains: usize,
        /// How many rules lead to them.
        jumps: usize,
    },
    /// The number of virtual services of IPVS.
    VirtualServices(usize),
    /// The interface `kube-ipvs0`, which has all Service addresses.
    IpvsInterface,
    /// The number of IP sets of the IPVS mode. Without the chains, nothing uses them.
    IpSets(usize),
}

/// Which iptables it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// In nftables (`iptables-nft`).
    Nft,
    /// In tables of its own (`iptables-legacy`).
    Legacy,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NftTable(family) => write!(f, "nftables table {} kube-proxy", nft_family(*family)),
            Self::Chains { backend, family, table, chains, jumps } => {
                let program = match family {
                    Family::V4 => "iptables",
                    Family::V6 => "ip6tables",
                };
                let variant = match backend {
                    Backend::Nft => "nft",
                    Backend::Legacy => "legacy",
                };
                let (chains, jumps) = (counted(*chains, "chain"), counted(*jumps, "rule"));
                write!(f, "{chains} of {program}-{variant} in table {table}, {jumps} leading to them")
            }
            Self::VirtualServices(number) => write!(f, "{} of IPVS", counted(*number, "virtual service")),
            Self::IpvsInterface => write!(f, "interface {}", ipvs::INTERFACE),
            Self::IpSets(number) => f.write_str(&counted(*number, "IP set")),
        }
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The result of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The leftovers of kube-proxy.
    pub traces: Vec<Trace>,
    /// Parts of the system that could not be checked, with advice.
    pub unseen: Vec<String>,
}

/// The result of a removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Leftovers that were removed.
    pub removed: Vec<Trace>,
    /// Leftovers that were kept on purpose, with the reason.
    pub kept: Vec<String>,
    /// Leftovers that could not be removed, with advice.
    pub failed: Vec<String>,
}

/// Finds kube-proxy's leftovers, or the objects of one that runs. Changes nothing.
///
/// # Errors
/// The ruleset cannot be read.
pub fn find() -> Result<Found, Error> {
    let sight = Sight::take()?;
    let plan = Plan::new(&sight);
    Ok(Found { traces: plan.traces(), unseen: sight.unseen })
}

/// Removes kube-proxy's leftovers; does nothing if there are none. A kube-proxy that still runs creates them again.
///
/// # Errors
/// The ruleset cannot be read; nothing was changed then.
pub fn remove() -> Result<Removed, Error> {
    let sight = Sight::take()?;
    let plan = Plan::new(&sight);
    let mut outcome = Removed { removed: Vec::new(), kept: plan.kept, failed: sight.unseen };
    for Step { traces, commands } in plan.steps {
        match commands.iter().try_for_each(|command| command.run().map(drop)) {
            Ok(()) => outcome.removed.extend(traces),
            Err(error) => {
                outcome.failed.extend(traces.iter().map(|trace| format!("{trace}: {error}")));
            }
        }
    }
    Ok(outcome)
}

/// The family as nft spells it.
fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

#[cfg(test)]
mod tests;
