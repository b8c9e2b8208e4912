//! Reports conflicts between objects, which the table has found: in the log, and as Events.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use sluice_dataplane::Throttle;
use sluice_table::Notice;
use tracing::{debug, warn};

use crate::check;
use crate::events::Events;

/// Log lines in a burst: a user may have thousands of conflicting Services, and change them all the time.
const BURST: u32 = 20;

/// Reports each notice as an Event, and in the log as many as people can read.
#[derive(Debug)]
pub(super) struct Teller {
    events: Events,
    lines: Throttle,
    /// Whether the log has said that the Node has an address in a Service range.
    has_told_of_node: bool,
}

impl Teller {
    pub(super) fn new(events: Events) -> Self {
        Self { events, lines: Throttle::new(BURST), has_told_of_node: false }
    }

    /// Reports new notices.
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

    /// Logs once that the Node has an address in a Service range. Returns whether it did so now.
    pub(super) fn tell_of_node(&mut self, address: Option<(IpAddr, IpNet)>) -> bool {
        let news = address.filter(|_| !self.has_told_of_node);
        if let Some((ip, range)) = news {
            check::warn_of_address_in_range(ip, range);
            self.has_told_of_node = true;
        }
        news.is_some()
    }

    /// Logs how many lines were left out, once their interval is over.
    pub(super) fn sum_up(&mut self, now: Instant) {
        if let Some(left_out) = self.lines.sum_up(now) {
            warn!(
                "{left_out} more such notices about Services; -v says them all, the status page those that still hold"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_node_that_services_may_get_is_said_once() {
        let mut teller = Teller::new(Events::default());
        let address = |last| Some(([10, 96, 0, last].into(), "10.96.0.0/16".parse().unwrap()));
        let said =
            [None, address(9), address(9), None, address(8)].map(|address| teller.tell_of_node(address));
        assert_eq!(said, [false, true, false, false, false]);
    }
}
