//! What a person can do if the system has run out of something. It is here because each crate that requests
//! resources can run into that.

use std::io;

use rustix::io::Errno;

/// The remedy if an error says that file descriptors or memory are exhausted; `None` for any other error.
pub fn mend_of_shortage(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error().map(Errno::from_raw_os_error)? {
        Errno::MFILE => Some("raise the agent's limit on open files (ulimit -n)"),
        Errno::NFILE => Some("raise the node's limit on open files (fs.file-max)"),
        Errno::NOBUFS | Errno::NOMEM => Some("the node, or the agent's cgroup, needs more memory"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_limit_is_told_from_the_nodes() {
        let mend = |errno: Errno| mend_of_shortage(&errno.into());
        assert!(mend(Errno::MFILE).is_some_and(|mend| mend.contains("ulimit -n")));
        assert!(mend(Errno::NFILE).is_some_and(|mend| mend.contains("fs.file-max")));
        assert!(mend(Errno::NOMEM).is_some_and(|mend| mend.contains("memory")));
        assert_eq!(mend(Errno::ACCESS), None);
        assert_eq!(mend_of_shortage(&io::ErrorKind::NotFound.into()), None);
    }
}
