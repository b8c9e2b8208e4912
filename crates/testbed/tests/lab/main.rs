//! Tests of the lab itself, without Sluice.
//!
//! These tests need root, or a kernel with unprivileged user namespaces. Otherwise they fail and say so.

// All of it is test code, including helpers, which clippy does not see by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

mod leftovers;
mod look;
mod outcomes;
mod peers;
mod privilege;
mod processes;
mod reach;

use std::process::Command;
use std::time::{Duration, Instant};

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Lab, LabError, PATIENCE};

pub(crate) const PORT: u16 = 8080;
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

pub(crate) fn families_and_protocols() -> impl Iterator<Item = (Family, Protocol)> {
    FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
}

pub(crate) fn lab() -> Lab {
    well(Lab::new())
}

/// Unwraps a result, and panics with the error's message for people.
#[track_caller]
pub(crate) fn well<T>(result: Result<T, LabError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A command that runs one test of this program and nothing else, through `arguments`.
pub(crate) fn this_test(arguments: &[&str], name: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match arguments {
        [] => Command::new(program),
        [runner, rest @ ..] => {
            let mut command = Command::new(runner);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["--exact", name, "--nocapture"]);
    command
}
