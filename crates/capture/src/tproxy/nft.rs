//! Runs the program nft.

use super::Error;
use crate::program;

/// Executes a script as one transaction: completely or not at all.
///
/// # Errors
/// See [`program::run`].
pub(super) fn execute(script: &str) -> Result<(), Error> {
    run(&["--file", "-"], script).map(drop)
}

/// Runs nft to its end; returns its output.
///
/// # Errors
/// See [`program::run`].
pub(super) fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, Error> {
    Ok(program::run("nft", arguments, input)?)
}
