//! What of an agent's start needs more rights than the rest: settings of the kernel, and its own of the process.

use std::fs;

use anyhow::{Result, bail};
use tracing::{info, warn};

use crate::sysctls;

/// br_netfilter's, where the module is loaded.
const BRIDGE: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

/// Makes the settings that an agent in TPROXY mode would, so that it need not (`--init-only`).
///
/// # Errors
/// One of them could not be made.
pub(crate) fn run(bridge_netfilter_off: bool) -> Result<()> {
    let bridge = BRIDGE.into_iter().filter(|_| bridge_netfilter_off).map(|name| (name, 0));
    // Who has switched tcp_tw_reuse off has had a reason; 2 is the kernel's default.
    let reuse = (sysctls::get(sysctls::TW_REUSE) == Some(2)).then_some((sysctls::TW_REUSE, 1));
    let mut failed = Vec::new();
    for (name, value) in bridge.chain(reuse).chain([(sysctls::MIGRATE_REQ, 1)]) {
        let dotted = sysctls::dotted(name);
        // What the kernel has not, it does not need: a module that is not loaded, or an older kernel.
        match sysctls::get(name) {
            None => continue,
            Some(now) if now == value => continue,
            Some(_) => {}
        }
        match sysctls::set(name, value) {
            Ok(()) => info!("{dotted} is set to {value}"),
            Err(error) => failed.push(format!("{dotted} cannot be set to {value}: {error}")),
        }
    }
    if !failed.is_empty() {
        bail!("{}: run this as root, with a /proc/sys that may be written", failed.join(", "));
    }
    info!("the kernel's settings are as the agent needs them");
    Ok(())
}

/// Tells the kernel how ready to be to end this process when memory is short.
pub(crate) fn adjust_oom_score(score: i16) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!("--oom-score-adj {score} has no effect: {error}; lower than it is needs CAP_SYS_RESOURCE");
    }
}
