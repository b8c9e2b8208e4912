//! Finds an unverified endpoint of a large set in socket mode without checking each endpoint for each
//! connection.
//!
//! BPF programs mark endpoints as unverified and notify nobody, so the table has to search. A search
//! remembers a few endpoints that it found, and later calls check those first. A search that found none is
//! not repeated for a while, in proportion to the size of the set. So vain searches take about a thousandth
//! of a worker's time, however many connections there are that have nothing to do with an unverified
//! endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The largest set that is searched each time: some hundred nanoseconds.
pub(crate) const SMALL: usize = 64;

/// How many endpoints of a set are remembered.
const REMEMBERED: usize = 8;

/// The pause after a vain search, for each endpoint of the set. Checking one takes some ten nanoseconds.
const PAUSE: Duration = Duration::from_micros(10);

/// The unverified endpoints that were found in a set, by their indices. A change of the set moves them, so
/// callers check them again.
#[derive(Debug)]
pub(crate) struct DoubtSearch {
    /// Indices plus 1; 0 means none.
    remembered: [AtomicU32; REMEMBERED],
    /// Where the next search begins: behind the last one that is remembered.
    next: AtomicUsize,
    began: Instant,
    /// When the set may be searched again, in nanoseconds since `began`.
    again: AtomicU64,
}

