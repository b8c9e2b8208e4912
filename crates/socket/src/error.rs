//! Why socket mode is not available.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why programs could not be attached. Each message includes the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent holds the pins.
    #[error("another agent holds {0}: stop it, or wait until it has ended")]
    Busy(PathBuf),
    /// There is no bpffs to pin in.
    #[error(
        "{path} is in no bpffs ({source}): mount one with `mount -t bpf bpf /sys/fs/bpf`; a container needs that of \
         the host"
    )]
    NoBpffs {
        /// Where the pins were to be.
        path: PathBuf,
        /// The error from checking for a bpffs, or from mounting one.
        source: io::Error,
    },
    /// Not a directory of cgroup v2.
    #[error("{path} is no cgroup of version 2 ({source}): mount cgroup2, or name another directory")]
    NoCgroup {
        /// The directory.
        path: PathBuf,
        /// The error from checking it.
        source: io::Error,
    },
    /// A pin is not ours, or of another layout.
    #[error("{path} is not what this version has there ({found}): remove it with `sluice cleanup`")]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// This process may not use BPF at all.
    #[error(
        "bpf(2) is not allowed here ({0}): it takes CAP_BPF, and in a container a seccomp profile that has bpf(2) for whoever \
         has that, as current ones of containerd and Docker do"
    )]
    Denied(io::Error),
    /// The kernel rejected a map.
    #[error("this kernel makes no map {map} ({source}): it takes Linux 6.1, and CAP_BPF and CAP_NET_ADMIN")]
    Map {
        /// Its name.
        map: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel rejected a program.
    #[error(
        "this kernel does not take the program {program} ({source}): it takes Linux 6.1, and CAP_BPF, CAP_NET_ADMIN \
         and CAP_PERFMON. The verifier says:\n{log}"
    )]
    Program {
        /// Its name.
        program: String,
        /// The kernel's answer.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// Another program at the cgroup allows no others.
    #[error(
        "{program} cannot be attached to {cgroup}: a program that allows none beside it is there; \
         `bpftool cgroup show {cgroup}` names it"
    )]
    Exclusive {
        /// Our program.
        program: String,
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The built-in object cannot be used.
    #[error(
        "the programs cannot be used here ({0}): this is a little-endian kernel with BTF, or a fault of the build"
    )]
    Object(String),
    /// A system call failed.
    #[error("{what} failed: {source}")]
    System {
        /// The attempted operation.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`, with the attempted operation.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}

/// Errors after which the same call may succeed a moment later. The verifier returns `EAGAIN` while a signal
/// is pending.
const PASSING: [Errno; 6] =
    [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::INTR, Errno::BUSY];

/// Whether an error or its cause says that the system is short of something at the moment, or that the call
/// was interrupted.
pub fn passes(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut answers = std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref().and_then(Errno::from_io_error));
    answers.any(|answer| PASSING.contains(&answer))
}
