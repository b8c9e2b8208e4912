//! Runs load generators in a namespace, with a timeout, and parses their output.

use std::env;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use sluice_testbed::lab::Namespace;

use crate::interrupt;

/// Where Debian has programs that are meant only for root.
const SYSTEM_PATHS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The result of a program.
#[derive(Debug)]
pub struct Said {
    /// Its standard output.
    pub out: String,
    /// Its exit status.
    pub status: ExitStatus,
    err: String,
}

impl Said {
    /// Its standard output, if it was successful.
    ///
    /// # Errors
    /// It was not; the error has its error output.
    pub fn well(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}: {}{}", self.status, self.err.trim(), self.out.trim());
        }
        Ok(self.out)
    }
}

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_PATHS.map(Into::into))
        .any(|directory| directory.join(program).is_file())
}

/// Runs a program in a namespace to its end. Kills it after `patience`, or after an interrupt.
///
/// # Errors
/// It cannot be started, or has not ended in time.
pub fn run(namespace: &Namespace, command: &[&str], patience: Duration) -> Result<Said> {
    // The kernel kills it when this thread ends, and this thread waits for it, so it cannot outlive us.
    namespace.run(|| run_here(command, patience)).with_context(|| command.join(" "))
}

fn run_here(command: &[&str], patience: Duration) -> Result<Said> {
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(command)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("setpriv")?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(|| read(out));
        let err = scope.spawn(|| read(err));
        let status = wait(&mut child, patience);
        let text = |thread: std::thread::ScopedJoinHandle<'_, io::Result<String>>| {
            thread.join().map_err(|_| anyhow::anyhow!("its output"))?.context("its output")
        };
        let (out, err) = (text(out)?, text(err)?);
        Ok(Said { status: status?, out, err })
    })
}

fn read(stream: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt::is_interrupted() || Instant::now() > deadline {
            // It was not waited for, so its process id is still valid.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            child.wait()?;
            interrupt::check()?;
            bail!("it has not ended within {patience:?}");
        }
        std::thread::sleep(interrupt::POLL);
    }
}

/// The first number after a text.
pub fn number_after(text: &str, label: &str) -> Option<f64> {
    let (_, rest) = text.split_once(label)?;
    let rest = rest.trim_start_matches([' ', ':', '=']);
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// The number before a text, on the same line.
pub fn number_before(text: &str, label: &str) -> Option<f64> {
    let (before, _) = text.split_once(label)?;
    before.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_what_is_around_them() {
        let text = "  61234 requests in 5.00s, 50.1MB read\nRequests/sec:  12345.67\nlost:  3 (0.01%)\na = 7";
        assert_eq!(number_before(text, " requests in"), Some(61_234.0));
        assert_eq!(number_after(text, "Requests/sec:"), Some(12_345.67));
        assert_eq!(number_after(text, "lost:"), Some(3.0));
        assert_eq!(number_after(text, "a ="), Some(7.0));
        assert_eq!(number_after(text, "nothing"), None);
    }
}
