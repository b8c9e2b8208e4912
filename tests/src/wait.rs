//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Waits until `condition` holds.
///
/// # Panics
/// It does not hold in time; `what` says what was waited for.
#[expect(clippy::panic, reason = "the test has failed")]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= deadline {
            panic!("waited in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
