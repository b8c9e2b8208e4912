//! The place where socket mode is measured: a cgroup for its clients, because programs must not be attached
//! for the whole machine and other contenders' clients; and a bpffs for the pins.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_testbed::lab::Cgroup;

/// The cgroup and bpffs that the agent uses. Must be dropped after the agent has ended, on the thread that
/// created it; this removes the programs.
#[derive(Debug)]
pub(crate) struct Sockets {
    cgroup: Cgroup,
    bpffs: PathBuf,
}

impl Sockets {
    /// Creates it, with the bpffs in a directory. The cgroup is empty.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let bpffs = directory.join("bpf");
        std::fs::create_dir(&bpffs).context("a directory")?;
        let mounted =
            Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs).status().context("mount")?;
        ensure!(mounted.success(), "no bpffs can be mounted");
        let cgroup = Cgroup::enter().and_then(|cgroup| cgroup.leave().map(|()| cgroup));
        let sockets = cgroup.map(|cgroup| Self { cgroup, bpffs: bpffs.clone() });
        sockets.inspect_err(|_| unmount(&bpffs)).context("a cgroup")
    }

    /// Does something in the cgroup, so that its sockets are translated.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.cgroup.join()?;
        let result = work();
        self.cgroup.leave()?;
        result
    }

    /// The agent's flags for it.
    pub(crate) fn arguments(&self) -> [String; 5] {
        let (cgroup, pins) = (self.cgroup.path().display(), self.bpffs.join("sluice"));
        let pins = pins.display().to_string();
        // The lab's network namespaces have no names.
        let namespaces = "--socket-namespaces=".to_owned();
        ["--socket-cgroup".to_owned(), cgroup.to_string(), "--socket-pins".to_owned(), pins, namespaces]
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        unmount(&self.bpffs);
    }
}

fn unmount(bpffs: &PathBuf) {
    let _ = Command::new("umount").arg(bpffs).status();
}
