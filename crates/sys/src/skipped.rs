//! The message of a test that could not check what its name says, because this machine lacks something. For
//! tests only; it is in this crate because all crates can use it.

use std::fmt::Display;
use std::io::Write;
use std::panic::Location;

/// Writes `SKIPPED <test>: why` to standard error. `println!` and `eprintln!` are captured and shown only for
/// failed tests, so a skipped test would look like one that has passed.
#[track_caller]
pub fn skipped(why: impl Display) {
    let thread = std::thread::current();
    // Tests run in threads named after them, or one after the other in the main thread, or start threads
    // themselves.
    let name = thread.name().filter(|name| *name != "main").unwrap_or_else(|| Location::caller().file());
    // Nothing can be done if nobody reads it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Unless it is set, the test does nothing.
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
