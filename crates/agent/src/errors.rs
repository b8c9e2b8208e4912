//! How errors are reported; and standard output, whose errors name it.

use std::io::{self, Write};

/// Standard output. Its errors name it, so that nobody looks for a full disk elsewhere.
#[derive(Debug)]
pub struct Output(io::Stdout);

impl Output {
    /// The standard output of this process.
    pub fn new() -> Self {
        Self(io::stdout())
    }
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(of_output)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_output)
    }
}

/// Writes all of a text to standard output. Returns whether somebody still reads.
///
/// # Errors
/// Standard output cannot be written to. A reader that has closed the pipe is no error.
pub fn print(text: &[u8]) -> io::Result<bool> {
    let mut output = Output::new();
    match output.write_all(text).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

fn of_output(error: io::Error) -> io::Error {
    match error.kind() {
        // Callers act on it.
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, format!("cannot write to standard output: {error}")),
    }
}

/// What went wrong and why, down to the root cause. Repetitions are left out: many errors already contain their
/// cause's text.
pub fn reasons(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if said.contains(&cause) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&cause);
    }
    said
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let error = io::Error::from_raw_os_error(2);
        let said = error.to_string();
        let outer =
            anyhow::Error::new(error).context(format!("cannot read a: {said}")).context("cannot start");
        assert_eq!(reasons(&outer), format!("cannot start: cannot read a: {said}"));
        let nested = Err::<(), _>(anyhow!("b")).context("a").unwrap_err();
        assert_eq!(reasons(&nested), "a: b");
    }
}
