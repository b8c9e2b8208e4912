//! Keeps br_netfilter off. With it, packets of pods on a Linux bridge pass the IP layer's rules while they are
//! on the bridge and not again above it, and by then they have lost the socket that TPROXY gave them.
//! kube-proxy needs it on for what `bridge.nft` does here.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::settings::Settings;

/// Of the network namespace. Where the module is not loaded there are none; loading it sets them to 1.
pub(super) const SETTINGS: [&str; 2] =
    ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];

/// How often somebody may have set them again.
const PAUSE: Duration = Duration::from_secs(1);

/// Both settings.
#[derive(Debug, Default)]
pub(super) struct BridgeNetfilter {
    due: Option<Instant>,
    has_complained: bool,
}

impl BridgeNetfilter {
    /// Sets to 0 what is not, if it is time to look.
    pub(super) fn keep_off(&mut self, settings: &mut Settings, now: Instant) {
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = Some(now + PAUSE);
        for setting in SETTINGS {
            if matches!(settings.get(setting), None | Some(0)) {
                continue;
            }
            match settings.set(setting, 0) {
                Ok(()) => {
                    info!("{setting} is set to 0: with it, pods on bridges would have no Services")
                }
                Err(error) if !self.has_complained => {
                    self.has_complained = true;
                    warn!(
                        "pods on bridges have no Services while {setting} is not 0, and it cannot be \
                         set: {error}; set it on the node (said once)"
                    );
                }
                Err(_) => {}
            }
        }
    }
}
