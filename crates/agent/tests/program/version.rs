//! `sluice version`, as a person runs it.

use std::process::{Child, Command, Output, Stdio};

/// What it says, and nothing besides.
fn said(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_command_says_the_same_as_the_flag() {
    let version = said(&["version"]);
    assert!(version.ends_with(concat!(env!("CARGO_PKG_VERSION"), "\n")), "{version:?}");
    for flag in ["--version", "-V"] {
        assert_eq!(said(&[flag]), version);
        assert_eq!(said(&["version", flag]), version);
        assert_eq!(said(&["agent", flag]), version);
    }
}

/// Runs it where nobody reads what it says.
fn unread(arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments).env_remove("RUST_LOG").stdout(writer).stderr(Stdio::piped());
    command.spawn().and_then(Child::wait_with_output).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

#[test]
fn whoever_reads_no_further_has_seen_enough() {
    for arguments in [&["version"][..], &["man"], &["man", "agent"], &["completion", "bash"]] {
        let output = unread(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    let read = Command::new(env!("CARGO_BIN_EXE_sluice")).arg("check").output().unwrap();
    let output = unread(&["check"]);
    assert_eq!(output.status.code(), read.status.code(), "its exit status is what it has found");
    assert!(output.stderr.is_empty(), "{output:?}");
}
