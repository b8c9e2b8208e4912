//! Keeps br_netfilter off. With it, packets of pods on a Linux bridge pass the IP layer's rules while they are
//! on the bridge and not again above it, and by then they have lost the socket that TPROXY assigned. kube-proxy
//! needs it on for what `bridge.nft` does here.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::counters::Counters;
use super::lines::Lines;
use super::settings::Settings;

/// Settings of the network namespace. They do not exist unless the module is loaded; loading it sets them to 1.
pub(super) const SETTINGS: [&str; 2] =
    ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];

/// The minimum interval between checks.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a failure to set them is logged.
const SAID_AGAIN: Duration = Duration::from_secs(600);

/// Both settings.
#[derive(Debug, Default)]
pub(super) struct BridgeNetfilter {
    due: Option<Instant>,
    silent_until: Option<Instant>,
    /// Log lines about settings that others had changed.
    lines: Lines,
}

impl BridgeNetfilter {
    /// Sets both to 0, if a check is due.
    pub(super) fn keep_off(&mut self, settings: &mut Settings, counters: &Counters, now: Instant) {
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = Some(now + PAUSE);
        if let Some(left_out) = self.lines.sum_up(now) {
            warn!(
                "{left_out} more times one of br_netfilter's settings was set to 0: somebody sets them to 1"
            );
        }
        let mut refusal = None;
        for setting in SETTINGS {
            if matches!(settings.get(setting), None | Some(0)) {
                continue;
            }
            match settings.set(setting, 0) {
                Ok(()) if self.lines.admit(now) => {
                    info!("{setting} is set to 0: with it, pods on bridges would have no Services");
                }
                Ok(()) => debug!("{setting} is set to 0"),
                Err(error) => refusal = Some((setting, error)),
            }
        }
        counters.bridge_netfilter(refusal.is_some());
        match refusal {
            // A later change by others starts a new series of failures.
            None => self.silent_until = None,
            Some(_) if self.silent_until.is_some_and(|until| now < until) => {}
            Some((setting, error)) => {
                self.silent_until = Some(now + SAID_AGAIN);
                warn!(
                    "pods on bridges have no Services while {setting} is not 0, and it cannot be set: {error}; set it \
                     on the node, where a file in /etc/sysctl.d may say otherwise"
                );
            }
        }
    }
}
