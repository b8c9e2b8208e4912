//! The kernel settings that the agent changes, all of them of this network namespace, and their former values.
//!
//! The former values are recorded in a table of nftables that has no rules. It belongs to the same namespace,
//! outlives agents and their upgrades, and disappears together with the settings, when the namespace or the
//! kernel ends. [`restore`] reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::lines::Lines;
use super::retry::{RETRY_MAX, Retry};
use super::ruleset::INET;
use super::{Error, bridge_netfilter, listed, nft};

/// The table's name.
pub(super) const TABLE: &str = "sluice_settings";

/// Whether connect(2) may take a port that an earlier connection has left in TIME_WAIT: 0 never, 1 after a second,
/// 2 (the kernel's default) on loopback only.
const TW_REUSE: &str = "net.ipv4.tcp_tw_reuse";

/// Whether connections being established move to another socket of the same address when theirs is closed (Linux
/// 5.14); otherwise they are reset.
const MIGRATE_REQ: &str = "net.ipv4.tcp_migrate_req";

/// The minimum interval between checks.
const PAUSE: Duration = Duration::from_secs(1);

/// A setting that should be 1.
struct Kept {
    name: &'static str,
    /// The values that may be changed.
    from: fn(u64) -> bool,
    /// The purpose.
    why: &'static str,
    /// The consequence if it cannot be changed.
    otherwise: &'static str,
}

const KEPT: [Kept; 2] = [
    // Under kube-proxy the kernel's address translation let connections with the node's own address reuse ports.
    // Without that, about 470 new ones per second to one endpoint use up all of them. An administrator who
    // disabled it altogether had a reason.
    Kept {
        name: TW_REUSE,
        from: |value| value == 2,
        why: "many short connections to one endpoint would use up the node's ports",
        otherwise: "many short connections to one endpoint use up the node's ports",
    },
    // When an agent ends and its successor takes over. Kernels without this setting reset such connections.
    Kept {
        name: MIGRATE_REQ,
        from: |value| value != 1,
        why: "an agent hands over connections that are being made",
        otherwise: "connections that are just being made are reset when another agent takes over",
    },
];

/// Settings by name, dotted as people write them. Each is a chain in the table, with a comment.
type Records = BTreeMap<String, Record>;

/// The record of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    /// Its value before.
    former: u64,
    /// The value that an agent set.
    ours: u64,
}

/// The settings, and their known records.
#[derive(Debug)]
pub(super) struct Settings {
    root: PathBuf,
    records: Records,
    /// Settings that could not be recorded.
    owed: BTreeSet<String>,
    /// Somebody may have deleted the records.
    may_be_lost: bool,
    retry: Retry,
    /// When the settings that should be 1 are checked again.
    due: Option<Instant>,
    /// Settings that cannot be changed, and whose failure has been logged.
    refused: BTreeSet<&'static str>,
    /// Log lines about changed settings.
    lines: Lines,
}

/// How to restore a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Set it to this value.
    Back(u64),
    /// Keep it: somebody else has set it to this value since.
    Keep(u64),
    /// It has the former value already, or does not exist any more.
    Nothing,
}

impl Record {
    fn parse(comment: &str) -> Option<Self> {
        let (former, ours) = comment.strip_prefix("was ")?.split_once(", Sluice has set it to ")?;
        Some(Self { former: former.parse().ok()?, ours: ours.parse().ok()? })
    }

    fn comment(self) -> String {
        let Self { former, ours } = self;
        format!("was {former}, Sluice has set it to {ours}")
    }

    fn way_back(self, now: Option<u64>) -> Way {
        match now {
            Some(now) if now == self.former => Way::Nothing,
            Some(now) if now == self.ours => Way::Back(self.former),
            Some(now) => Way::Keep(now),
            None => Way::Nothing,
        }
    }
}

impl Settings {
    /// Reads the records of earlier agents.
    ///
    /// # Errors
    /// nft fails.
    pub(super) fn open() -> Result<Self, Error> {
        let root = PathBuf::from("/proc/sys");
        let records = recorded()?;
        Ok(Self {
            root,
            records,
            owed: BTreeSet::new(),
            may_be_lost: false,
            retry: Retry::default(),
            due: None,
            refused: BTreeSet::new(),
            lines: Lines::default(),
        })
    }

    /// The value of a setting; `None` if the kernel does not have it.
    pub(super) fn get(&self, name: &str) -> Option<u64> {
        get(&self.root, name)
    }

