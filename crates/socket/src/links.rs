//! Whether the programs are where they were attached: others may take them away.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use sluice_sys::bpf;

use crate::attach::HOOKS;
use crate::pins::link_path;

/// Where the programs are attached.
#[derive(Debug, Clone)]
pub struct Links {
    pub(crate) directory: PathBuf,
    pub(crate) cgroup_id: u64,
}

impl Links {
    /// Programs that are not attached there any more: somebody has removed what was pinned, or detached them, or the cgroup
    /// is gone. What cannot be known counts as attached.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        HOOKS.iter().filter(|hook| !self.is_attached(hook.name)).map(|hook| hook.name)
    }

    fn is_attached(&self, program: &str) -> bool {
        match bpf::get(&link_path(&self.directory, program)) {
            Ok(link) => bpf::link_info(link.as_fd()).map_or(true, |info| info.cgroup == self.cgroup_id),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}
