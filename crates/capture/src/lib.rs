//! Capture: making packets for Service addresses reach the workers.
//!
//! A mode is told frontends with their verdicts and makes the difference true; it keeps no opinion of
//! its own about who serves what, and does not assume that bytes pass through this process.
//!
//! * [`bind`]: listens on the frontends' own addresses. Needs no privileges.

pub mod bind;

use std::time::Instant;

use sluice_table::FrontendState;

/// A way of capturing.
///
/// The order of calls is that of [`Plan`](sluice_table::Plan): withdraw, then the table forgets and
/// learns, then offer.
pub trait Capture {
    /// These frontends no longer exist. Once this returns no new connection arrives through them.
    fn withdraw(&mut self, frontends: &[FrontendState]);

    /// These frontends are new, or their verdicts changed.
    fn offer(&mut self, frontends: &[FrontendState], now: Instant);

    /// Tries again what did not work, as far as it is due.
    fn retry(&mut self, now: Instant);
}
