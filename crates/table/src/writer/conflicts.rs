//! Notices about frontends that several Services name, or that are the apiserver's.

use sluice_model::{Frontend, ServicePortName};

use super::Writer;
use crate::Notice;
use crate::claims::Claim;

/// Number of claimants of a frontend that get a notice: the next ones in line. Any number of Services may
/// name a frontend.
const CLAIMANTS_TOLD: usize = 8;

/// Number of past notices that are remembered for a frontend. More than can hold at a time, because other
/// claimants come first while some have no endpoints.
const REMEMBERED: usize = 8 * CLAIMANTS_TOLD;

/// The notices about one frontend.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// The notices that hold now.
    standing: Vec<Notice>,
    /// Past notices, which may hold again when endpoints come, and are not to be repeated each time.
    told: Vec<Notice>,
}

impl Conflicts {
    pub(super) fn standing(&self) -> &[Notice] {
        &self.standing
    }
}

impl Writer {
    /// Conflicts about a frontend that were not reported before.
    pub(super) fn new_conflicts(&mut self, frontend: Frontend) -> Vec<Notice> {
        let claims = self.claims.of(&frontend);
        let is_left_out = self.left_out.contains(&frontend);
        if claims.len() < 2 && !is_left_out && !self.conflicts.contains_key(&frontend) {
            return Vec::new();
        }
        let standing = match is_left_out {
            true => self.left_out_of(frontend, claims),
            false => self.conflicts_of(frontend, claims),
        };
        let mut conflicts = self.conflicts.remove(&frontend).unwrap_or_default();
        conflicts.told.retain(|told| is_possible(told, claims));
        let new: Vec<Notice> =
            standing.iter().filter(|notice| !conflicts.told.contains(notice)).cloned().collect();
        conflicts.told.extend(new.iter().cloned());
        let surplus = conflicts.told.len().saturating_sub(REMEMBERED);
        conflicts.told.drain(..surplus);
        conflicts.standing = standing;
        if !conflicts.told.is_empty() {
            self.conflicts.insert(frontend, conflicts);
        }
        new
    }

    /// The claimants that do not get a frontend because it is the apiserver's. Only that address is reported,
    /// not the others on which a nodePort is left out as well.
    fn left_out_of(&self, frontend: Frontend, claims: &[Claim]) -> Vec<Notice> {
        let is_apiservers = self.apiservers.contains(&frontend.address);
        let claims = claims.iter().filter(|_| is_apiservers).take(CLAIMANTS_TOLD);
        let notice =
            |claim: &Claim| Notice::Apiserver { frontend, kind: claim.kind, port: claim.port.clone() };
        claims.map(notice).collect()
    }

    /// The claimants that would serve a frontend but do not get it. Those without endpoints do not count.
    fn conflicts_of(&self, frontend: Frontend, claims: &[Claim]) -> Vec<Notice> {
        let leads_somewhere = |claim: &Claim| self.leads_somewhere(&frontend, claim);
        let Some(holder) = self.claims.holder(&frontend, leads_somewhere) else { return Vec::new() };
        let mut conflicts: Vec<Notice> = Vec::new();
        for claim in claims.iter().filter(|claim| claim.port != holder.port && leads_somewhere(claim)) {
            let conflict =
                Notice::Conflict { frontend, holder: holder.port.clone(), claimant: claim.port.clone() };
            if !conflicts.contains(&conflict) {
                conflicts.push(conflict);
            }
            if conflicts.len() == CLAIMANTS_TOLD {
                break;
            }
        }
        conflicts
    }
}

/// Whether all Services of a notice still name its frontend.
fn is_possible(notice: &Notice, claims: &[Claim]) -> bool {
    let is_there = |port: &ServicePortName| claims.iter().any(|claim| claim.port == *port);
    match notice {
        Notice::Conflict { holder, claimant, .. } => is_there(holder) && is_there(claimant),
        Notice::Apiserver { port, .. } => is_there(port),
        _ => false,
    }
}
