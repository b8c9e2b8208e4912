//! The root of all cgroups: programs attached there see every socket of the node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// The number of the root of all cgroups, in every namespace of cgroups.
const ROOT: u64 = 1;

/// Where the root of all cgroups is to be seen: a directory of cgroup v2 that no other is above of. A container has a
/// part of them at /sys/fs/cgroup, as a rule, and there the programs would see its own sockets only.
///
/// # Errors
/// It is not mounted, or only a part of it; or `/proc` is not.
pub fn cgroup_root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    root_of(&mounts, id)
}

/// A mount whose own directory has the number of the root. What mountinfo has as a mount's root does not tell: it goes
/// by the namespace of cgroups, in which a container's own is `/` and the root of all `/../..`.
fn root_of(mounts: &str, id: impl Fn(&Path) -> io::Result<u64>) -> io::Result<PathBuf> {
    let mut points = in_mounts(mounts).peekable();
    let part = points.peek().cloned();
    let root = points.find(|point| id(point).is_ok_and(|id| id == ROOT));
    root.ok_or_else(|| {
        let what = match part {
            None => "cgroup2 is not mounted".into(),
            Some(part) => format!(
                "{} has but a part of the cgroups, and no mount has all: a container needs the host's \
                 /sys/fs/cgroup; a node that is itself a container has to name its cgroup (--socket-cgroup)",
                part.display()
            ),
        };
        io::Error::new(io::ErrorKind::NotFound, what)
    })
}

/// Where cgroup2 is mounted.
fn in_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        // See proc_pid_mountinfo(5): id, parent, device, root, mount point, options, ... - type ...
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        after.starts_with("cgroup2 ").then(|| PathBuf::from(unescape(point)))
    })
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

    /// As a container of a node with systemd has it, that has the host's as well.
    const MOUNTS: &str = "\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        40 31 0:38 / /sys/fs/cgroup ro shared:3 - cgroup2 cgroup2 rw\n\
        41 31 0:38 /../../.. /host/c\\040group ro,relatime master:1 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_root_is_found_wherever_it_is() {
        let root = |at: &'static str| {
            let id = move |point: &Path| Ok(if point == Path::new(at) { ROOT } else { 4711 });
            root_of(MOUNTS, id)
        };
        assert_eq!(root("/host/c group").unwrap(), Path::new("/host/c group"));
        assert_eq!(root("/sys/fs/cgroup").unwrap(), Path::new("/sys/fs/cgroup"));
        let partial = root("/elsewhere").unwrap_err().to_string();
        assert!(partial.contains("/sys/fs/cgroup has but a part") && partial.contains("--socket-cgroup"));
        for none in ["", "32 31 0:29 / /a rw - cgroup cgroup rw,cpu\ncgroup2\n - \n"] {
            let error = root_of(none, |_| Ok(ROOT)).unwrap_err();
            assert_eq!(error.to_string(), "cgroup2 is not mounted");
        }
    }

    #[test]
    fn what_is_no_cgroup_has_no_number() {
        assert!(id(Path::new("/proc")).is_err());
    }
}
