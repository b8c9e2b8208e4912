//! Other programs at the cgroup and above it, and whether the kernel attaches ours beside them.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sluice_sys::bpf::{self, CgroupPrograms, Sharing};

use crate::attach::{HOOKS, Hook};
use crate::cgroup;
use crate::pins::link_path;

/// Other programs at the hooks that ours need.
#[derive(Debug)]
pub(crate) struct Others {
    cgroup: PathBuf,
    /// Programs because of which the kernel would refuse one of ours.
    pub(crate) refusing: Vec<Refusing>,
    /// How many are at the cgroup itself, by our program at the same hook.
    beside: Vec<(&'static str, usize)>,
}

/// A program beside which the kernel attaches none of ours.
#[derive(Debug)]
pub(crate) struct Refusing {
    /// The hook of our program that it would refuse.
    hook: &'static str,
    id: u32,
    /// Where it is attached: the cgroup, or one above it.
    at: PathBuf,
}

impl Others {
    /// Looks at a cgroup and at all visible ones above it. Programs pinned below `pins` are ours.
    ///
    /// # Errors
    /// The kernel does not tell (`EPERM` without CAP_NET_ADMIN), or there is no such cgroup.
    pub(crate) fn of(cgroup: &Path, pins: &Path) -> io::Result<Self> {
        let mut others = Self { cgroup: cgroup.into(), refusing: Vec::new(), beside: Vec::new() };
        let number = cgroup::id(cgroup)?;
        let here = cgroup.canonicalize()?;
        let lineage = here.ancestors().take_while(|path| cgroup::id(path).is_ok());
        let opened: Vec<(&Path, File)> =
            lineage.map(|path| Ok((path, File::open(path)?))).collect::<io::Result<_>>()?;
        for hook in &HOOKS {
            let ours = ours(hook, number, pins);
            for (path, directory) in &opened {
                let is_here = *path == here;
                let CgroupPrograms { sharing, mut ids } = bpf::query_cgroup(directory.as_fd(), hook.attach)?;
                if is_here {
                    ids.retain(|id| !ours.contains(id));
                }
                let Some(first) = ids.first() else { continue };
                let name = short(hook);
                if is_refused(sharing, is_here) {
                    others.refusing.push(Refusing { hook: name, id: *first, at: (*path).into() });
                } else if is_here {
                    others.beside.push((name, ids.len()));
                }
                if !is_here {
                    // The nearest cgroup above that has programs decides about all below it.
                    break;
                }
            }
        }
        Ok(others)
    }
}

/// Whether the kernel would refuse a link, by the programs of its cgroup or of the nearest one above that has
/// any (`__cgroup_bpf_attach` and `hierarchy_allows_attach` of the kernel).
fn is_refused(sharing: Sharing, is_here: bool) -> bool {
    match sharing {
        Sharing::Exclusive => true,
        Sharing::Overridable => is_here,
        Sharing::Shared => false,
    }
}

/// The ids of our programs, of all versions, at a hook of this cgroup.
fn ours(hook: &Hook, cgroup: u64, pins: &Path) -> Vec<u32> {
    // A link that cannot be read counts as another's.
    let versions = fs::read_dir(pins).into_iter().flatten().flatten();
    let links = versions.filter_map(|version| bpf::get(&link_path(&version.path(), hook.name)).ok());
    let infos = links.filter_map(|link| bpf::link_info(link.as_fd()).ok());
    infos.filter(|info| info.cgroup == cgroup).map(|info| info.program).collect()
}

/// libbpf's name of the hook.
fn short(hook: &Hook) -> &'static str {
    hook.name.strip_prefix("sluice_").unwrap_or(hook.name)
}

impl Display for Others {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        if !self.refusing.is_empty() {
            for (number, Refusing { hook, id, at }) in self.refusing.iter().enumerate() {
                let and = if number == 0 { "" } else { ", " };
                let at = at.display();
                write!(to, "{and}program {id} at {at} allows none beside it for {hook}")?;
            }
            return Ok(());
        }
        let all: usize = self.beside.iter().map(|(_, count)| count).sum();
        match all {
            0 => write!(to, "none is")?,
            1 => write!(to, "one is")?,
            _ => write!(to, "{all} are")?,
        }
        write!(to, " at {}", self.cgroup.display())?;
        for (number, (hook, count)) in self.beside.iter().enumerate() {
            write!(to, "{} {count} for {hook}", if number == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}
