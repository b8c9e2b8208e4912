//! Runs the programs that change the system, with a timeout of 30 s.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;
use tracing::debug;

/// A transaction of 30,000 elements takes 0.3 s; one that takes longer than this is stuck.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a program's error message is kept, in bytes: nft repeats the command, which may be long.
const MESSAGE_MAX: u64 = 500;

/// A program failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The program does not exist.
    #[error("the program {program} is not here; install it (on Debian the package {package})", program = .0, package = package(.0))]
    Missing(&'static str),
    /// It cannot be run.
    #[error("cannot run {program}: {error}")]
    Unusable {
        /// The program.
        program: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed: {message}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its message, or its exit status.
        message: String,
    },
    /// A signal ended it, most likely the kernel's for lack of memory.
    #[error("{program} was ended by signal {signal}: memory may be short (dmesg, and the limit of the pod)")]
    Killed {
        /// The program.
        program: &'static str,
        /// The signal (signal(7)).
        signal: i32,
    },
    /// It did not end in time.
    #[error("{program} did not end in {} s and was ended; is another program changing the same all the time?", .after.as_secs())]
    Stuck {
        /// The program.
        program: &'static str,
        /// The timeout.
        after: Duration,
    },
}

/// The Debian package that has a program.
fn package(program: &str) -> &'static str {
    match program {
        "nft" => "nftables",
        "ip" => "iproute2",
        "ipvsadm" => "ipvsadm",
        "ipset" => "ipset",
        _ => "iptables",
    }
}

/// Runs a program, found in PATH, to its end; returns its output.
///
/// # Errors
/// It does not exist, cannot be run, fails, or does not end.
pub fn run(
    program: &'static str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &str,
) -> Result<Vec<u8>, Error> {
    run_for(TIMEOUT, program, arguments, input)
}

/// Input and output are files in memory, not pipes: neither side ever waits for the other.
fn run_for(
    timeout: Duration,
    program: &'static str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &str,
) -> Result<Vec<u8>, Error> {
    let unusable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::Missing(program),
        _ => Error::Unusable { program, error },
    };
    let mut stdin = memory_file("stdin").map_err(unusable)?;
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).map_err(unusable)?;
    let mut stdout = memory_file("stdout").map_err(unusable)?;
    let mut stderr = memory_file("stderr").map_err(unusable)?;
    let child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone().map_err(unusable)?))
        .stderr(Stdio::from(stderr.try_clone().map_err(unusable)?))
        .spawn()
        .map_err(unusable)?;
    let Some(status) = wait(child, timeout).map_err(unusable)? else {
        return Err(Error::Stuck { program, after: timeout });
    };
    if status.success() {
        return read(&mut stdout, u64::MAX).map_err(unusable);
    }
    // The rest of its output is not the reason, and its results are incomplete.
    if let Some(signal) = status.signal() {
        return Err(Error::Killed { program, signal });
    }
    let message = read(&mut stderr, MESSAGE_MAX).map_err(unusable)?;
    let message = String::from_utf8_lossy(&message);
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.collect::<Vec<_>>().join("; ");
    Err(Error::Failed { program, message: if message.is_empty() { status.to_string() } else { message } })
}

fn read(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn memory_file(name: &str) -> io::Result<File> {
    // Systems may require the flag (vm.memfd_noexec), and kernels before 6.3 do not know it.
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, MemfdFlags::CLOEXEC))?;
    Ok(File::from(file))
}

/// Waits for a process to end. After the timeout it kills the process and returns `None`.
fn wait(mut child: Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let has_ended = ends_in_time(&child, timeout).unwrap_or_else(|error| {
        debug!(%error, "a program is waited for without a time limit");
        true
    });
    if !has_ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(has_ended.then_some(status))
}

fn ends_in_time(child: &Child, timeout: Duration) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, timeout: Duration) -> Result<Vec<u8>, Error> {
        run_for(timeout, "sh", ["-c", script], input)
    }

    const NOTHING: [&str; 0] = [];
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn neither_side_waits_for_the_other() {
        let input = "x".repeat(1 << 20);
        let output = shell("cat >&2; head -c 1048576 /dev/zero", &input, LONG).unwrap();
        assert_eq!(output.len(), 1 << 20);
        assert_eq!(shell("cat", &input, LONG).unwrap(), input.as_bytes());
        // As nft does.
        assert_eq!(shell("cat /dev/stdin", &input, LONG).unwrap(), input.as_bytes());
    }

    #[test]
    fn of_an_error_message_the_beginning_is_kept() {
        let Err(Error::Failed { message, .. }) =
            shell("echo; echo no; yes | head -c 100000 >&2; exit 3", "", LONG)
        else {
            panic!("it fails")
        };
        assert!(message.starts_with("y; y; "), "{message}");
        assert!(message.len() < 2 * 500, "{}", message.len());
        let silent = shell("exit 3", "", LONG).unwrap_err().to_string();
        assert_eq!(silent, "sh failed: exit status: 3");
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let error = shell("exec sleep 600", "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Stuck { .. }), "{error}");
    }

    #[test]
    fn what_is_killed_has_not_refused() {
        let error = shell("echo no >&2; kill -KILL $$", "", LONG).unwrap_err();
        assert!(matches!(error, Error::Killed { program: "sh", signal: 9 }), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let missing = run_for(LONG, "/nonexistent/nft", NOTHING, "").unwrap_err();
        assert!(matches!(missing, Error::Missing(_)), "{missing}");
        let unusable = run_for(LONG, "/dev/null", NOTHING, "").unwrap_err();
        assert!(matches!(unusable, Error::Unusable { .. }), "{unusable}");
    }
}
