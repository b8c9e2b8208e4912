//! Whether the programs are where they were attached: others may take them away.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_sys::bpf;

use crate::attach::HOOKS;
use crate::pins::link_path;

/// Where the programs are attached. They stay so while this is held, whatever becomes of the pins, until they are detached.
#[derive(Debug, Clone)]
pub struct Links {
    directory: PathBuf,
    cgroup_id: u64,
    held: Arc<[OwnedFd]>,
}

impl Links {
    /// Of all [`HOOKS`], in their order.
    pub(crate) fn new(directory: &Path, cgroup_id: u64, held: Vec<OwnedFd>) -> Self {
        Self { directory: directory.to_owned(), cgroup_id, held: held.into() }
    }

    /// Programs that are not attached there any more, or not so that others find them: somebody has removed what was pinned,
    /// or hidden it below another file system, or detached them, or the cgroup is gone. What cannot be known counts as attached.
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

    /// Detaches all of them, also those whose pins cannot be found any more. From then on they do nothing.
    pub fn detach(&self) {
        for link in self.held.iter() {
            // One that is detached already, or whose cgroup is gone, is as it should be.
            let _ = bpf::detach(link.as_fd());
        }
    }
}
