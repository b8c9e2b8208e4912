//! A directory with named network namespaces, as container runtimes create them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{LabError, Namespace};

/// The directory. Its names are visible in the mount namespace of the thread that adds them, and gone with
/// the directory.
#[derive(Debug)]
pub struct Names {
    path: PathBuf,
}

impl Names {
    /// Creates an empty directory.
    ///
    /// # Errors
    /// There is no place for temporary files.
    pub fn new() -> Result<Self, LabError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-lab-{}-names-{count}", std::process::id()));
        fs::create_dir(&path).map_err(LabError::io(&format!("making {}", path.display())))?;
        Ok(Self { path })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a namespace, under the name that it has in messages.
    ///
    /// # Errors
    /// It takes root.
    pub fn add(&self, namespace: &Namespace) -> Result<(), LabError> {
        namespace.name_at(&self.path.join(namespace.name()))
    }

    /// Removes a namespace's name.
    ///
    /// # Errors
    /// It has none.
    pub fn remove(&self, namespace: &Namespace) -> Result<(), LabError> {
        let path = self.path.join(namespace.name());
        unmount(&path);
        fs::remove_file(&path).map_err(LabError::io(&format!("removing {}", path.display())))
    }
}

fn unmount(path: &Path) {
    let _ = Command::new("umount").arg(path).status();
}

impl Drop for Names {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            unmount(&entry.path());
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}
