//! A private bpffs for a thread and the processes that it starts, where programs and maps can be pinned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sched::{CloneFlags, unshare};

use super::LabError;

/// A bpffs in a mount namespace of the thread that created it and of all processes that it starts from then
/// on. Pins are gone with it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
    namespace: PathBuf,
}

impl Bpffs {
    /// Moves the calling thread to a mount namespace of its own, and mounts a bpffs there.
    ///
    /// # Errors
    /// It takes root.
    pub fn mount() -> Result<Self, LabError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-lab-{}-bpffs-{count}", std::process::id()));
        let failed = |what: &str, error| LabError::io(&format!("{what} {}", path.display()))(error);
        unshare(CloneFlags::CLONE_NEWNS).map_err(|error| failed("unsharing mounts for", error.into()))?;
        let private = Command::new("mount").args(["--make-rprivate", "/"]).status();
        private
            .and_then(
                |status| if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) },
            )
            .map_err(|error| failed("making mounts private for", error))?;
        let thread =
            fs::read_link("/proc/thread-self").map_err(|error| failed("finding the thread of", error))?;
        let namespace = Path::new("/proc").join(thread).join("ns/mnt");
        fs::create_dir(&path).map_err(|error| failed("making", error))?;
        let bpffs = Self { path: path.clone(), namespace };
        sluice_sys::bpf::mount_bpffs(&path).map_err(|error| failed("mounting a bpffs on", error))?;
        Ok(bpffs)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Wraps a command so that its process sees the bpffs: processes of a [`Host`](super::Host) are not
    /// started by the calling thread.
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
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        let _ = fs::remove_dir(&self.path);
    }
}
