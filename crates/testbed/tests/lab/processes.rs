//! Programs that run on a host.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use sluice_testbed::lab::{LabError, PATIENCE};

use super::{lab, well};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn a_program_runs_where_it_was_started() {
    let lab = lab();
    let mut process = well(
        lab.pod(1).spawn(
            shell("ip -o -4 address show dev eth0; echo $GREETING; pwd >&2; exit 3")
                .env("GREETING", "hi")
                .current_dir("/"),
        ),
    );
    well(process.wait_for("inet 10.244.1.11/32", PATIENCE));
    well(process.wait_for("hi", PATIENCE));
    // Both streams are read.
    well(process.wait_for("/", PATIENCE));
    assert_eq!(well(process.wait(PATIENCE)).code(), Some(3));
}

#[test]
fn a_program_gets_signals_and_answers_them() {
    let lab = lab();
    let mut process = well(
        lab.node().spawn(&shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")),
    );
    well(process.wait_for("ready", PATIENCE));
    well(process.signal(Signal::TERM));
    well(process.wait_for("bye", PATIENCE));
    assert_eq!(well(process.wait(PATIENCE)).code(), Some(0));
}

#[test]
fn what_a_program_does_not_do_is_reported_with_what_it_said() {
    let lab = lab();
    let mut process = well(lab.node().spawn(&shell("echo something else; sleep 1000")));
    well(process.wait_for("something", PATIENCE));
    let soon = Duration::from_millis(20);
    for error in [process.wait_for("ready", soon).unwrap_err(), process.wait(soon).unwrap_err()] {
        assert!(matches!(error, LabError::Waited { .. }), "{error}");
        assert!(error.to_string().contains("something else"), "{error}");
    }
}

#[test]
fn a_program_that_is_not_there_is_an_end_with_a_reason() {
    let lab = lab();
    let mut process = well(lab.node().spawn(&Command::new("/nowhere/sluice")));
    assert_eq!(well(process.wait(PATIENCE)).code(), Some(127));
    well(process.wait_for("/nowhere/sluice", PATIENCE));
    let error = lab.node().ns.output("/nowhere/ip", &[]).unwrap_err();
    assert!(matches!(error, LabError::Program { .. }), "{error}");
    let error = lab.node().ns.ip("link show nosuch").unwrap_err();
    assert!(error.to_string().contains("nosuch"), "{error}");
}
