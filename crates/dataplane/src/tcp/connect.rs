//! Which endpoint to try next, and for how long. Pure: the session owns the sockets.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sluice_table::{Heard, Lease, Selection, Upstream};

use crate::failure;

/// How long the first attempt may take before another endpoint is tried. Each attempt that times out doubles
/// it (kube-proxy's userspace mode had the same steps: `EndpointDialTimeouts`).
pub(super) const FIRST_TIMEOUT: Duration = Duration::from_millis(250);

/// An attempt may take at least this many times as long as the endpoint's last connect: the endpoint may be
/// on another continent, or behind a satellite link.
const OF_CONNECT_TIME: u32 = 2;

/// How long all attempts together may take: as long as the kernel retransmits a SYN
/// (`net.ipv4.tcp_syn_retries` of 6, tcp(7)), and so as long as a client waits for an endpoint that
/// kube-proxy has chosen. A full accept queue, or a policy that is applied late, must not become a reset.
const PATIENCE: Duration = Duration::from_secs(127);

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The endpoint refused, or is unreachable. The next endpoint is tried at once.
    Refused,
    /// No answer in time. The endpoint may be slow or the packet lost, so it gets another chance if no other
    /// endpoint is left.
    TimedOut,
    /// This node has no route to the endpoint, which was not contacted. It does not count against the
    /// endpoint.
    NoRoute,
    /// This node has no port left towards this endpoint. It does not count against the endpoint, and other
    /// endpoints may work.
    NoPort,
    /// Known from a moment ago to be [`Self::NoPort`], so nothing was tried.
    KnownNoPort,
    /// The client has used up its share of the ports towards this endpoint. It does not count against the
    /// endpoint, and other endpoints may work.
    OverPortShare,
    /// This node lacks a resource, or its rules reject the connection. No endpoint is to blame.
    OfThisNode,
}

impl Failure {
    /// Whether the cause is a resource that this node lacks, or its rules.
    pub(crate) fn is_ours(self) -> bool {
        !matches!(self, Self::Refused | Self::TimedOut | Self::NoRoute)
    }

    /// The failure that an error at the start of an attempt stands for.
    pub(crate) fn to_start(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => Self::NoPort,
            _ if failure::is_of_this_node(error) => Self::OfThisNode,
            _ if failure::is_about_the_route(error) => Self::NoRoute,
            _ => Self::reported(error),
        }
    }

    /// The failure that an error of a started attempt (`SO_ERROR`) stands for: it comes from the network.
    pub(crate) fn reported(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::TIMEDOUT) => Self::TimedOut,
            _ => Self::Refused,
        }
    }
}

/// What to do with an attempt that is overdue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// There is no other endpoint: the kernel keeps trying this one. Check again after this time.
    Wait(Duration),
    /// Try another endpoint.
    Move,
    /// The time for all attempts is used up.
    GiveUp,
}

/// The attempts of one connection: first the endpoints that the selection returns, then in turn those that
/// only timed out, with growing timeouts, until one connects or the time is used up.
#[derive(Debug)]
pub(crate) struct Attempts {
    selection: Selection,
    /// The endpoint to try next, already taken from the selection.
    upcoming: Option<Arc<Upstream>>,
    timed_out: VecDeque<Arc<Upstream>>,
    /// The current attempt was overdue once, and that was counted against its endpoint.
    is_overdue: bool,
    timeout: Duration,
    /// When the current attempt began.
    asked: Instant,
    give_up: Instant,
    has_failed: bool,
}

impl Attempts {
    pub(crate) fn new(selection: Selection, now: Instant) -> Self {
        Self {
            selection,
            upcoming: None,
            timed_out: VecDeque::new(),
            is_overdue: false,
            timeout: FIRST_TIMEOUT,
            asked: now,
            give_up: now + PATIENCE,
            has_failed: false,
        }
    }