    /// Changes a setting that has another value, and records the former one. That replaces an earlier record:
    /// somebody has changed the setting since.
    ///
    /// # Errors
    /// The kernel does not have it, or this process may not change it.
    pub(super) fn set(&mut self, name: &str, value: u64) -> io::Result<()> {
        let former = self.get(name).ok_or(io::ErrorKind::NotFound)?;
        // Records nothing before it is known that the setting can be changed.
        let mut file = open(&self.root, name)?;
        let record = Record { former, ours: value };
        self.records.insert(name.to_owned(), record);
        if let Err(error) = nft::execute(&recording(&[(name, record)])) {
            self.owed.insert(name.to_owned());
            self.note_unrecorded(Instant::now(), &error);
        }
        write!(file, "{value}")
    }

    /// Changes settings that are not as wanted, if a check is due: otherwise connections would fail
    /// unnecessarily. Others may change them again, as `sysctl --system` does.
    pub(super) fn keep(&mut self, now: Instant) {
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = Some(now + PAUSE);
        for Kept { name, from, why, otherwise } in &KEPT {
            if !self.get(name).is_some_and(from) {
                continue;
            }
            match self.set(name, 1) {
                Ok(()) => {
                    self.refused.remove(name);
                    if self.lines.admit(now) {
                        info!("{name} is set to 1: {why}");
                    }
                }
                Err(error) => {
                    if self.refused.insert(name) {
                        warn!("{name} cannot be set to 1: {error}; set it on the node, or {otherwise}");
                    }
                }
            }
        }
    }

    /// Notes that somebody may have deleted the records, most likely with everything else in nftables.
    pub(super) fn may_be_lost(&mut self) {
        self.may_be_lost = true;
    }

    /// Writes records that may be missing, if that is due.
    pub(super) fn keep_records(&mut self, now: Instant) {
        let is_owed = self.may_be_lost || !self.owed.is_empty();
        if !is_owed || !self.retry.is_due(now) {
            return;
        }
        let kept = recorded().and_then(|there| {
            let missing: Vec<(&str, Record)> = self
                .records
                .iter()
                .filter(|(name, _)| self.owed.contains(*name) || !there.contains_key(*name))
                .map(|(name, record)| (name.as_str(), *record))
                .collect();
            if missing.is_empty() { Ok(()) } else { nft::execute(&recording(&missing)) }
        });
        match kept {
            Ok(()) => {
                self.may_be_lost = false;
                self.owed.clear();
                if self.retry.succeeded() {
                    info!("what `sluice cleanup` sets back is written down");
                }
            }
            Err(error) => self.note_unrecorded(now, &error),
        }
    }

    fn note_unrecorded(&mut self, now: Instant, error: &Error) {
        if self.retry.failed(now, error) {
            warn!(
                "`sluice cleanup` would not set everything back: it cannot be written down so far: {error}"
            );
        }
    }
}

/// The result of [`prepare`], as text.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Settings that were changed.
    pub set: Vec<String>,
    /// Settings that could not be changed, and why.
    pub failed: Vec<String>,
}

/// Makes the settings that an agent makes, for an agent without the permission; br_netfilter's too, if that
/// should be off. They are recorded as an agent's. Settings that the kernel does not have are not needed.
///
/// # Errors
/// nft fails: earlier records cannot be read.
pub fn prepare(bridge_netfilter_off: bool) -> Result<Prepared, Error> {
    let mut settings = Settings::open()?;
    let bridge =
        bridge_netfilter::SETTINGS.into_iter().filter(|_| bridge_netfilter_off).map(|name| (name, 0));
    // An administrator who disabled it altogether had a reason.
    let reuse = (settings.get(TW_REUSE) == Some(2)).then_some((TW_REUSE, 1));
    let mut done = Prepared::default();
    for (name, value) in bridge.chain(reuse).chain([(MIGRATE_REQ, 1)]) {
        if settings.get(name).is_none_or(|now| now == value) {
            continue;
        }
        match settings.set(name, value) {
            Ok(()) => done.set.push(format!("{name}={value}")),
            Err(error) => done.failed.push(format!("{name} cannot be set to {value}: {error}")),
        }
    }
    // Tries again if necessary: without the records, the former values would be lost.
    settings.keep_records(Instant::now() + RETRY_MAX);
    done.failed.extend(
        settings.owed.iter().map(|name| format!("what {name} was is not written down for `sluice cleanup`")),
    );
    Ok(done)
}

