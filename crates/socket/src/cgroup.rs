//! The root of all cgroups: programs attached there see every socket of the node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::mounts;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// The number of the root of all cgroups, in every namespace of cgroups.
pub(crate) const ROOT: u64 = 1;

/// Where the hierarchy of cgroup v2 is mounted. In a container that may be a part of it only: [`probe`](crate::probe)
/// says so.
///
/// # Errors
/// It is not mounted, or `/proc` is not.
pub fn cgroup_root() -> io::Result<PathBuf> {
    let mounts = mounts::of_type("cgroup2")?;
    // The mount that shows most: the one of a root, if there is one.
    let most = mounts.into_iter().min_by_key(|(root, _)| root.len()).map(|(_, point)| point);
    most.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not mounted"))
}

/// The number of a cgroup, as links have it.
pub(crate) fn id(path: &Path) -> io::Result<u64> {
    #[allow(clippy::unnecessary_cast, reason = "the type is another one on other targets")]
    let found = rustix::fs::statfs(path)?.f_type as u64 & 0xffff_ffff;
    if found == CGROUP2 {
        Ok(std::fs::metadata(path)?.ino())
    } else {
        Err(io::Error::other("another file system"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cgroup_has_no_number() {
        assert!(id(Path::new("/proc")).is_err());
    }
}
