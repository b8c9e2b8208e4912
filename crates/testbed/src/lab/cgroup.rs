//! A cgroup for a thread and the processes that it starts: BPF programs that are attached to it see only
//! their sockets.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{LabError, PATIENCE};

/// The beginning of names; the process id and a counter follow.
const PREFIX: &str = "sluice-lab-";

/// A cgroup below that of this process. It contains the thread that created it, and all threads and processes
/// that this one starts from then on. A socket always belongs to the cgroup of the thread that created it.
///
/// It must be dropped on the thread that created it, after the threads that this one has started have ended.
/// The thread returns to its earlier cgroup.
#[derive(Debug)]
pub struct Cgroup {
    parent: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// Creates a cgroup and moves the calling thread there.
    ///
    /// # Errors
    /// cgroup2 is not mounted, or not writable.
    pub fn enter() -> Result<Self, LabError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let parent = own().map_err(LabError::io("finding this process's cgroup"))?;
        sweep(&parent);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{count}", std::process::id()));
        fs::create_dir(&path).map_err(LabError::io(&format!("making {}", path.display())))?;
        let cgroup = Self { parent, path };
        // A threaded cgroup: it may contain some threads of a process whose other threads are elsewhere.
        fs::write(cgroup.path.join("cgroup.type"), "threaded")
            .and_then(|()| move_thread(&cgroup.path))
            .map_err(LabError::io(&format!("moving a thread to {}", cgroup.path.display())))?;
        Ok(cgroup)
    }

    /// Moves the thread that created it back to its earlier cgroup. What the thread has started stays.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn leave(&self) -> Result<(), LabError> {
        move_thread(&self.parent).map_err(LabError::io("leaving a cgroup"))
    }

    /// Moves the thread that created it there again.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn join(&self) -> Result<(), LabError> {
        move_thread(&self.path).map_err(LabError::io("joining a cgroup"))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads that were joined still exist for a moment.
        let deadline = Instant::now() + PATIENCE;
        let _ = move_thread(&self.parent);
        while fs::remove_dir(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Moves the calling thread to the cgroup of its process, if it was started in a lab's cgroup. Without
/// cgroups there is nothing to do.
pub(super) fn leave_all() {
    let _ = own().and_then(|own| move_thread(&own));
}

fn move_thread(to: &Path) -> io::Result<()> {
    // 0 means the writing thread.
    fs::write(to.join("cgroup.threads"), "0")
}

/// The directory of this process's cgroup.
fn own() -> io::Result<PathBuf> {
    let absent = || io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not mounted");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let root = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4)).flatten()
    });
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(Path::new(root.ok_or_else(absent)?).join(own.ok_or_else(absent)?))
}

/// Removes the cgroups of killed processes. A cgroup that is not empty cannot be removed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
