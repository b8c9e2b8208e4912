//! Keeps the table in the kernel in its wanted state.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::bridge::Bridge;
use super::changes::Changes;
use super::counters::Counters;
use super::elements::{Delta, Elements, difference};
use super::generation::{Generation, Generations};
use super::lines::Lines;
use super::listed::{elements, listing, structure};
use super::owner::Owner;
use super::ruleset::{INET, Ruleset, SIGNATURE, TABLE};
use super::succession::{Keep, kept, succession};
use super::wanted::Wanted;
use super::{Config, Error, script};
use crate::program;

/// If somebody changes our table all the time, or changes so much of others that notices are missed, elements
/// are compared no more often than this, and for a limited share of the time: comparing 40,000 takes half a
/// second.
const COMPARISON_PAUSE: Duration = Duration::from_secs(2);
const COMPARISON_SHARE: u32 = 20;

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    ruleset: Ruleset,
    owner: Owner,
    bridge: Bridge,
    generations: Generations,
    changes: Changes,
    known: Option<Known>,
    /// Whether this process has written or adopted the table.
    is_ours: bool,
    listing: Trust,
    comparison_due: Option<Instant>,
    counters: Arc<Counters>,
    /// Log lines about oddities of the table. Repairs are logged or counted separately.
    lines: Lines,
}

/// The known state of the table in the kernel.
#[derive(Debug)]
struct Known {
    /// The structure in nft's listing.
    structure: String,
    /// When it was last found unchanged; `None` after changes that may include others'.
    structure_at: Option<Generation>,
    /// When the elements were last found to be as wanted.
    elements_at: Option<Generation>,
}

/// Whether nft's listing can be compared with the text that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    Yes,
    /// The listing was unexpected, and the table was written again. If that does not help, the table is not the
    /// cause.
    OnProbation,
    /// This version of nft produces listings that are not understood.
    No,
}

/// How many differences between the existing and the wanted state are logged.
const DIFFERENCES_SAID: usize = 5;

/// The result of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was done: all is as wanted, or another agent is the owner.
    Nothing,
    /// The number of changed elements.
    Edited(usize),
    /// The whole table was written.
    Written(Why),
    /// Somebody else's change was undone.
    Repaired(Damage),
}

/// Damage done by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// The number of elements that were added, changed or removed.
    Elements(usize),
    /// The table had to be written anew.
    Structure(Why),
    /// The table for bridges had to be written anew.
    Bridge,
}

/// Why a table is written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It does not exist.
    Missing,
    /// It was written by an agent of another version or configuration.
    Other,
    /// It claims to have this structure, but does not.
    Damaged,
    /// Its elements cannot be read, or cannot be changed individually.
    Unwilling,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "it was not there",
            Self::Other => "it was of another version or configuration",
            Self::Damaged => "chains, rules or sets were missing or strange",
            Self::Unwilling => "its elements could not be read, or not be changed one by one",
        })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elements(1) => f.write_str("one of its elements was not as it was left"),
            Self::Elements(number) => write!(f, "{number} of its elements were not as they were left"),
            Self::Structure(Why::Missing) => f.write_str(
                "it was not there, and what it remembered is lost: open connections to endpoints in the node's network, \
                 and between pods on one bridge, are reset",
            ),
            Self::Structure(why) => why.fmt(f),
            Self::Bridge => write!(f, "its companion, the table bridge {TABLE}, was not as it was left"),
        }
    }
}

/// The result of a check of the table in the kernel.
enum Sight {
    /// Its structure is as wanted; the needed changes of its elements.
    Same(Generation, Delta),
    /// It has to be written anew.
    Different(Why),
}

impl Table {
    /// Prepares; changes nothing yet.
    ///
    /// # Errors
    /// The kernel has no nftables, or does not allow its use.
    pub(super) fn open(config: &Config, counters: Arc<Counters>) -> Result<Self, Error> {
        let mut generations = Generations::open()?;
        generations.current()?;
        Ok(Self {
            ruleset: Ruleset::inet(config),
            owner: Owner::open(config.ports)?,
            bridge: Bridge::new(config),
            generations,
            changes: Changes::default(),
            known: None,
            is_ours: false,
            listing: Trust::Yes,
            comparison_due: None,
            counters,
            lines: Lines::default(),
        })
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Makes captured packets be delivered as this configuration says. The table's state becomes unknown.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.ruleset = Ruleset::inet(config);
        (self.known, self.is_ours) = (None, false);
    }

    /// Checks whether this agent is the owner. If that has changed, the table's state becomes unknown.
    ///
    /// # Errors
    /// See [`Owner::look`].
    pub(super) fn look_for_owner(&mut self) -> Result<bool, Error> {
        let was_owner = self.owner.is_current();
        let looked = self.owner.look();
        if self.owner.is_current() != was_owner {
            (self.known, self.is_ours) = (None, false);
        }
        looked
    }

