//! The root of all cgroups: programs attached there see every socket of the node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    in_mounts(&mounts).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not mounted"))
}

/// The mount of cgroup2 that shows most: the one of a root, if there is one.
fn in_mounts(mounts: &str) -> Option<PathBuf> {
    let found = mounts.lines().filter_map(|line| {
        // See proc_pid_mountinfo(5): id, parent, device, root, mount point, options, ... - type ...
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some((root, unescape(point)))
    });
    found.min_by_key(|(root, _)| root.len()).map(|(_, point)| PathBuf::from(point))
}

/// Octal numbers stand for white space and backslashes.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
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
    fn the_mount_of_the_root_is_found_wherever_it_is() {
        let mounts = "\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            40 31 0:38 /kubepods/a /part rw shared:3 - cgroup2 cgroup2 rw\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(in_mounts(mounts), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(in_mounts("32 31 0:29 / /a rw - cgroup cgroup rw,cpu\ncgroup2\n - \n"), None);
    }

    #[test]
    fn what_is_no_cgroup_has_no_number() {
        assert!(id(Path::new("/proc")).is_err());
    }
}
