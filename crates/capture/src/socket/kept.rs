//! The clients that the programs lead: their number, per Service and in total, and updates of one client.
//!
//! A Service may have as many clients as there is room left for all others. A Service that is flooded leaves
//! half of the room, a second one a quarter, and so there is always some for the next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_socket_maps::{AffinityKey, SetClients, SharedClients};
use sluice_table::{Client, Follower, Led, Origin, SetName, SocketNumber, Upstream};

/// The clients that the programs know, of all service ports.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) known: SharedClients,
    room: usize,
    /// The number of clients.
    count: AtomicUsize,
    /// Whether they now belong to another agent.
    is_over: AtomicBool,
    /// How often there was no room.
    refused: AtomicU64,
}

/// How many of the clients are a Service's.
#[derive(Debug, Default)]
pub(super) struct Share(AtomicUsize);

/// The clients of one set of a service port, as long as the set has the same id.
#[derive(Debug)]
pub(super) struct OfSet {
    number: u32,
    clients: Arc<Clients>,
    share: Arc<Share>,
    count: AtomicUsize,
    /// Whether nobody is looked up by this id any more.
    is_over: AtomicBool,
}

/// The sets of a service port with session affinity, and whose clients the programs lead there: `Cluster`, `Local`.
pub(super) type Sets = [Option<(Arc<OfSet>, SetClients)>; 2];

/// The names in the order of [`Sets`].
pub(super) const NAMES: [SetName; 2] = [SetName::Cluster, SetName::Local];

/// Leads the clients of a service port.
#[derive(Debug)]
pub(super) struct OfPort(pub(super) Sets);

impl Clients {
    pub(super) fn new(known: SharedClients) -> Self {
        Self {
            room: known.room(),
            known,
            count: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }

    /// The number of clients, and the maximum.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.count.load(Ordering::Relaxed), self.room)
    }

