//! What kube-proxy leaves on a node, in each of its modes: finding it and removing it.
//!
//! kube-proxy cleans up after itself only when it is asked to (`kube-proxy --cleanup`), and what it leaves
//! goes on catching packets: before ours do, or after them. What is not its own is never touched: kubelet's
//! chains, which look alike, and chains that somebody else's rules refer to.
//!
//! Runs the programs `nft`, `iptables-legacy-save` and `-restore`, `ip`, `ipvsadm` and `ipset`; all but the
//! first only where there is something for them. Blocks.
//!
//! * `look`: what there is, read from the system.
//! * `plan`: what to do about it, without a system.

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

/// It cannot be found out or removed.
#[derive(Debug, Error)]
pub enum Error {
    /// A program did not do what it was to do.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// It says something that is not understood; another version of it may be.
    #[error("what {program} prints is not understood: {error}")]
    Unexpected {
        /// The program.
        program: &'static str,
        /// Where it goes wrong.
        error: serde_json::Error,
    },
}

/// Something of kube-proxy's.
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
    /// So many virtual services of IPVS.
    VirtualServices(usize),
    /// The interface `kube-ipvs0`, which has all Service addresses.
    IpvsInterface,
    /// So many IP sets of the IPVS mode. Nothing uses them without the chains.
    IpSets(usize),
}

/// Where iptables keeps its tables.
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

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What is kube-proxy's.
    pub traces: Vec<Trace>,
    /// What could not be looked at, with the mend.
    pub unseen: Vec<String>,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// What is gone.
    pub removed: Vec<Trace>,
    /// What was left on purpose, with the reason.
    pub kept: Vec<String>,
    /// What should be gone and is not, with the mend.
    pub failed: Vec<String>,
}

/// Looks for what kube-proxy has left, or is using. Changes nothing.
///
/// # Errors
/// The ruleset cannot be read.
pub fn find() -> Result<Found, Error> {
    let sight = Sight::take()?;
    let plan = Plan::new(&sight);
    Ok(Found { traces: plan.traces(), unseen: sight.unseen })
}

/// Removes it. Nothing is there: nothing is done. A kube-proxy that still runs makes all of it again.
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
