//! Maintains the table `bridge sluice`, by which answers from endpoints that share a Linux bridge with the
//! client reach us. `bridge.nft` has its rules; none of them depends on Services.

use std::time::Instant;

use tracing::{debug, info, warn};

use super::lines::Lines;
use super::listed::structure;
use super::owner::Owner;
use super::ruleset::{Ruleset, TABLE};
use super::succession::{Keep, succession};
use super::{Config, Error};
use crate::program;

/// The table.
#[derive(Debug)]
pub(super) struct Bridge {
    ruleset: Ruleset,
    /// The listing by nft, after a check that it is as wanted.
    known: Option<String>,
    said: Option<Complaint>,
    /// Success and failure may alternate.
    lines: Lines,
}

/// The last log line about the table, so that it is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complaint {
    /// It is unknown whether the table exists.
    Unseen,
    /// The table cannot be created.
    Missing,
}

impl Bridge {
    /// Prepares; changes nothing yet.
    pub(super) fn new(config: &Config) -> Self {
        Self { ruleset: Ruleset::bridge(config), known: None, said: None, lines: Lines::default() }
    }

    /// Ensures that the table exists; returns whether somebody else had changed it. A kernel that does not
    /// support it serves all endpoints except those on bridges: that is logged once.
    pub(super) fn keep(&mut self, owner: &mut Owner) -> bool {
        let listed = match self.listed() {
            Ok(listed) => listed,
            Err(error) => {
                self.complain(Complaint::Unseen, &error);
                return false;
            }
        };
        match self.try_keep(listed, owner) {
            Ok(is_repaired) => {
                self.said = None;
                is_repaired
            }
            Err(error) => {
                self.complain(Complaint::Missing, &error);
                false
            }
        }
    }

    fn complain(&mut self, complaint: Complaint, error: &Error) {
        let what = complaint.words(error);
        if self.said.replace(complaint) == Some(complaint) {
            debug!("{what}");
        } else {
            self.lines.warn(Instant::now(), format_args!("{what}"));
        }
    }

    fn try_keep(&mut self, listed: Option<String>, owner: &mut Owner) -> Result<bool, Error> {
        if let Some(listed) = &listed
            && self
                .known
                .as_ref()
                .map_or_else(|| listed.contains(self.ruleset.comment()), |known| known == listed)
        {
            self.known = Some(listed.clone());
            return Ok(false);
        }
        match listed.and_then(|listed| succession(&self.ruleset, &listed, Keep::Dynamic)) {
            Some(succession) => {
                if let Err(error) = owner.execute(&succession) {
                    owner.execute(&self.ruleset.definition())?;
                    warn!(
                        "open connections may have been cut off: the table bridge {TABLE} was deleted first: {error}"
                    );
                }
            }
            None => owner.execute(&self.ruleset.definition())?,
        }
        let was_ours = self.known.is_some();
        self.known = self.listed()?;
        if !was_ours {
            info!("the nftables table bridge {TABLE} is written");
        }
        Ok(was_ours)
    }

    fn listed(&self) -> Result<Option<String>, Error> {
        structure(self.ruleset.family(), TABLE)
    }
}

impl Complaint {
    fn words(self, error: &Error) -> String {
        match self {
            Self::Unseen => format!(
                "the nftables table bridge {TABLE}, by which pods on a Linux bridge reach endpoints on the same bridge, \
                 could not be looked at: {error}"
            ),
            Self::Missing => format!(
                "pods on a Linux bridge do not reach endpoints on the same bridge: no nftables table bridge {TABLE}: \
                 {error}{}",
                mend(error)
            ),
        }
    }
}

/// Advice after a failure of nft. If nft could not be run, that says nothing about the kernel.
fn mend(error: &Error) -> &'static str {
    match error {
        Error::Nft(program::Error::Failed { .. }) => "; it needs a kernel with CONFIG_NF_TABLES_BRIDGE",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_table_that_could_not_be_looked_at_is_not_said_to_be_missing() {
        let error =
            Error::from(program::Error::Unusable { program: "nft", error: io::ErrorKind::WouldBlock.into() });
        let said = Complaint::Unseen.words(&error);
        assert!(said.contains("could not be looked at") && !said.contains("no nftables table"), "{said}");
        assert!(Complaint::Missing.words(&error).contains("no nftables table bridge sluice"));
    }

    #[test]
    fn only_an_nft_that_has_refused_says_something_about_the_kernel() {
        let program = "nft";
        let refused = program::Error::Failed { program, message: "Could not process rule".to_owned() };
        assert!(mend(&Error::Nft(refused)).contains("CONFIG_NF_TABLES_BRIDGE"));
        let others = [
            program::Error::Unusable { program, error: io::ErrorKind::WouldBlock.into() },
            program::Error::Missing(program),
            program::Error::Killed { program, signal: 9 },
            program::Error::Stuck { program, after: Duration::from_secs(30) },
        ];
        for error in others {
            assert_eq!(mend(&error.into()), "");
        }
    }
}
