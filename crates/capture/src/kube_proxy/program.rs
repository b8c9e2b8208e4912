//! Running the programs that change the system.

use std::io::{self, Write};
use std::process::{Command as Process, Stdio};

use thiserror::Error;

/// A program did not do what it was to do.
#[derive(Debug, Error)]
pub enum Error {
    /// It is not there.
    #[error("the program {program} is not here; install it (on Debian the package {package})", program = .0, package = package(.0))]
    Missing(&'static str),
    /// It cannot be run.
    #[error("cannot run {program}: {error}")]
    Unusable {
        /// The program.
        program: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// It refused.
    #[error("{program} failed: {message}")]
    Failed {
        /// The program.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// It says something that is not understood; another version of it may be.
    #[error("what {program} prints is not understood: {error}")]
    Unexpected {
        /// The program.
        program: &'static str,
        /// Where it goes wrong.
        error: serde_json::Error,
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

/// A program to be run, with arguments and what it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub program: &'static str,
    pub arguments: Vec<String>,
    pub input: String,
}

impl Command {
    pub(super) fn new(program: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { program, arguments, input: String::new() }
    }

    pub(super) fn with_input(self, input: String) -> Self {
        Self { input, ..self }
    }

    /// Runs it to its end; returns what it prints.
    ///
    /// # Errors
    /// It is not there, cannot be run, or fails.
    pub(super) fn run(&self) -> Result<Vec<u8>, Error> {
        let program = self.program;
        let unusable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing(program),
            _ => Error::Unusable { program, error },
        };
        let mut process = Process::new(program)
            .args(&self.arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(unusable)?;
        // Who stops reading early says why, and that is better to know.
        let _ = process.stdin.take().map(|mut stdin| stdin.write_all(self.input.as_bytes()));
        let output = process.wait_with_output().map_err(unusable)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stderr);
        // The first lines tell; nft repeats the whole command after them.
        let message = message.lines().take(2).map(str::trim).collect::<Vec<_>>().join("; ");
        Err(Error::Failed {
            program,
            message: if message.is_empty() { output.status.to_string() } else { message },
        })
    }
}
