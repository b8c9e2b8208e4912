//! Lists mounts in the calling thread's mount namespace.

use std::io;
use std::path::PathBuf;

/// Mounts of one type of file system: the mounted root, and the mount point.
pub(crate) fn of_type(kind: &str) -> io::Result<Vec<(String, PathBuf)>> {
    Ok(in_mountinfo(&std::fs::read_to_string("/proc/thread-self/mountinfo")?, kind))
}

fn in_mountinfo(mounts: &str, kind: &str) -> Vec<(String, PathBuf)> {
    let found = mounts.lines().filter_map(|line| {
        // See proc_pid_mountinfo(5): id, parent, device, root, mount point, options, ... - type ...
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != kind {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some((root.to_owned(), PathBuf::from(unescape(point))))
    });
    found.collect()
}

/// Replaces the octal escapes of white space and backslashes.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_a_type_are_found_wherever_they_are() {
        let mounts = "\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            40 31 0:38 /kubepods/a /part rw shared:3 - cgroup2 cgroup2 rw\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";
        let found = in_mountinfo(mounts, "cgroup2");
        let wanted = [("/kubepods/a", "/part"), ("/", "/sys/fs/cgroup/uni fied")];
        assert_eq!(found, wanted.map(|(root, point)| (root.to_owned(), PathBuf::from(point))));
        assert_eq!(in_mountinfo("32 31 0:29 / /a rw - cgroup cgroup rw,cpu\ncgroup2\n - \n", "cgroup2"), []);
    }
}
