//! Keeps the table `bridge sluice`, by which answers reach us from endpoints that share a Linux bridge with the
//! client. `bridge.nft` has its rules; none of them depends on Services.

use tracing::{debug, info, warn};

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
    /// As nft lists it, once it was seen to be as it is wanted.
    known: Option<String>,
    has_complained: bool,
}

impl Bridge {
    /// Gets ready; changes nothing yet.
    pub(super) fn new(config: &Config) -> Self {
        Self { ruleset: Ruleset::bridge(config), known: None, has_complained: false }
    }

    /// Sees to it that it is there; returns whether somebody else had changed it. A kernel that cannot have it serves
    /// all endpoints but those on bridges: that is said once.
    pub(super) fn keep(&mut self, owner: &mut Owner) -> bool {
        match self.try_keep(owner) {
            Ok(is_repaired) => {
                self.has_complained = false;
                return is_repaired;
            }
            Err(error) if self.has_complained => debug!(%error, "no table bridge {TABLE}"),
            Err(error) => {
                self.has_complained = true;
                warn!(
                    "pods on a Linux bridge do not reach endpoints on the same bridge: no nftables table bridge \
                     {TABLE}: {error}{}",
                    mend(&error)
                );
            }
        }
        false
    }

    fn try_keep(&mut self, owner: &mut Owner) -> Result<bool, Error> {
        let listed = self.listed()?;
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

/// What to do where nft has refused. One that could not be run says nothing about the kernel.
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
