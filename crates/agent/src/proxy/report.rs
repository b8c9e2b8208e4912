//! Logs what a step has changed.

use std::time::Duration;

use sluice_capture::background::Step;
use tracing::{debug, info};

/// Logs what has changed about the frontends.
pub(super) fn report(step: &Step, took: Duration) {
    for state in &step.withdraw {
        debug!(frontend = %state.frontend, service = %state.port, "withdrawn");
    }
    for state in &step.offer {
        debug!(frontend = %state.frontend, service = %state.port, verdict = ?state.outside, "offered");
    }
    let (withdrawn, offered) = (step.withdraw.len(), step.offer.len());
    if withdrawn + offered > 0 {
        info!(withdrawn, offered, ?took, "frontends changed");
    }
}
