//! The connections of the agent's own HTTP ports: their bound, and which one is closed above it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// The connections of any number of listeners, bounded together. Clones share them.
///
/// Above the bound, the oldest connection of the client with the most is cut off for the newest. So a client
/// that asks and goes is answered however many connections others hold, and one with few can finish however
/// many others make.
#[derive(Debug, Clone)]
pub(crate) struct Connections(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    limit: usize,
    cut_off: AtomicU64,
    failed: AtomicU64,
    /// Accept errors that were logged, by their number; there are few.
    said: Mutex<BTreeSet<Option<i32>>>,
    /// The oldest first; some may have ended.
    open: Mutex<VecDeque<Open>>,
}

#[derive(Debug)]
struct Open {
    /// The client, if it has an address.
    peer: Option<IpAddr>,
    task: AbortHandle,
}

impl Connections {
    /// At most this many.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Pool {
            limit,
            cut_off: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            said: Mutex::default(),
            open: Mutex::default(),
        }))
    }

    /// How many were cut off for newer ones.
    pub(crate) fn cut_off(&self) -> u64 {
        self.0.cut_off.load(Ordering::Relaxed)
    }

    /// How many times a connection could not be accepted.
    pub(crate) fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// Counts a failed accept; returns whether it is the first with this error.
    pub(super) fn note_failure(&self, error: &io::Error) -> bool {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner).insert(error.raw_os_error())
    }

    pub(super) fn admit(&self, peer: Option<IpAddr>, task: AbortHandle) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|connection| !connection.task.is_finished());
        open.push_back(Open { peer, task });
        let peers: Vec<_> = open.iter().map(|connection| connection.peer).collect();
        if open.len() > self.0.limit
            && let Some(connection) = oldest_of_most(&peers).and_then(|place| open.remove(place))
        {
            connection.task.abort();
            self.0.cut_off.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many have not ended.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.0.open.lock().unwrap().iter().filter(|connection| !connection.task.is_finished()).count()
    }
}

/// The oldest connection of the client with the most; among several such clients, of the one that comes first.
fn oldest_of_most(peers: &[Option<IpAddr>]) -> Option<usize> {
    let mut counts: BTreeMap<Option<IpAddr>, usize> = BTreeMap::new();
    for peer in peers {
        *counts.entry(*peer).or_default() += 1;
    }
    let most = counts.values().max()?;
    peers.iter().position(|peer| counts.get(peer) == Some(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_that_fail_are_counted_and_each_error_is_news_once() {
        let connections = Connections::new(1);
        let shared = connections.clone();
        let [no_descriptors, aborted] = [24, 103].map(io::Error::from_raw_os_error);
        assert!(connections.note_failure(&no_descriptors));
        assert!(!shared.note_failure(&no_descriptors));
        assert!(shared.note_failure(&aborted));
        assert_eq!(connections.failed(), 3);
    }

    #[test]
    fn the_oldest_goes_of_whoever_has_the_most() {
        let peer = |name: char| (name != '-').then(|| IpAddr::from([192, 0, 2, name as u8]));
        for (peers, wanted) in [
            ("", None),
            ("a", Some(0)),
            ("abc", Some(0)),
            ("abb", Some(1)),
            ("abab", Some(0)),
            ("abcbaa", Some(0)),
            ("cabab", Some(1)),
            ("---", Some(0)),
        ] {
            let peers: Vec<_> = peers.chars().map(peer).collect();
            assert_eq!(oldest_of_most(&peers), wanted, "{peers:?}");
        }
    }
}
