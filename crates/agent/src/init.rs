//! The parts of an agent's start that need more rights than the rest: the kernel's settings, and the process's
//! own.

use std::fs;

use anyhow::{Context, Result, bail};
use rustix::thread::CapabilitySet;
use sluice_capture::tproxy;
use tracing::{info, warn};

use crate::capture_args::{CaptureArgs, CaptureMode};

/// Makes the settings and mounts that a capturing agent would make, so that it need not (`--init-only`).
///
/// # Errors
/// A setting could not be made, or there is no nft to record its earlier value.
pub(crate) fn run(capture: &CaptureArgs) -> Result<()> {
    match capture.mode() {
        CaptureMode::Socket | CaptureMode::Auto => capture.socket.prepare(),
        CaptureMode::Tproxy => capture.socket.take_away(),
        CaptureMode::Bind => {}
    }
    let done = tproxy::prepare(capture.disable_bridge_netfilter).with_context(|| {
        let may = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
        match may {
            true => "the kernel's settings cannot be written down",
            false => "--init-only changes settings of the kernel: run this as root, with CAP_NET_ADMIN",
        }
    })?;
    done.set.iter().for_each(|setting| info!("{setting} is set"));
    if !done.failed.is_empty() {
        bail!("{}: run this as root, with a /proc/sys that may be written", done.failed.join(", "));
    }
    info!("the kernel's settings are as the agent needs them");
    Ok(())
}

/// Tells the kernel how readily to kill this process when memory is short.
pub(crate) fn adjust_oom_score(score: i16) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!("--oom-score-adj {score} has no effect: {error}; lower than it is needs CAP_SYS_RESOURCE");
    }
}
