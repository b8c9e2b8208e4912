//! Which endpoint to try next, and for how long. Pure: the session owns the sockets.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sluice_table::{Heard, Lease, Selection, Upstream};

use crate::failure;

/// How long an attempt may take before the next endpoint is tried; the first that times out gets the
/// first value. After the last one the client is reset (kube-proxy's user-space mode had the same
/// steps: `EndpointDialTimeouts`).
const TIMEOUTS: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The endpoint refused, or cannot be reached: the next one is tried at once.
    Refused,
    /// No answer in time. The endpoint may be slow or the packet lost, so it gets another chance when
    /// no other endpoint is left.
    TimedOut,
    /// This node is out of something, or forbids it: no endpoint is to blame.
    OfThisNode,
}

impl Failure {
    /// What it means that an attempt could not be started.
    pub(crate) fn to_start(error: &io::Error) -> Self {
        if failure::is_of_this_node(error) { Self::OfThisNode } else { Self::reported(error) }
    }

    /// What it means that an attempt under way failed (`SO_ERROR`): somebody else has said so.
    pub(crate) fn reported(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::TIMEDOUT) => Self::TimedOut,
            _ => Self::Refused,
        }
    }
}

/// The attempts of one connection: every endpoint that is selected once, then those that only timed out again, until
/// one connects or the time is used up.
#[derive(Debug)]
pub(crate) struct Attempts {
    selection: Selection,
    timed_out: VecDeque<Arc<Upstream>>,
    timeouts: usize,
    has_failed: bool,
}

impl Attempts {
    pub(crate) fn new(selection: Selection) -> Self {
        Self { selection, timed_out: VecDeque::new(), timeouts: 0, has_failed: false }
    }

    /// Whether an attempt has failed, so that the next one is a retry.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The next endpoint and how long to wait for it; none when all that could be done was.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Arc<Upstream>, Duration)> {
        let timeout = *TIMEOUTS.get(self.timeouts)?;
        let upstream = self.selection.next(now).or_else(|| self.timed_out.pop_front())?;
        Some((upstream, timeout))
    }

    /// Notes that an attempt has led to a connection.
    pub(crate) fn connected(&mut self, upstream: &Arc<Upstream>, now: Instant) -> Lease {
        self.selection.connected(upstream, now)
    }

    /// Notes that an attempt failed.
    pub(crate) fn fail(&mut self, upstream: &Arc<Upstream>, failure: Failure, now: Instant) {
        let heard = if failure == Failure::TimedOut { Heard::Nothing } else { Heard::Refusal };
        self.selection.fail(upstream, heard, now);
        self.has_failed = true;
        if failure == Failure::TimedOut {
            self.timeouts += 1;
            self.timed_out.push_back(Arc::clone(upstream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_table;

    /// The last octet of the next endpoint, and the time it gets in milliseconds.
    fn next(attempts: &mut Attempts) -> Option<(Arc<Upstream>, u8, u128)> {
        let (upstream, timeout) = attempts.next(Instant::now())?;
        let std::net::IpAddr::V4(ip) = upstream.address().ip() else { panic!("only IPv4 here") };
        Some((upstream, ip.octets()[3], timeout.as_millis()))
    }

    /// Lets every attempt fail in the given way and lists them.
    fn run(endpoints: u8, failure: impl Fn(u8) -> Failure) -> Vec<(u8, u128)> {
        let mut attempts = Attempts::new(test_table::selection(endpoints));
        let mut seen = Vec::new();
        while let Some((upstream, n, timeout)) = next(&mut attempts) {
            seen.push((n, timeout));
            attempts.fail(&upstream, failure(n), Instant::now());
        }
        seen
    }

    #[test]
    fn a_single_endpoint_is_tried_again_with_growing_patience() {
        assert_eq!(run(1, |_| Failure::TimedOut), [(1, 250), (1, 500), (1, 1_000), (1, 2_000)]);
    }

    #[test]
    fn each_timeout_moves_to_another_endpoint() {
        assert_eq!(run(3, |_| Failure::TimedOut), [(1, 250), (2, 500), (3, 1_000), (1, 2_000)]);
    }

    #[test]
    fn refusals_cost_no_patience_and_four_endpoints_are_asked_once_at_most() {
        let attempts = run(6, |_| Failure::Refused);
        assert_eq!(attempts, [(1, 250), (2, 250), (3, 250), (4, 250)]);
    }

    #[test]
    fn an_endpoint_that_refused_is_not_asked_again_but_one_that_was_slow_is() {
        let failure = |n| if n == 2 { Failure::TimedOut } else { Failure::Refused };
        assert_eq!(run(3, failure), [(1, 250), (2, 250), (3, 500), (2, 500), (2, 1_000), (2, 2_000)]);
    }

    #[test]
    fn errors_are_told_apart() {
        let both = |errno: Errno| (Failure::to_start(&errno.into()), Failure::reported(&errno.into()));
        assert_eq!(both(Errno::CONNREFUSED), (Failure::Refused, Failure::Refused));
        assert_eq!(both(Errno::HOSTUNREACH), (Failure::Refused, Failure::Refused));
        assert_eq!(both(Errno::TIMEDOUT), (Failure::TimedOut, Failure::TimedOut));
        assert_eq!(both(Errno::MFILE), (Failure::OfThisNode, Failure::Refused));
        // A route that prohibits, and a firewall on the way.
        assert_eq!(both(Errno::ACCESS), (Failure::OfThisNode, Failure::Refused));
    }
}