    /// Applies changes of elements in one transaction. If the table's state is unknown, applies everything.
    /// Without changes there is no transaction.
    ///
    /// # Errors
    /// It failed. The retry checks the table again.
    pub(super) fn apply(&mut self, wanted: &mut Wanted) -> Result<Outcome, Error> {
        let outcome = self.try_apply(wanted);
        self.forget_after(&outcome);
        outcome
    }

    /// Checks whether all is as it was left, if that is due, and repairs it. Cheap as long as nobody changes
    /// nftables.
    ///
    /// # Errors
    /// The check or the repair failed. [`Table::apply`] retries it.
    pub(super) fn check(&mut self, wanted: &mut Wanted, now: Instant) -> Result<Outcome, Error> {
        let outcome = match self.try_check(wanted, now) {
            Ok(Outcome::Edited(elements)) => Ok(Outcome::Repaired(Damage::Elements(elements))),
            outcome => outcome,
        };
        self.forget_after(&outcome);
        outcome
    }

    fn forget_after(&mut self, outcome: &Result<Outcome, Error>) {
        if outcome.is_err() {
            self.known = None;
        }
    }

    fn try_apply(&mut self, wanted: &mut Wanted) -> Result<Outcome, Error> {
        if self.known.is_none() {
            return self.reconcile(wanted);
        }
        let delta = wanted.delta();
        if delta.is_empty() {
            wanted.settle();
            return Ok(Outcome::Nothing);
        }
        let before = self.current()?;
        match self.edit(wanted, &delta, before) {
            Err(Error::Nft(program::Error::Failed { message, .. })) => {
                // The usual cause is that the elements have been changed by others.
                debug!("elements cannot be changed, so all of them are compared: {message}");
                let outcome = self.reconcile(wanted)?;
                Ok(match outcome {
                    Outcome::Edited(elements) if elements != delta.len() => {
                        Outcome::Repaired(Damage::Elements(elements))
                    }
                    outcome => outcome,
                })
            }
            outcome => outcome,
        }
    }

    fn try_check(&mut self, wanted: &mut Wanted, now: Instant) -> Result<Outcome, Error> {
        let current = self.current()?;
        let Some(known) = &mut self.known else { return self.reconcile(wanted) };
        if known.elements_at == Some(current) {
            return Ok(Outcome::Nothing);
        }
        if known.structure_at != Some(current) {
            if structure(INET, TABLE)?.as_ref() != Some(&known.structure) {
                return self.reconcile(wanted);
            }
            known.structure_at = Some(current);
        }
        if self.listing == Trust::No {
            known.elements_at = Some(current);
        }
        if self.listing == Trust::No || self.comparison_due.is_some_and(|due| now < due) {
            return Ok(Outcome::Nothing);
        }
        let start = Instant::now();
        let outcome = self.reconcile(wanted);
        self.comparison_due = Some(now + COMPARISON_PAUSE.max(start.elapsed() * COMPARISON_SHARE));
        outcome
    }

    /// The current generation. The known state is valid for it if nobody has touched the table since.
    fn current(&mut self) -> Result<Generation, Error> {
        let current = self.generations.current()?;
        if let Some(known) = &mut self.known
            && known.elements_at != Some(current)
            && self.changes.until() == Some(current)
        {
            (known.structure_at, known.elements_at) = (Some(current), Some(current));
        }
        Ok(current)
    }

    /// Checks all tables. Changes elements that are not as wanted; writes the whole table if its structure is
    /// not, or if there is no other way.
    fn reconcile(&mut self, wanted: &mut Wanted) -> Result<Outcome, Error> {
        let is_bridge_repaired = self.bridge.keep(&mut self.owner);
        let outcome = self.reconcile_inet(wanted)?;
        Ok(match outcome {
            Outcome::Nothing if is_bridge_repaired => Outcome::Repaired(Damage::Bridge),
            outcome => outcome,
        })
    }

    fn reconcile_inet(&mut self, wanted: &mut Wanted) -> Result<Outcome, Error> {
        match self.look(wanted)? {
            Sight::Same(_, delta) if delta.is_empty() => {
                wanted.settle();
                self.counters.elements(wanted.elements().len());
                Ok(Outcome::Nothing)
            }
            Sight::Same(at, delta) => match self.edit(wanted, &delta, at) {
                Err(Error::Nft(program::Error::Failed { message, .. })) => {
                    debug!("elements cannot be changed: {message}");
                    self.write(wanted, Why::Unwilling)
                }
                outcome => outcome,
            },
            Sight::Different(why) => self.write(wanted, why),
        }
    }

