//! Says what the table has to tell people about objects that do not fit together: in the log, and as Events.

use std::time::Instant;

use sluice_dataplane::Throttle;
use sluice_table::Notice;
use tracing::{debug, warn};

use crate::events::Events;

/// Lines in a burst: whoever has Services may have thousands of them be in conflict, and all the time anew.
const BURST: u32 = 20;

/// Tells each notice, and in the log no more than can be read.
#[derive(Debug)]
pub(super) struct Teller {
    events: Events,
    lines: Throttle,
}

impl Teller {
    pub(super) fn new(events: Events) -> Self {
        Self { events, lines: Throttle::new(BURST) }
    }

    /// What is new.
    pub(super) fn tell(&mut self, notices: &[Notice], now: Instant) {
        for notice in notices {
            self.sum_up(now);
            if self.lines.admit(now).is_some() {
                warn!(service = %notice.service(), "{notice}");
            } else {
                debug!(service = %notice.service(), "{notice}");
            }
            self.events.warn(notice.service(), notice.reason(), "Serve", notice.to_string());
        }
    }

    /// Says how many lines were left out, once their interval is over.
    pub(super) fn sum_up(&mut self, now: Instant) {
        if let Some(left_out) = self.lines.sum_up(now) {
            warn!(
                "{left_out} more such notices about Services; -v says them all, the status page those that still hold"
            );
        }
    }
}