    /// Whether an attempt has failed, so that the next one is a retry.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The next endpoint, and how long to wait before calling [`overdue`](Self::overdue); `None` if there is
    /// nothing left to try or the time is used up.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Arc<Upstream>, Duration)> {
        if now >= self.give_up {
            return None;
        }
        let upstream = self.upcoming.take().or_else(|| self.another(now))?;
        (self.is_overdue, self.asked) = (false, now);
        let timeout = self.timeout.max(upstream.connect_time() * OF_CONNECT_TIME);
        Some((upstream, timeout))
    }

    fn another(&mut self, now: Instant) -> Option<Arc<Upstream>> {
        self.selection.next(now).or_else(|| self.timed_out.pop_front())
    }

    /// Notes that the current attempt is overdue.
    pub(crate) fn overdue(&mut self, upstream: &Arc<Upstream>, now: Instant) -> Overdue {
        if !std::mem::replace(&mut self.is_overdue, true) {
            self.selection.fail(upstream, Heard::Nothing, now);
        }
        self.timeout = self.timeout.saturating_mul(2);
        if now >= self.give_up {
            return Overdue::GiveUp;
        }
        self.upcoming = self.another(now);
        if self.upcoming.is_none() {
            return Overdue::Wait(self.timeout.min(self.give_up.saturating_duration_since(now)));
        }
        self.has_failed = true;
        self.timed_out.push_back(Arc::clone(upstream));
        Overdue::Move
    }

    /// Notes that an attempt has led to a connection.
    ///
    /// If it took longer than the first timeout, other endpoints that timed out may be as far away, and are
    /// given the same time at the next connection. Otherwise nobody would ever find out, because each time
    /// they would be given too little time, and before this endpoint, whose time is known by then.
    pub(crate) fn connected(&mut self, upstream: &Arc<Upstream>, now: Instant) -> Lease {
        let took = now.saturating_duration_since(self.asked);
        upstream.note_connect_time(took);
        if took > FIRST_TIMEOUT {
            let others = self.timed_out.iter().filter(|other| other.connect_time() < took);
            others.for_each(|other| other.note_connect_time(took));
        }
        self.selection.connected(upstream, now)
    }

    /// Notes that an attempt failed.
    pub(crate) fn fail(&mut self, upstream: &Arc<Upstream>, failure: Failure, now: Instant) {
        self.has_failed = true;
        match failure {
            Failure::NoPort | Failure::OfThisNode => self.selection.skip(upstream),
            Failure::NoRoute => self.selection.no_route(upstream, now),
            Failure::KnownNoPort | Failure::OverPortShare => self.selection.pass_by(upstream),
            Failure::Refused => self.selection.fail(upstream, Heard::Refusal, now),
            Failure::TimedOut => {
                self.selection.fail(upstream, Heard::Nothing, now);
                self.timed_out.push_back(Arc::clone(upstream));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_table;

    /// How an endpoint behaves in a test.
    #[derive(Clone, Copy, PartialEq)]
    enum Does {
        Refuse,
        NothingAtAll,
        /// Answers after this many milliseconds.
        Answer(u64),
    }

    /// Runs every attempt as `does` says for the endpoint's number. Lists the endpoints that were tried and
    /// each one's timeout in milliseconds.
    fn run(endpoints: u8, does: impl Fn(u8) -> Does) -> Vec<(u8, u128)> {
        run_with(test_table::selection(endpoints), does)
    }

    fn run_with(selection: Selection, does: impl Fn(u8) -> Does) -> Vec<(u8, u128)> {
        let mut now = Instant::now();
        let mut attempts = Attempts::new(selection, now);
        let mut seen = Vec::new();
        while let Some((upstream, mut timeout)) = attempts.next(now) {
            let std::net::IpAddr::V4(ip) = upstream.address().ip() else { panic!("only IPv4 here") };
            let number = ip.octets()[3];
            if does(number) == Does::Refuse {
                seen.push((number, 0));
                attempts.fail(&upstream, Failure::Refused, now);
                continue;
            }
            let began = now;
            loop {
                if let Does::Answer(after) = does(number)
                    && now + timeout >= began + Duration::from_millis(after)
                {
                    now = began + Duration::from_millis(after);
                    drop(attempts.connected(&upstream, now));
                    seen.push((number, after.into()));
                    return seen;
                }
                now += timeout;
                match attempts.overdue(&upstream, now) {
                    Overdue::Wait(longer) => timeout = longer,
                    Overdue::Move | Overdue::GiveUp => break,
                }
            }
            seen.push((number, (now - began).as_millis()));
        }
        seen
    }

    #[test]
    fn a_single_endpoint_is_waited_for_as_long_as_the_kernel_asks_it() {
        assert_eq!(run(1, |_| Does::NothingAtAll), [(1, 127_000)]);
    }

    #[test]
    fn each_timeout_moves_to_another_endpoint_and_all_are_asked_again_until_patience_ends() {
        let seen = run(3, |_| Does::NothingAtAll);
        assert_eq!(seen[..6], [(1, 250), (2, 500), (3, 1_000), (1, 2_000), (2, 4_000), (3, 8_000)]);
        let total: u128 = seen.iter().map(|(_, took)| took).sum();
        assert!((127_000..254_000).contains(&total), "{total}");
    }

    #[test]
    fn endpoints_that_are_far_are_waited_for_once_that_is_known() {
        let mut select = test_table::selections(3);
        let mut run = |does: fn(u8) -> Does| run_with(select(), does);
        let far = |n| Does::Answer(300 + u64::from(n));
        assert_eq!(run(far), [(1, 250), (2, 302)]);
        // The third endpoint was not tried yet. The first time that it comes first it times out, and is then
        // given the connect time of the one that answers.
        let more: Vec<_> = (0..8).map(|_| run(far)).collect();
        assert_eq!(more.iter().filter(|asked| asked.len() > 1).count(), 1, "{more:?}");
        assert_eq!(more[5..], [[(3, 303)], [(1, 301)], [(2, 302)]]);
        // If that one does not answer, it has twice its connect time, but no more than that the next time.
        let silent = |n| if n == 1 { Does::NothingAtAll } else { Does::Answer(300) };
        for _ in 0..2 {
            assert_eq!(run(silent), [(3, 300)]);
            assert_eq!(run(silent), [(1, 602), (2, 300)]);
        }
    }

    #[test]
    fn an_endpoint_that_is_near_again_is_known_as_such() {
        let mut select = test_table::selections(2);
        let mut run = |does: fn(u8) -> Does| run_with(select(), does);
        for took in [240, 20] {
            for n in [1, 2] {
                assert_eq!(
                    run(if took == 20 { |_| Does::Answer(20) } else { |_| Does::Answer(240) }),
                    [(n, took)]
                );
            }
        }
        assert_eq!(run(|n| if n == 1 { Does::NothingAtAll } else { Does::Answer(20) }), [(1, 250), (2, 20)]);
    }

    #[test]
    fn refusals_cost_no_patience_and_four_endpoints_are_asked_once_at_most() {
        assert_eq!(run(6, |_| Does::Refuse), [(1, 0), (2, 0), (3, 0), (4, 0)]);
    }

    #[test]
    fn an_endpoint_that_refused_is_not_asked_again_and_the_slow_one_gets_all_the_patience() {
        let does = |n| if n == 2 { Does::NothingAtAll } else { Does::Refuse };
        // 250 ms before the third one is tried, which refuses.
        assert_eq!(run(3, does), [(1, 0), (2, 250), (3, 0), (2, 126_750)]);
    }

    #[test]
    fn a_node_without_a_port_or_a_route_towards_one_endpoint_asks_another_and_blames_none() {
        for failure in [Failure::NoPort, Failure::NoRoute] {
            let now = Instant::now();
            let mut attempts = Attempts::new(test_table::selection(2), now);
            let (first, _) = attempts.next(now).unwrap();
            attempts.fail(&first, failure, now);
            let (second, _) = attempts.next(now).unwrap();
            assert_ne!(first.address(), second.address());
            assert_eq!(first.failures_in_a_row(sluice_table::SourceAddress::Node), 0);
            attempts.fail(&second, failure, now);
            assert!(attempts.next(now).is_none());
        }
    }

    #[test]
    fn endpoints_without_a_route_cost_a_few_connections_four_tries_each_and_none_after_that() {
        let now = Instant::now();
        let mut select = test_table::selections(21);
        // How many endpoints without a route were tried, and whether one with a route was tried.
        let mut connect = |good: u8| {
            let mut attempts = Attempts::new(select(), now);
            let mut without = 0;
            while let Some((upstream, _)) = attempts.next(now) {
                if upstream.address() == ([10, 0, 0, good], 8080).into() {
                    drop(attempts.connected(&upstream, now));
                    return (without, true);
                }
                attempts.fail(&upstream, Failure::NoRoute, now);
                without += 1;
            }
            (without, false)
        };
        let first: Vec<_> = (0..6).map(|_| connect(21)).collect();
        assert!(first.iter().all(|(without, _)| *without <= 4), "{first:?}");
        assert_eq!(first.iter().map(|(without, _)| without).sum::<usize>(), 20, "each once: {first:?}");
        assert!(first[5].1, "{first:?}");
        assert_eq!([(); 50].map(|()| connect(21)), [(0, true); 50]);
        // Then the last route goes too; the connection that finds that out tries one more.
        assert_eq!(connect(0), (2, false));
        assert_eq!([(); 50].map(|()| connect(0)), [(1, false); 50]);
        // One endpoint has a route again.
        assert!((0..1_000).any(|_| connect(7).1));
        assert_eq!([(); 50].map(|()| connect(7)), [(0, true); 50]);
    }

    #[test]
    fn errors_are_told_apart() {
        let both = |errno: Errno| (Failure::to_start(&errno.into()), Failure::reported(&errno.into()));
        assert_eq!(both(Errno::CONNREFUSED), (Failure::Refused, Failure::Refused));
        // This node's own routes, and a router on the path.
        assert_eq!(both(Errno::HOSTUNREACH), (Failure::NoRoute, Failure::Refused));
        assert_eq!(both(Errno::NETUNREACH), (Failure::NoRoute, Failure::Refused));
        assert_eq!(both(Errno::TIMEDOUT), (Failure::TimedOut, Failure::TimedOut));
        assert_eq!(both(Errno::MFILE), (Failure::OfThisNode, Failure::Refused));
        assert_eq!(both(Errno::ADDRNOTAVAIL), (Failure::NoPort, Failure::Refused));
        // A prohibit route, and a firewall on the path.
        assert_eq!(both(Errno::ACCESS), (Failure::OfThisNode, Failure::Refused));
    }
}
