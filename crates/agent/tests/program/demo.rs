//! `sluice demo`: what the README promises of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::common::until;

/// A demo whose files go into a directory of the test's.
fn demo(directory: &TempDir, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", directory.path())
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The address of its HTTP Service, from the command that a person can try.
fn frontend(said: &str) -> &str {
    said.lines().find_map(|line| line.trim().strip_prefix("curl ")).unwrap()
}

fn is_empty(directory: &TempDir) -> bool {
    fs::read_dir(directory.path()).unwrap().next().is_none()
}

#[test]
fn demos_that_run_together_lose_no_request_and_share_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let demos: Vec<Child> =
        (0..3).map(|_| demo(&directory, &["--once", "--requests", "300", "--workers", "2"])).collect();
    let mut frontends = Vec::new();
    for demo in demos {
        let output = demo.wait_with_output().unwrap();
        let [said, complaints] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{said}{complaints}");
        assert!(said.contains("\n0 of "), "{said}");
        assert_eq!(complaints, "");
        frontends.push(frontend(&said).to_owned());
    }
    frontends.sort_unstable();
    frontends.dedup();
    assert_eq!(frontends.len(), 3, "{frontends:?}");
    assert!(is_empty(&directory));
}

#[test]
fn a_demo_that_is_told_to_end_takes_its_files_away() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let directory = tempfile::tempdir().unwrap();
        let mut demo = demo(&directory, &[]);
        let mut said = BufReader::new(demo.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("curl ")));
        assert!(!is_empty(&directory));
        kill_process(Pid::from_child(&demo), signal).unwrap();
        // Whatever it writes is to find a reader.
        std::thread::spawn(move || said.for_each(drop));
        until("the demo ends", || demo.try_wait().unwrap().is_some());
        assert!(is_empty(&directory), "{signal:?}");
    }
}

#[test]
fn where_it_cannot_run_it_says_what_to_change() {
    let cases = [
        ("TMPDIR=/proc exec \"$0\" demo --once", "set TMPDIR to one that files can be written to"),
        ("ulimit -n 64; exec \"$0\" demo --once", "raise the limit (ulimit -n)"),
        ("ulimit -n 150; exec \"$0\" demo --once --workers 500", "lower --workers"),
        ("exec \"$0\" demo --once --requests 9 >/dev/full", "cannot write to standard output: No space left"),
        ("exec \"$0\" check >/dev/full", "cannot write to standard output: No space left"),
        ("exec \"$0\" version >/dev/full", "cannot write to standard output: No space left"),
    ];
    for (script, said) in cases {
        let mut command = Command::new("bash");
        let output =
            command.args(["-c", script, env!("CARGO_BIN_EXE_sluice")]).env_remove("RUST_LOG").output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.lines().count() == 1 && errors.contains(said), "{script}: {errors}");
        assert_eq!(output.status.code(), Some(1), "{script}");
    }
}