    /// How often a client was left to the relay for lack of room.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Notes that the clients belong to another agent from now on.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl OfSet {
    pub(super) fn new(number: u32, clients: &Arc<Clients>, share: Arc<Share>) -> Self {
        let (count, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { number, clients: Arc::clone(clients), share, count, is_over }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Notes that nobody will be looked up by this id. Known clients are not forgotten by that.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// Together with a worker that first counts a client and then checks whether the set is over: one of the two
    /// always sees the other.
    pub(super) fn has_clients(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Whether nobody maintains these entries any more.
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst) || self.clients.is_over.load(Ordering::Relaxed)
    }

    fn key(&self, client: IpAddr) -> AffinityKey {
        AffinityKey::new(client, self.number)
    }

    /// Whether there is room for one more. Concurrent callers may all get it: the kernel has a limit of its own.
    fn has_room(&self) -> bool {
        let (count, room) = self.clients.count();
        self.share.0.load(Ordering::Relaxed) < room.saturating_sub(count)
    }

    fn note_new(&self) {
        // The set's count comes last: whatever is subtracted from it is subtracted from the others as well.
        for count in [&self.share.0, &self.clients.count, &self.count] {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Subtracts clients that were counted here.
    fn note_gone(&self, count: usize) {
        let less = |known: usize| Some(known.saturating_sub(count));
        let known = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or_default();
        let gone = known.min(count);
        for count in [&self.share.0, &self.clients.count] {
            count.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    /// Makes the programs lead a client to an endpoint; returns whether they do.
    fn keep(&self, client: IpAddr, to: SocketNumber, was_led: bool) -> bool {
        if self.is_over() {
            return false;
        }
        let key = self.key(client);
        if !was_led && !self.has_room() {
            self.clients.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if self.clients.known.keep(key, to).is_err() {
            self.clients.refused.fetch_add(1, Ordering::Relaxed);
            if was_led {
                self.remove(key);
            }
            return false;
        }
        if !was_led {
            self.note_new();
        }
        // The clean-up of ended sets may have passed already.
        let is_over = self.is_over();
        if is_over {
            self.remove(key);
        }
        !is_over
    }

    /// Stops leading a client. If the whole set is being forgotten, the clean-up does it.
    fn forget(&self, client: IpAddr) {
        if !self.is_over() {
            self.remove(self.key(client));
        }
    }

    /// Removes a client, if it exists.
    pub(super) fn remove(&self, key: AffinityKey) {
        // The kernel deletes any entry.
        if self.clients.known.forget(key).is_ok_and(|was_known| was_known) {
            self.note_gone(1);
        }
    }

    /// Sets the count to zero: somebody else may have emptied the map.
    pub(super) fn write_off(&self) {
        self.note_gone(usize::MAX);
    }
}

impl OfPort {
    fn set(&self, name: SetName) -> Option<&(Arc<OfSet>, SetClients)> {
        let [cluster, local] = &self.0;
        match name {
            SetName::Cluster => cluster.as_ref(),
            SetName::Local => local.as_ref(),
        }
    }

    /// The sets in which a client is led.
    fn sets(&self, led: Led) -> impl Iterator<Item = &OfSet> {
        let is_led = move |name: &SetName| led.is_in(*name);
        NAMES.into_iter().filter(is_led).filter_map(|name| self.set(name)).map(|(set, _)| &**set)
    }
}

impl Follower for OfPort {
    fn follow(&self, client: Client, upstream: &Upstream, led: Led) -> Led {
        let mut is_led = Led::NOWHERE;
        for name in NAMES {
            let Some((set, whom)) = self.set(name) else { continue };
            let to = upstream.socket_number(name).filter(|_| may_be_led(client, *whom));
            match to {
                Some(to) if set.keep(client.ip, to, led.is_in(name)) => is_led = is_led.and_in(name),
                Some(_) => {}
                // The client is only in the other set.
                None if led.is_in(name) => set.forget(client.ip),
                None => {}
            }
        }
        is_led
    }

    fn adopt(&self, name: SetName) {
        if let Some((set, _)) = self.set(name) {
            set.note_new();
        }
    }

    fn forget(&self, client: IpAddr, led: Led) {
        self.sets(led).for_each(|set| set.forget(client));
    }

    fn idle(&self, client: IpAddr, led: Led) -> Option<Duration> {
        let sets = self.sets(led).filter(|set| !set.is_over());
        sets.filter_map(|set| set.clients.known.idle(set.key(client))).min()
    }
}

/// Whether the programs would lead this client if they knew it.
fn may_be_led(client: Client, whom: SetClients) -> bool {
    match client.origin {
        Origin::Node => whom.of_node && !is_bound(client.ip),
        Origin::LocalPod => whom.of_pods,
        Origin::Outside => false,
    }
}

/// Whether a process of the node has this address only if it was bound to it, in which case the programs leave
/// it alone. There are millions of loopback addresses, of which the kernel chooses one; a node has few others.
fn is_bound(ip: IpAddr) -> bool {
    ip.is_loopback() && ![IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&ip)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::OnceLock;

    use sluice_socket_maps::{Capacity, Kept, KeptClients, KeptPart, Kernel, Memory};

    use super::*;

    /// The set ends while a worker reports a client, and has been cleaned up.
    #[derive(Debug)]
    struct Late {
        known: SharedClients,
        set: Arc<OnceLock<Arc<OfSet>>>,
    }

    impl KeptClients for Late {
        fn room(&self) -> usize {
            self.known.room()
        }
        fn keep(&self, key: AffinityKey, number: SocketNumber) -> io::Result<()> {
            self.set.get().unwrap().end();
            self.known.keep(key, number)
        }
        fn forget(&self, key: AffinityKey) -> io::Result<bool> {
            self.known.forget(key)
        }
        fn idle(&self, key: AffinityKey) -> Option<Duration> {
            self.known.idle(key)
        }
        fn part(&self, from: Option<u32>, most: usize) -> io::Result<KeptPart> {
            self.known.part(from, most)
        }
        fn all(&self) -> io::Result<Vec<Kept>> {
            self.known.all()
        }
    }

    #[test]
    fn a_worker_that_tells_of_a_client_too_late_takes_it_back() {
        let memory = Memory::new(Capacity { frontends: 1, sets: 10, slots: 1, endpoints: 1 });
        let (known, place) = (memory.clients(), Arc::<OnceLock<_>>::default());
        let late = Late { known: Arc::clone(&known), set: Arc::clone(&place) };
        let clients = Arc::new(Clients::new(Arc::new(late)));
        let set = Arc::new(OfSet::new(7, &clients, Arc::default()));
        place.set(Arc::clone(&set)).unwrap();
        let number = SocketNumber { id: 0, incarnation: 1 };
        assert!(!set.keep([10, 0, 0, 1].into(), number, false));
        assert!(known.all().unwrap().is_empty());
        assert_eq!((clients.count(), set.has_clients()), ((0, 10), false));
        // From then on there is no call at all.
        let calls = memory.client_calls();
        assert!(!set.keep([10, 0, 0, 2].into(), number, false));
        set.forget([10, 0, 0, 2].into());
        assert_eq!(memory.client_calls(), calls);
    }

    #[test]
    fn what_was_counted_is_written_off_once() {
        let memory = Memory::new(Capacity { frontends: 1, sets: 10, slots: 1, endpoints: 1 });
        let clients = Arc::new(Clients::new(memory.clients()));
        let share = Arc::<Share>::default();
        let sets = [1, 2].map(|number| OfSet::new(number, &clients, Arc::clone(&share)));
        let number = SocketNumber { id: 0, incarnation: 1 };
        for set in &sets {
            assert!(set.keep([10, 0, 0, 1].into(), number, false));
        }
        sets[0].write_off();
        sets[0].remove(sets[0].key([10, 0, 0, 1].into()));
        assert_eq!((clients.count().0, share.0.load(Ordering::Relaxed)), (1, 1));
    }
}
