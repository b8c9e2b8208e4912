//! Keeps br_netfilter off. With it, packets of pods on a Linux bridge pass the IP layer's rules while they are
//! on the bridge and not again above it, and by then they have lost the socket that TPROXY gave them.
//! kube-proxy needs it on for what `bridge.nft` does here.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::counters::Counters;
use super::lines::Lines;
use super::settings::Settings;

/// Of the network namespace. Where the module is not loaded there are none; loading it sets them to 1.
pub(super) const SETTINGS: [&str; 2] =
    ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];

/// How often somebody may have set them again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is said that they cannot be set.
const SAID_AGAIN: Duration = Duration::from_secs(600);

/// Both settings.
#[derive(Debug, Default)]
pub(super) struct BridgeNetfilter {
    due: Option<Instant>,
    silent_until: Option<Instant>,
    /// Of what others have set and was set back.
    lines: Lines,
}

impl BridgeNetfilter {
    /// Sets to 0 what is not, if it is time to look.
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
            // Whatever sets it next does so anew.
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
