//! The errors of labs, each with what to do about it.

use std::io;
use std::time::Duration;

/// Why a lab, or something in it, does not work.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The kernel does not allow this user to create network namespaces.
    #[error(
        "no network namespace can be made here ({0}): run this as root, or under `unshare -Urnm` where the \
         kernel lets users have namespaces of their own; in a container give it CAP_SYS_ADMIN and \
         CAP_NET_ADMIN (`--privileged`)"
    )]
    NotPermitted(String),
    /// A program is not installed, or cannot be started.
    #[error("cannot run `{program}`: {source}: is it installed (iproute2, nftables, util-linux)?")]
    Program {
        /// The program's name.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// A program has ended with an error.
    #[error("`{command}` in {namespace} failed: {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Where it ran.
        namespace: String,
        /// Its error output.
        stderr: String,
    },
    /// A kernel setting cannot be written, as where `/proc/sys` is mounted read-only.
    #[error("cannot set {setting} in {namespace}: {source}: is /proc/sys writable?")]
    Setting {
        /// The path below `/proc/sys`.
        setting: String,
        /// The namespace.
        namespace: String,
        /// The system's error.
        source: io::Error,
    },
    /// A link has not come up.
    #[error("the links {links:?} of {namespace} are not up")]
    Link {
        /// The namespace.
        namespace: String,
        /// Those that are down.
        links: Vec<String>,
    },
    /// A server's address cannot be bound, or no thread can be started.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// A process has not written or done what was waited for in time.
    #[error("process {id} has not {what} within {patience:?}; it said:\n{log}")]
    Waited {
        /// The process.
        id: u32,
        /// What was waited for.
        what: String,
        /// How long.
        patience: Duration,
        /// All of its lines.
        log: String,
    },
}

impl LabError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
