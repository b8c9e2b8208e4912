//! A clock that stands still while anything goes on.

use std::time::{Duration, Instant};

/// How long anything may take, by a clock that does not, before the test fails.
const DEADLINE: Duration = Duration::from_secs(40);

/// Waits for what has to happen, on a clock that is paused: it goes on by itself only while nobody has anything to do, and so
/// stands still meanwhile.
pub(crate) async fn still(mut test: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !test() {
        assert!(Instant::now() < deadline, "it took too long");
        tokio::task::yield_now().await;
    }
}
