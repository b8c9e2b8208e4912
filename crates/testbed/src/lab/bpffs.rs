//! A bpffs for a thread and what it starts: what is pinned there is nobody else's.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::LabError;

/// A bpffs that is mounted for the thread that made it and for threads that it starts. The kernel takes it away with
/// the last of them.
#[derive(Debug)]
pub struct Bpffs {
    on: PathBuf,
    namespace: PathBuf,
}

impl Bpffs {
    /// Gives the calling thread mounts of its own, and a bpffs on a directory.
    ///
    /// # Errors
    /// Not root, or a kernel without BPF.
    pub fn mount(on: &Path) -> Result<Self, LabError> {
        let failed = LabError::io(format!("mounting a bpffs on {}", on.display()));
        let make = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // What is mounted here is not to show elsewhere.
            let private = Command::new("mount").args(["--make-rprivate", "/"]).status()?;
            if !private.success() {
                return Err(io::Error::other("mounts cannot be made private"));
            }
            sluice_sys::bpf::mount_bpffs(on)?;
            std::fs::read_link("/proc/thread-self")
        };
        let thread = make().map_err(failed)?;
        Ok(Self { on: on.into(), namespace: Path::new("/proc").join(thread).join("ns/mnt") })
    }

    /// The same command, as a process that sees it: processes of a [`Host`](super::Host) are not started by the calling thread.
    #[must_use]
    pub fn seen_by(&self, command: &Command) -> Command {
        let mut seen = Command::new("nsenter");
        let mut option = std::ffi::OsString::from("--mount=");
        option.push(&self.namespace);
        seen.arg(option).arg("--").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => seen.env(name, value),
                None => seen.env_remove(name),
            };
        }
        seen
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // What something is mounted on is not removed.
        let _ = Command::new("umount").arg("--lazy").arg(&self.on).status();
    }
}
