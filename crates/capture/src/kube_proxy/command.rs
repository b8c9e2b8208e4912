//! Commands as data, so that a plan can be inspected.

use super::Error;
use crate::program;

/// A program to run, with its arguments and input.
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

    /// Runs it to its end; returns its output.
    ///
    /// # Errors
    /// It does not exist, cannot be run, fails, or does not end.
    pub(super) fn run(&self) -> Result<Vec<u8>, Error> {
        Ok(program::run(self.program, &self.arguments, &self.input)?)
    }
}
