//! Where Sluice's socket mode is measured: a cgroup for its clients, as no program is to be attached for the whole machine
//! and other contenders' clients, and a bpffs for the pins.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_testbed::lab::Cgroup;

/// What the agent attaches to and pins below. Dropped after the agent has ended, and on the thread that made it; the
/// programs go with it.
#[derive(Debug)]
pub(crate) struct Sockets {
    cgroup: Cgroup,
    bpffs: PathBuf,
}

impl Sockets {
    /// Makes it, with the bpffs in a directory; nobody is there yet.
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

    /// Does something that is decided about there, and nothing else is.
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