/// The restored and the kept settings, as text.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// Whether there were any records.
    pub(super) any: bool,
    /// Settings that were restored.
    pub(super) restored: Vec<String>,
    /// Settings that somebody else has changed since.
    pub(super) kept: Vec<String>,
}

/// Restores the settings that agents have changed, except those that somebody else has changed since, and
/// deletes the records.
///
/// # Errors
/// A setting cannot be restored. Then no record is deleted.
pub(super) fn restore() -> Result<Restored, Error> {
    let Some(listed) = listed::structure(INET, TABLE)? else { return Ok(Restored::default()) };
    let root = Path::new("/proc/sys");
    let mut done = Restored { any: true, ..Restored::default() };
    for (name, record) in records(&listed) {
        match record.way_back(get(root, &name)) {
            Way::Back(value) => {
                open(root, &name)
                    .and_then(|mut file| write!(file, "{value}"))
                    .map_err(|error| Error::Setting { name: name.clone(), value, error })?;
                done.restored.push(format!("{name}={value}"));
            }
            Way::Keep(value) => {
                done.kept.push(format!("{name}={value}: somebody has changed it since the agent did"));
            }
            Way::Nothing => {}
        }
    }
    nft::execute(&format!("delete table {INET} {TABLE}\n"))?;
    Ok(done)
}

fn recorded() -> Result<Records, Error> {
    Ok(listed::structure(INET, TABLE)?.map(|listed| records(&listed)).unwrap_or_default())
}

/// The records in a listing of the table.
fn records(listed: &str) -> Records {
    let mut records = Records::new();
    let mut name = None;
    for line in listed.lines().map(str::trim) {
        if let Some(chain) = line.strip_prefix("chain ") {
            name = chain.strip_suffix(" {");
        } else if let Some(comment) = line.strip_prefix("comment \"").and_then(|rest| rest.strip_suffix('"'))
            && let Some(name) = name.filter(|name| is_name(name))
            && let Some(record) = Record::parse(comment)
        {
            records.insert(name.to_owned(), record);
        }
    }
    records
}

/// Whether it can be the name of a network setting, and of no other file.
fn is_name(name: &str) -> bool {
    name.starts_with("net.") && !name.contains('/')
}

/// The commands that record settings, replacing earlier records of the same settings.
fn recording(records: &[(&str, Record)]) -> String {
    let mut script = format!("add table {INET} {TABLE} {{ comment \"what `sluice cleanup` sets back\"; }}\n");
    for (name, record) in records {
        let chain = format!("chain {INET} {TABLE} {name}");
        // Deleting an object that does not exist is an error, adding one that exists is not.
        script.push_str(&format!(
            "add {chain}\ndelete {chain}\nadd {chain} {{ comment \"{}\"; }}\n",
            record.comment()
        ));
    }
    script
}

fn get(root: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(path(root, name)).ok()?.trim().parse().ok()
}

fn open(root: &Path, name: &str) -> io::Result<fs::File> {
    OpenOptions::new().write(true).open(path(root, name))
}

fn path(root: &Path, name: &str) -> PathBuf {
    root.join(name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_back_and_what_is_not() {
        let record = Record { former: 2, ours: 1 };
        assert_eq!(record.way_back(Some(1)), Way::Back(2));
        assert_eq!(record.way_back(Some(2)), Way::Nothing, "it is so already");
        assert_eq!(record.way_back(Some(0)), Way::Keep(0), "an administrator's");
        assert_eq!(record.way_back(None), Way::Nothing, "its module is gone");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let record = Record { former: 1, ours: 0 };
        let listed = format!(
            "table inet sluice_settings {{\n\tcomment \"x\"\n\n\tchain net.bridge.bridge-nf-call-iptables {{\n\
             \t\tcomment \"{}\"\n\t}}\n",
            record.comment()
        );
        let name = "net.bridge.bridge-nf-call-iptables".to_owned();
        assert_eq!(records(&listed), Records::from([(name, record)]));
        for strange in ["chain kernel.panic {", "chain net.a/b {", "chain net.ipv4.x"] {
            let listed = format!("{strange}\n\tcomment \"{}\"\n", record.comment());
            assert_eq!(records(&listed), Records::new(), "{strange}");
        }
        for comment in ["", "was 1", "was x, Sluice has set it to 1", "was 1, Sluice has set it to -1"] {
            assert_eq!(Record::parse(comment), None, "{comment}");
        }
    }
}
