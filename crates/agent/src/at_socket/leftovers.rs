//! Removes what an agent with socket mode has left on a node whose agent has it off: the programs would go on
//! deciding for good by what that agent knew. They are removed once their holder lets go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::{ATTACH_RETRY, HAND_OVER, Heir, Place, View, warn_of_left};

/// Programs that could not be removed yet.
pub(super) struct Leftovers {
    pins: PathBuf,
    looked: Instant,
    /// Since when this agent has replaced the other one in all but this.
    waits: Option<Instant>,
    heir: Heir,
    /// The reason that was shown before.
    reason: Option<Arc<String>>,
}

impl Leftovers {
    /// Removes what there is below `pins`. Returns what could not be removed, to be retried by
    /// [`Leftovers::keep`].
    pub(super) fn remove(pins: PathBuf, place: &mut dyn Place, view: &View) -> Option<Self> {
        match place.remove(&pins) {
            Ok(removed) => {
                if removed.was_there {
                    info!("nothing is decided at sockets any more, as this agent does not");
                }
                warn_of_left(removed.left.as_deref());
                None
            }
            // Outside a bpffs, nothing can be pinned.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => None,
            Err(error) => {
                warn!(
                    "an earlier agent's programs still decide about connections, by what that one knew: {error}; they are \
                     removed once it lets go, or in a minute"
                );
                let reason = view.reason();
                view.set_reason(&format!(
                    "an earlier agent's programs still decide about connections: {error}"
                ));
                Some(Self { pins, looked: Instant::now(), waits: None, heir: Heir::Ready, reason })
            }
        }
    }

    /// The directory of the pins.
    pub(super) fn pins(&self) -> &Path {
        &self.pins
    }

    /// Tries again if that is due; returns whether nothing is left. If an agent that was replaced by this one
    /// does not let go, the programs are taken away from it.
    pub(super) fn keep(&mut self, now: Instant, place: &mut dyn Place, view: &View) -> bool {
        if now < self.looked + ATTACH_RETRY && !self.heir.is_due(|| place.is_asked_for(&self.pins)) {
            return false;
        }
        self.looked = now;
        let waits = self.waits.get_or_insert(now);
        let removed = if now >= *waits + HAND_OVER {
            *waits = now;
            place.remove_held(&self.pins)
        } else {
            place.remove(&self.pins)
        };
        let Ok(removed) = removed else {
            self.heir = Heir::ask(place, &self.pins);
            return false;
        };
        info!("nothing is decided at sockets any more: what an earlier agent has left is removed");
        warn_of_left(removed.left.as_deref());
        view.restore_reason(self.reason.take());
        true
    }
}
