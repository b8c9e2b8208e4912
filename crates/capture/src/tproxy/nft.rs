//! Running the program nft.

use super::Error;
use crate::program;

/// Executes a script as one transaction: all of it happens, or nothing.
///
/// # Errors
/// See [`program::run`].
pub(super) fn execute(script: &str) -> Result<(), Error> {
    run(&["--file", "-"], script).map(drop)
}

/// Runs nft to its end; returns what it prints.
///
/// # Errors
/// See [`program::run`].
pub(super) fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, Error> {
    Ok(program::run("nft", arguments, input)?)
}
