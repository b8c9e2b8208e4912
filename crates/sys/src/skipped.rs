//! What a test says that could not run what its name claims, because this machine lacks something. For tests only: here it is
//! within reach of all crates.

use std::fmt::Display;
use std::io::Write;
use std::panic::Location;

/// Writes `SKIPPED <test>: why` to standard error. `println!` and `eprintln!` are captured, and shown of tests that fail only:
/// one that was cut short would look as any other that has passed.
#[track_caller]
pub fn skipped(why: impl Display) {
    let thread = std::thread::current();
    // Tests run in threads of their name, or one after the other in the main one, or start threads themselves.
    let name = thread.name().filter(|name| *name != "main").unwrap_or_else(|| Location::caller().file());
    // With nobody to read it there is nothing to be done.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Any other test passes by.
    const WANTED: &str = "SLUICE_TEST_IS_SKIPPED";

    #[test]
    fn one_that_is_cut_short() {
        if std::env::var_os(WANTED).is_some() {
            super::skipped("it is told to be");
        }
    }

    #[test]
    fn what_was_skipped_is_seen_although_the_test_passes() {
        let name = "skipped::tests::one_that_is_cut_short";
        for (threads, shown) in [("2", name), ("1", "skipped")] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name, "--test-threads", threads]);
            let output = command.env(WANTED, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let line = said.lines().find(|line| line.starts_with("SKIPPED ")).unwrap_or_default();
            assert!(line.contains(shown) && line.ends_with(": it is told to be"), "{said}");
        }
    }
}
