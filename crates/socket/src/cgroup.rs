//! Finds the root of all cgroups: programs attached there see every socket of the node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::mounts;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// The id of the root of all cgroups, in every cgroup namespace.
const ROOT: u64 = 1;

/// Where the root of all cgroups is mounted: a directory of cgroup v2 with no other above it. In a container,
/// /sys/fs/cgroup usually shows only a part, where the programs would see the container's own sockets only.
///
/// # Errors
/// It is not mounted, only a part of it is, or `/proc` is not mounted.
pub fn cgroup_root() -> io::Result<PathBuf> {
    let points = mounts::of_type("cgroup2")?.into_iter().map(|(_, point)| point).collect();
    root_of(points, id)
}

/// Whether this thread's network namespace is the machine's initial one. An agent in another one serves a part
/// of the machine as its node, as in a lab or where nodes are containers, but the root of all cgroups has the
/// sockets of the whole machine.
pub fn is_initial_network() -> bool {
    // The kernel shows this setting nowhere else.
    Path::new("/proc/sys/net/core/netdev_budget").exists()
}

/// The mount whose directory has the root's id. The root in mountinfo does not tell: it is relative to the
/// cgroup namespace, in which a container's own cgroup is `/` and the root of all `/../..`.
fn root_of(points: Vec<PathBuf>, id: impl Fn(&Path) -> io::Result<u64>) -> io::Result<PathBuf> {
    let part = points.first().cloned();
    let root = points.into_iter().find(|point| id(point).is_ok_and(|id| id == ROOT));
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

/// The id of a cgroup, as links report it.
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
    fn the_root_is_found_wherever_it_is() {
        let root = |at: &'static str| {
            let id = move |point: &Path| Ok(if point == Path::new(at) { ROOT } else { 4711 });
            root_of(["/sys/fs/cgroup", "/host/cgroup"].map(PathBuf::from).into(), id)
        };
        assert_eq!(root("/host/cgroup").unwrap(), Path::new("/host/cgroup"));
        assert_eq!(root("/sys/fs/cgroup").unwrap(), Path::new("/sys/fs/cgroup"));
        let partial = root("/elsewhere").unwrap_err().to_string();
        assert!(partial.contains("/sys/fs/cgroup has but a part") && partial.contains("--socket-cgroup"));
        let none = root_of(Vec::new(), |_| Ok(ROOT)).unwrap_err();
        assert_eq!(none.to_string(), "cgroup2 is not mounted");
    }

    #[test]
    fn what_is_no_cgroup_has_no_number() {
        assert!(id(Path::new("/proc")).is_err());
    }
}
