//! Counters of a capture, for others to read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::crowding::{Bound, Remembered};

/// Counters of a running capture; may be read on any thread.
#[derive(Debug, Default)]
pub struct Counters {
    transactions: AtomicU64,
    failures: AtomicU64,
    table_failures: AtomicU64,
    repairs: AtomicU64,
    elements: AtomicU64,
    crowded: [AtomicU64; Bound::ALL.len()],
    remembered: [AtomicU64; Remembered::ALL.len()],
    bridge_netfilter: AtomicBool,
    failing: Mutex<Failing>,
}

/// The value of `remembered` if the number is unknown.
const UNKNOWN: u64 = u64::MAX;

/// The time since which every attempt has failed.
#[derive(Debug, Default)]
struct Failing {
    table: Option<Instant>,
    routing: Option<Instant>,
    /// The time of the last failure.
    last: Option<Instant>,
}

/// A kind of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Maintaining the table of nftables.
    Table,
    /// Maintaining policy rules and routes.
    Routing,
}

/// The values of the counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions of nftables that took effect.
    pub transactions: u64,
    /// Failed attempts to change or check nftables or routing.
    pub failures: u64,
    /// Those attempts that failed to bring the table of nftables in line.
    pub table_failures: u64,
    /// How often somebody else's change was undone.
    pub repairs: u64,
    /// Elements in the sets and maps of the table.
    pub elements: u64,
    /// Packets to endpoints in this node's network that were dropped because host_flows was full.
    pub host_flows_full: u64,
    /// The same, because a client made too many new connections and flows.
    pub fast_clients: u64,
    /// New connections of this node's processes for which node_flows had no room.
    pub node_flows_full: u64,
    /// Packets to endpoints on bridges for which answers had no room.
    pub answers_full: u64,
    /// Elements in host_flows, all added by packets; `None` if the kernel does not tell.
    pub host_flows: Option<u64>,
    /// The same for node_flows.
    pub node_flows: Option<u64>,
    /// The same for answers.
    pub answers: Option<u64>,
    /// Whether br_netfilter is on and cannot be switched off: pods on bridges cannot reach Services.
    pub bridge_netfilter: bool,
}

impl Counters {
    /// The current values.
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let crowded = |bound: Bound| self.crowded.get(bound as usize).map_or(0, read);
        let remembered =
            |set: Remembered| self.remembered.get(set as usize).map(read).filter(|number| *number != UNKNOWN);
        Stats {
            transactions: read(&self.transactions),
            failures: read(&self.failures),
            table_failures: read(&self.table_failures),
            repairs: read(&self.repairs),
            elements: read(&self.elements),
            host_flows_full: crowded(Bound::HostFlows),
            fast_clients: crowded(Bound::FastClient),
            node_flows_full: crowded(Bound::NodeFlows),
            answers_full: crowded(Bound::Answers),
            host_flows: remembered(Remembered::HostFlows),
            node_flows: remembered(Remembered::NodeFlows),
            answers: remembered(Remembered::Answers),
            bridge_netfilter: self.bridge_netfilter.load(Ordering::Relaxed),
        }
    }

    /// How long every attempt has failed, for the kind with the longest series; `None` if the last attempts
    /// succeeded.
    pub fn failing_for(&self) -> Option<Duration> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.table.into_iter().chain(failing.routing).min().map(|since| since.elapsed())
    }

    /// How long ago an attempt last failed; `None` if none has.
    pub fn last_failure(&self) -> Option<Duration> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.last.map(|last| last.elapsed())
    }

    pub(super) fn transaction(&self, elements: usize) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.elements(elements);
    }

    pub(super) fn elements(&self, elements: usize) {
        self.elements.store(elements as u64, Ordering::Relaxed);
    }

    pub(super) fn crowded(&self, bound: Bound, packets: u64) {
        let _ = self.crowded.get(bound as usize).map(|counter| counter.fetch_add(packets, Ordering::Relaxed));
    }

    pub(super) fn remembered(&self, set: Remembered, elements: Option<u64>) {
        let number = elements.unwrap_or(UNKNOWN);
        let _ = self.remembered.get(set as usize).map(|gauge| gauge.store(number, Ordering::Relaxed));
    }

    pub(super) fn bridge_netfilter(&self, is_on: bool) {
        self.bridge_netfilter.store(is_on, Ordering::Relaxed);
    }

    pub(super) fn failure(&self, part: Part) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if part == Part::Table {
            self.table_failures.fetch_add(1, Ordering::Relaxed);
        }
        self.note(part, |since| since.or_else(|| Some(Instant::now())));
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).last = Some(Instant::now());
    }

    pub(super) fn success(&self, part: Part) {
        self.note(part, |_| None);
    }

    fn note(&self, part: Part, change: impl FnOnce(Option<Instant>) -> Option<Instant>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match part {
            Part::Table => &mut failing.table,
            Part::Routing => &mut failing.routing,
        };
        *since = change(*since);
    }

    pub(super) fn repair(&self) {
        self.repairs.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_fails_from_its_first_failure_to_its_next_success() {
        let counters = Counters::default();
        assert_eq!((counters.failing_for(), counters.last_failure()), (None, None));
        counters.failure(Part::Table);
        assert!(counters.last_failure().is_some());
        let first = counters.failing.lock().unwrap().table;
        counters.failure(Part::Table);
        assert_eq!(counters.failing.lock().unwrap().table, first, "not since the second");
        counters.failure(Part::Routing);
        let since_first = first.unwrap().elapsed();
        assert!(counters.failing_for() >= Some(since_first), "the longest counts");
        counters.success(Part::Table);
        assert!(counters.failing_for().is_some(), "routing still fails");
        counters.success(Part::Routing);
        assert_eq!(counters.failing_for(), None);
        assert_eq!((counters.stats().failures, counters.stats().table_failures), (3, 2));
    }
}