    fn look(&mut self, wanted: &Wanted) -> Result<Sight, Error> {
        self.changes.listen();
        let at = self.generations.current()?;
        let Some(structure) = structure(INET, TABLE)? else { return Ok(Sight::Different(Why::Missing)) };
        if !structure.contains(self.ruleset.comment()) {
            let is_an_agents = structure.contains(SIGNATURE);
            return Ok(Sight::Different(if is_an_agents { Why::Other } else { Why::Damaged }));
        }
        let why = match listing()? {
            Ok(listing) if listing.strangers == 0 && listing.shape == *self.ruleset.shape() => {
                self.listing = Trust::Yes;
                self.is_ours = true;
                self.known = Some(Known { structure, structure_at: Some(at), elements_at: Some(at) });
                self.changes.begin(at);
                return Ok(Sight::Same(at, difference(&listing.elements, wanted.elements())));
            }
            Ok(listing) => {
                let elements = (listing.strangers > 0)
                    .then(|| format!("{} elements are not understood", listing.strangers));
                let structure = listing.shape.differences(self.ruleset.shape());
                let differences =
                    Vec::from_iter(elements.into_iter().chain(structure).take(DIFFERENCES_SAID));
                let differences = differences.join("; ");
                let what = format_args!("the nftables table inet {TABLE} is not as it says: {differences}");
                self.lines.warn(Instant::now(), what);
                Why::Damaged
            }
            Err(error) => {
                debug!(%error, "what nft lists is not understood");
                Why::Unwilling
            }
        };
        let is_as_written = self.known.as_ref().is_some_and(|known| known.structure == structure);
        self.listing = match self.listing {
            Trust::Yes => Trust::OnProbation,
            Trust::OnProbation if is_as_written => {
                warn!(
                    "what nft lists is not understood: changes that others make to elements of the table \
                     inet {TABLE} go unnoticed; install another version of nft"
                );
                Trust::No
            }
            other => other,
        };
        Ok(Sight::Different(why))
    }

    /// Changes elements of the table in the state of a generation.
    fn edit(&mut self, wanted: &mut Wanted, delta: &Delta, at: Generation) -> Result<Outcome, Error> {
        let after = self.execute(&script::edits(delta, wanted.elements()), wanted)?;
        if script::changes_rules(delta) {
            // The listing of the structure changes, too. That is rare, so it is listed again.
            self.known = None;
        }
        if let Some(known) = &mut self.known {
            // The known state stays valid if there was no other change in between.
            let follow =
                |known: Option<Generation>| (known == Some(at) && after == at.next()).then_some(after);
            known.structure_at = follow(known.structure_at);
            known.elements_at = follow(known.elements_at);
            if known.elements_at.is_some() {
                self.changes.begin(after);
            }
        }
        Ok(Outcome::Edited(delta.len()))
    }

    /// Writes the whole table in one transaction: the old one serves until the new one does.
    fn write(&mut self, wanted: &mut Wanted, why: Why) -> Result<Outcome, Error> {
        self.known = None;
        let before = self.generations.current()?;
        self.replace(wanted, why)?;
        let structure = structure(INET, TABLE)?;
        let after = self.generations.current()?;
        // Otherwise somebody has changed something meanwhile, and everything is checked again.
        if let Some(structure) = structure
            && after == before.next()
        {
            self.known = Some(Known { structure, structure_at: Some(after), elements_at: Some(after) });
            self.changes.begin(after);
        }
        let was_ours = std::mem::replace(&mut self.is_ours, true);
        Ok(if was_ours { Outcome::Repaired(Damage::Structure(why)) } else { Outcome::Written(why) })
    }

    /// Replaces the existing table, and keeps as much of it as is understood.
    fn replace(&mut self, wanted: &mut Wanted, why: Why) -> Result<(), Error> {
        let listed = structure(INET, TABLE)?;
        // Nothing of a damaged table can be trusted.
        let understood = (why == Why::Other).then(elements).flatten();
        let ways = [understood.map(|there| (Keep::All, there)), Some((Keep::Dynamic, Elements::new()))];
        let mut failure = None;
        for (keep, mut there) in ways.into_iter().flatten() {
            let Some(listed) = &listed else { break };
            let Some(rules) = succession(&self.ruleset, listed, keep) else { break };
            let kept = kept(&self.ruleset, listed, keep);
            there.retain(|key, _| kept.contains(&key.place().to_string()));
            match self.execute(&script::whole(rules, &there, wanted.elements()), wanted) {
                Err(Error::Nft(program::Error::Failed { message, .. })) => {
                    debug!("the table cannot be replaced, {keep:?} of its sets kept: {message}");
                    failure = Some(message);
                }
                outcome => return outcome.map(drop),
            }
        }
        let script = script::whole(self.ruleset.definition(), &Elements::new(), wanted.elements());
        self.execute(&script, wanted)?;
        if let Some(message) = failure {
            warn!(
                "open connections may have been cut off: the table inet {TABLE} was deleted first: {message}"
            );
        }
        Ok(())
    }

    /// Executes a script that applies the wanted state. Returns the generation after it.
    fn execute(&mut self, script: &str, wanted: &mut Wanted) -> Result<Generation, Error> {
        self.changes.pause();
        self.owner.execute(script)?;
        self.counters.transaction(wanted.elements().len());
        wanted.settle();
        self.changes.listen();
        self.generations.current()
    }
}
