//! Tells whether the programs are still attached: others may detach them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_sys::bpf;

use crate::attach::HOOKS;
use crate::pins::link_path;

/// The links of attached programs. While this is held they stay attached, whatever becomes of the pins, unless
/// they are detached.
#[derive(Debug, Clone)]
pub struct Links {
    directory: PathBuf,
    cgroup_id: u64,
    held: Arc<[OwnedFd]>,
}

impl Links {
    /// The links of all [`HOOKS`], in their order.
    pub(crate) fn new(directory: &Path, cgroup_id: u64, held: Vec<OwnedFd>) -> Self {
        Self { directory: directory.to_owned(), cgroup_id, held: held.into() }
    }

    /// Programs that are not attached any more, or whose pins others cannot find: somebody has removed the
    /// pins, hidden them below another file system or detached the programs, or the cgroup is gone. If it
    /// cannot be known, a program counts as attached.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        let all = HOOKS.iter().zip(self.held.iter());
        all.filter(|(hook, link)| !self.is_attached(hook.name, link)).map(|(hook, _)| hook.name)
    }

    fn is_attached(&self, program: &str, link: &OwnedFd) -> bool {
        let Ok(held) = bpf::link_info(link.as_fd()) else { return true };
        held.cgroup == self.cgroup_id
            && match bpf::get(&link_path(&self.directory, program)) {
                Ok(pinned) => bpf::link_info(pinned.as_fd()).map_or(true, |pinned| pinned.id == held.id),
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            }
    }

    /// Detaches all programs, also those whose pins are gone. From then on they do nothing.
    pub fn detach(&self) {
        for link in self.held.iter() {
            // A program that is detached already, or whose cgroup is gone, needs nothing more.
            let _ = bpf::detach(link.as_fd());
        }
    }
}