impl DoubtSearch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            remembered: Default::default(),
            next: AtomicUsize::new(0),
            began: now,
            again: AtomicU64::new(0),
        }
    }

    /// Returns an index below `len` for which `is_it` holds; if there are several, another one for each
    /// `turn`. May return `None` although there is one.
    pub(crate) fn find(
        &self,
        len: usize,
        turn: u64,
        now: Instant,
        is_it: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = usize::try_from(turn % REMEMBERED as u64).unwrap_or(0);
        let (before, after) = self.remembered.split_at_checked(first)?;
        for slot in after.iter().chain(before) {
            let entry = slot.load(Ordering::Relaxed);
            let place = usize::try_from(entry).ok().and_then(|entry| entry.checked_sub(1));
            let Some(place) = place else { continue };
            if place < len && is_it(place) {
                return Some(place);
            }
            // Fails if another worker has stored another one there.
            let _ = slot.compare_exchange(entry, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.look_through(len, now, is_it)
    }

    #[inline(never)]
    fn look_through(&self, len: usize, now: Instant, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let elapsed = nanoseconds(now.saturating_duration_since(self.began));
        let again = self.again.load(Ordering::Relaxed);
        if elapsed < again {
            return None;
        }
        // Only the first worker searches, not those that come meanwhile.
        let pause = PAUSE.saturating_mul(u32::try_from(len).unwrap_or(u32::MAX));
        let next = elapsed.saturating_add(nanoseconds(pause));
        self.again.compare_exchange(again, next, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        let from = self.next.load(Ordering::Relaxed).min(len);
        let mut found = (from..len).chain(0..from).filter(|place| is_it(*place));
        let mut first = None;
        for (slot, place) in self.remembered.iter().zip(&mut found) {
            first.get_or_insert(place);
            slot.store(u32::try_from(place + 1).unwrap_or(0), Ordering::Relaxed);
            self.next.store(place + 1, Ordering::Relaxed);
        }
        if first.is_some() {
            // There may be more than fit into `remembered`.
            self.again.store(0, Ordering::Relaxed);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::sync::{Arc, Mutex};

    use sluice_model::{Family, FrontendKind, Protocol, ServicePortName};

    use super::*;
    use crate::affinity::Budget;
    use crate::backends::{Facts, PortRules};
    use crate::socket_health::tests::Doubts;
    use crate::upstream::tests::test_port;
    use crate::{Client, Origin, Selection, ServicePort, SetName, SharedHealth, SocketNumber, Upstream};

    const LEN: usize = 1_000;

    /// Unverified endpoints, and the number of checks.
    struct Set {
        search: DoubtSearch,
        doubts: RefCell<BTreeSet<usize>>,
        looks: Cell<usize>,
        now: Instant,
    }

    impl Set {
        fn new(doubts: impl IntoIterator<Item = usize>) -> Self {
            let (now, looks) = (Instant::now(), Cell::new(0));
            let doubts = RefCell::new(doubts.into_iter().collect());
            Self { search: DoubtSearch::new(now), doubts, looks, now }
        }

        /// The result, and the number of checks that it took.
        fn find(&self, turn: u64) -> (Option<usize>, usize) {
            self.looks.set(0);
            let found = self.search.find(LEN, turn, self.now, |place| {
                self.looks.set(self.looks.get() + 1);
                self.doubts.borrow().contains(&place)
            });
            (found, self.looks.get())
        }
    }

    #[test]
    fn connections_to_many_endpoints_are_led_to_those_in_doubt_first() {
        let name = ServicePortName { protocol: Protocol::Tcp, ..test_port().as_ref().clone() };
        let port = Arc::new(ServicePort::new(name, Family::V4, Budget::new(1)));
        let upstreams: Vec<_> = (0..200)
            .map(|id: u32| {
                let address = (Ipv4Addr::from(0x0af4_0000 + id), 80).into();
                Arc::new(Upstream::new(address, Arc::clone(port.shared_name())))
            })
            .collect();
        port.publish(upstreams.clone(), Vec::new(), Facts::default(), PortRules::default());
        let health: SharedHealth = Arc::new(Box::new(Doubts(Mutex::new((0..200).step_by(10).collect()))));
        port.share_health(&health);
        for (id, upstream) in (0..).zip(&upstreams) {
            upstream.set_socket_number(SetName::Cluster, Some(SocketNumber { id, incarnation: 1 }));
        }
        let now = Instant::now();
        let client = Client { ip: [10, 244, 1, 1].into(), origin: Origin::LocalPod };
        let connect = || {
            let mut selection = Selection::new(&port, FrontendKind::ClusterIp, client, None, now).unwrap();
            let upstream = selection.next(now).unwrap();
            drop(selection.connected(&upstream, now));
            upstreams.iter().position(|other| Arc::ptr_eq(other, &upstream)).unwrap()
        };
        let first: BTreeSet<usize> = (0..20).map(|_| connect()).collect();
        assert_eq!(first, (0..200).step_by(10).collect());
        let then: BTreeSet<usize> = (0..200).map(|_| connect()).collect();
        assert_eq!(then.len(), 200, "one after the other");
    }

    #[test]
    fn a_set_without_doubts_is_looked_through_now_and_then() {
        let mut set = Set::new([]);
        assert_eq!(set.find(7), (None, LEN));
        assert!((0..100).all(|turn| set.find(turn) == (None, 0)));
        set.now += Duration::from_millis(10);
        assert_eq!((set.find(7), set.find(7)), ((None, LEN), (None, 0)));
        set.doubts.borrow_mut().insert(500);
        set.now += Duration::from_millis(10);
        assert_eq!(set.find(7), (Some(500), LEN));
    }

    #[test]
    fn one_that_stays_in_doubt_is_found_at_a_look() {
        let set = Set::new([500]);
        assert_eq!(set.find(0), (Some(500), LEN));
        assert!((0..100).all(|turn| set.find(turn) == (Some(500), 1)));
        set.doubts.borrow_mut().clear();
        assert_eq!(set.find(0), (None, 1 + LEN));
        assert_eq!(set.find(0), (None, 0));
    }

    #[test]
    fn all_are_found_by_those_who_end_their_doubts() {
        let set = Set::new((0..100).map(|n| n * 10));
        let mut looks = 0;
        for turn in 0..100 {
            let (found, more) = set.find(turn);
            assert!(set.doubts.borrow_mut().remove(&found.expect("one is left")));
            looks += more;
        }
        assert!(set.doubts.borrow().is_empty());
        // One pass over the set to find them, and one for the last few, which are fewer than are remembered.
        assert!(looks < 3 * LEN, "{looks}");
    }

    #[test]
    fn a_smaller_set_has_no_places_beyond_its_end() {
        let set = Set::new([500]);
        assert_eq!(set.find(0).0, Some(500));
        assert_eq!(set.search.find(100, 900, set.now, |place| place >= 100), None);
        let set = Set::new([500]);
        assert_eq!(set.search.find(0, 3, set.now, |_| true), None);
    }
}
