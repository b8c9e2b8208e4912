//! Says what the table has to tell people about objects that do not fit together: in the log, and as Events.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice_table::Notice;
use tracing::{debug, warn};

use crate::check;
use crate::events::Events;

/// Lines in an [`INTERVAL`]: whoever has Services may have thousands of them be in conflict, and all the time anew.
const BURST: usize = 20;

/// How long a burst is counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// Tells each notice, and in the log no more than can be read.
#[derive(Debug)]
pub(super) struct Teller {
    events: Events,
    /// When the burst under way began.
    since: Option<Instant>,
    said: usize,
    left_out: usize,
    /// Whether it was said that the Node has an address that Services may get.
    has_told_of_node: bool,
}

impl Teller {
    pub(super) fn new(events: Events) -> Self {
        Self { events, since: None, said: 0, left_out: 0, has_told_of_node: false }
    }

    /// What is new.
    pub(super) fn tell(&mut self, notices: &[Notice], now: Instant) {
        for notice in notices {
            self.sum_up(now);
            if self.admits(now) {
                warn!(service = %notice.service(), "{notice}");
            } else {
                debug!(service = %notice.service(), "{notice}");
            }
            self.events.warn(notice.service(), notice.reason(), "Serve", notice.to_string());
        }
    }

    /// Says once that the Node has an address in a range of Services; whether that was now.
    pub(super) fn tell_of_node(&mut self, address: Option<(IpAddr, IpNet)>) -> bool {
        let news = address.filter(|_| !self.has_told_of_node);
        if let Some((ip, range)) = news {
            check::warn_of_address_in_range(ip, range);
            self.has_told_of_node = true;
        }
        news.is_some()
    }

    /// Says how many lines were left out, once their interval is over.
    pub(super) fn sum_up(&mut self, now: Instant) {
        if self.is_over(now)
            && let left_out @ 1.. = std::mem::take(&mut self.left_out)
        {
            warn!(
                "{left_out} more such notices about Services; -v says them all, the status page those that still hold"
            );
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            (self.since, self.said) = (Some(now), 0);
        }
        let admits = self.said < BURST;
        *(if admits { &mut self.said } else { &mut self.left_out }) += 1;
        admits
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_said_line_by_line_and_all_else_as_a_number() {
        let (start, mut teller) = (Instant::now(), Teller::new(Events::default()));
        let admitted = |teller: &mut Teller, at| (0..1_000).filter(|_| teller.admits(at)).count();
        assert_eq!(admitted(&mut teller, start), BURST);
        assert_eq!(admitted(&mut teller, start + INTERVAL / 2), 0);
        teller.sum_up(start + INTERVAL / 2);
        assert_eq!(teller.left_out, 2_000 - BURST);
        teller.sum_up(start + INTERVAL);
        assert_eq!(teller.left_out, 0);
        assert_eq!(admitted(&mut teller, start + INTERVAL), BURST);
    }

    #[test]
    fn an_address_of_the_node_that_services_may_get_is_said_once() {
        let mut teller = Teller::new(Events::default());
        let address = |last| Some(([10, 96, 0, last].into(), "10.96.0.0/16".parse().unwrap()));
        let said =
            [None, address(9), address(9), None, address(8)].map(|address| teller.tell_of_node(address));
        assert_eq!(said, [false, true, false, false, false]);
    }
}
