//! Why socket mode cannot be had.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why programs could not be attached. Each says what helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has the pins.
    #[error("another agent holds {0}: stop it, or wait until it has ended")]
    Busy(PathBuf),
    /// No bpffs to pin in.
    #[error(
        "{path} is in no bpffs ({source}): mount one with `mount -t bpf bpf /sys/fs/bpf`; a container needs that of \
         the host"
    )]
    NoBpffs {
        /// Where the pins were to be.
        path: PathBuf,
        /// What came of looking, or of mounting one.
        source: io::Error,
    },
    /// Not a directory of cgroup v2.
    #[error("{path} is no cgroup of version 2 ({source}): mount cgroup2, or name another directory")]
    NoCgroup {
        /// The directory.
        path: PathBuf,
        /// What came of looking.
        source: io::Error,
    },
    /// What is pinned is not ours, or of another layout.
    #[error("{path} is not what this version has there ({found}): remove it with `sluice cleanup`")]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// Nothing of BPF is for this process.
    #[error(
        "bpf(2) is not allowed here ({0}): it takes CAP_BPF, and in a container a seccomp profile that has bpf(2) for whoever \
         has that, as current ones of containerd and Docker do"
    )]
    Denied(io::Error),
    /// The kernel did not take a map.
    #[error("this kernel makes no map {map} ({source}): it takes Linux 6.1, and CAP_BPF and CAP_NET_ADMIN")]
    Map {
        /// Its name.
        map: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not take a program.
    #[error(
        "this kernel does not take the program {program} ({source}): it takes Linux 6.1, and CAP_BPF, CAP_NET_ADMIN \
         and CAP_PERFMON. The verifier says:\n{log}"
    )]
    Program {
        /// Its name.
        program: String,
        /// The kernel's answer.
        source: io::Error,
        /// The end of what the verifier said.
        log: String,
    },
    /// Somebody's program at the cgroup allows no others.
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
    /// The object that was built in cannot be used.
    #[error(
        "the programs cannot be used here ({0}): this is a little-endian kernel with BTF, or a fault of the build"
    )]
    Object(String),
    /// A system call failed.
    #[error("{what} failed: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: what was tried.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}

/// What the kernel answers where the same may work in a moment. `EAGAIN` is the verifier's answer while a signal is pending.
const PASSING: [Errno; 6] =
    [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::INTR, Errno::BUSY];

/// Whether an error, or what caused it, says that the system is short of something now, or was disturbed.
pub fn passes(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut answers = std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref().and_then(Errno::from_io_error));
    answers.any(|answer| PASSING.contains(&answer))
}
