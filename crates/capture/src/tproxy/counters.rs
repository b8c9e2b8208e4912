//! What a capture has done so far, for others to read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a running capture; may be read on any thread.
#[derive(Debug, Default)]
pub struct Counters {
    transactions: AtomicU64,
    failures: AtomicU64,
    repairs: AtomicU64,
    elements: AtomicU64,
}

/// What they say at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions of nftables that took effect.
    pub transactions: u64,
    /// Attempts to change or to look at nftables or routing that failed.
    pub failures: u64,
    /// Times that somebody else's change was undone.
    pub repairs: u64,
    /// Elements in the sets and maps of the table.
    pub elements: u64,
}

impl Counters {
    /// What they say now.
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            transactions: read(&self.transactions),
            failures: read(&self.failures),
            repairs: read(&self.repairs),
            elements: read(&self.elements),
        }
    }

    pub(super) fn transaction(&self, elements: usize) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.elements(elements);
    }

    pub(super) fn elements(&self, elements: usize) {
        self.elements.store(elements as u64, Ordering::Relaxed);
    }

    pub(super) fn failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn repair(&self) {
        self.repairs.fetch_add(1, Ordering::Relaxed);
    }
}
