//! `sluice version`, as a person runs it.

use std::process::Command;

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
