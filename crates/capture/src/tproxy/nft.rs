//! Running the program nft. Blocks until it ends, or for [`TIMEOUT`].

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::debug;

use super::Error;

/// The program, looked for in PATH.
const NFT: &str = "nft";

/// A transaction of 30,000 elements takes 0.3 s; one that takes so much longer is stuck.
const TIMEOUT: Duration = Duration::from_secs(30);

/// So much of what nft says about an error is kept, in bytes: it repeats the command, which may be long.
const MESSAGE_MAX: u64 = 500;

/// Executes a script as one transaction: all of it happens, or nothing.
///
/// # Errors
/// See [`run`].
pub(super) fn execute(script: &str) -> Result<(), Error> {
    run(&["--file", "-"], script).map(drop)
}

/// Runs nft to its end; returns what it prints.
///
/// # Errors
/// It is not there, cannot be run, fails, or does not end.
pub(super) fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, Error> {
    run_program(Command::new(NFT).args(arguments).env("LC_ALL", "C"), input, TIMEOUT)
}

/// Input and output are files in memory, not pipes: neither side ever waits for the other.
fn run_program(command: &mut Command, input: &str, timeout: Duration) -> Result<Vec<u8>, Error> {
    let unusable = Error::NftUnusable;
    let mut stdin = memory_file("stdin").map_err(unusable)?;
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).map_err(unusable)?;
    let mut stdout = memory_file("stdout").map_err(unusable)?;
    let mut stderr = memory_file("stderr").map_err(unusable)?;
    let child = command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone().map_err(unusable)?))
        .stderr(Stdio::from(stderr.try_clone().map_err(unusable)?))
        .spawn();
    let child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NftMissing,
        _ => Error::NftUnusable(error),
    })?;
    let status = wait(child, timeout)?;
    if status.success() {
        return read(&mut stdout, u64::MAX).map_err(unusable);
    }
    let message = read(&mut stderr, MESSAGE_MAX).map_err(unusable)?;
    let message = String::from_utf8_lossy(&message);
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.collect::<Vec<_>>().join("; ");
    Err(Error::NftFailed(if message.is_empty() { status.to_string() } else { message }))
}

fn read(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn memory_file(name: &str) -> io::Result<File> {
    // Systems may insist on the flag (vm.memfd_noexec), and kernels before 6.3 do not know it.
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, MemfdFlags::CLOEXEC))?;
    Ok(File::from(file))
}

/// Waits for the end of a process, and brings it about if that takes too long.
fn wait(mut child: Child, timeout: Duration) -> Result<ExitStatus, Error> {
    let has_ended = ends_in_time(&child, timeout).unwrap_or_else(|error| {
        debug!(%error, "nft is waited for without a time limit");
        true
    });
    if !has_ended {
        child.kill().map_err(Error::NftUnusable)?;
    }
    let status = child.wait().map_err(Error::NftUnusable)?;
    if has_ended { Ok(status) } else { Err(Error::NftStuck(timeout)) }
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
        run_program(Command::new("sh").args(["-c", script]), input, timeout)
    }

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
        let Err(Error::NftFailed(message)) =
            shell("echo; echo no; yes | head -c 100000 >&2; exit 3", "", LONG)
        else {
            panic!("it fails")
        };
        assert!(message.starts_with("y; y; "), "{message}");
        assert!(message.len() < 2 * 500, "{}", message.len());
        let silent = shell("exit 3", "", LONG).unwrap_err().to_string();
        assert_eq!(silent, "nft failed: exit status: 3");
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let error = shell("exec sleep 600", "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::NftStuck(_)), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let missing = run_program(&mut Command::new("/nonexistent/nft"), "", LONG).unwrap_err();
        assert!(matches!(missing, Error::NftMissing), "{missing}");
        let unusable = run_program(&mut Command::new("/dev/null"), "", LONG).unwrap_err();
        assert!(matches!(unusable, Error::NftUnusable(_)), "{unusable}");
    }
}
