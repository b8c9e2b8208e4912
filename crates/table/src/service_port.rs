//! A service port as readers see it: its name, the current version of its endpoints and rules, and the state
//! that outlives every version.

use std::cell::Cell;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use sluice_model::{Family, ServicePortName};

use crate::affinity::{Affinity, Asking, Budget, Kept};
use crate::backends::{Backends, Facts, PortRules};
use crate::balance::Balancer;
use crate::doubt_search::{self, DoubtSearch};
use crate::follower::{Adopted, SharedFollower};
use crate::passive_health::Seen;
use crate::policy::SetName;
use crate::roster::Roster;
use crate::socket_health::{SharedHealth, SocketHealth, tell};
use crate::{Balance, Client, Datagrams, ServiceTimes, SourceAddress, Traffic, Upstream};

/// One family's half of a service port. Lives from the first frontend that leads to it until the Service or
/// the port goes away. Endpoint changes swap [`Backends`] inside it.
// In this order, the fields that a pick reads share a cache line with the reference count that it changes.
#[derive(Debug)]
#[repr(C)]
pub struct ServicePort {
    backends: ArcSwap<Backends>,
    balancers: [Balancer; 2],
    /// Whether [`Self::socket_health`] is set, so that a pick need not load it if it is not.
    has_socket_health: AtomicBool,
    /// Created when the Service first asks for it.
    affinity: OnceLock<Box<Affinity>>,
    affinity_budget: Arc<Budget>,
    name: Arc<ServicePortName>,
    family: Family,
    roster: Mutex<Roster>,
    has_lost: AtomicBool,
    /// The health of its endpoints as BPF programs see it, in socket mode.
    socket_health: ArcSwapOption<Box<dyn SocketHealth>>,
    /// One for each set, created at the first search of a large set for unverified endpoints.
    doubts: [OnceLock<Box<DoubtSearch>>; 2],
    /// Created with the first connection that is timed.
    times: OnceLock<Box<ServiceTimes>>,
    /// Created with the first datagram that is counted.
    datagrams: OnceLock<Box<Datagrams>>,
}

/// A request for an endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// The set to pick from.
    pub(crate) set: SetName,
    pub(crate) client: Client,
    /// The source address before the endpoint is known.
    pub(crate) source: SourceAddress,
    pub(crate) now: Instant,
}

impl Asked {
    fn seen_by(self, upstream: &Upstream) -> Seen {
        Seen::new(self.source.towards(self.client, upstream), self.client.ip)
    }

    fn is_passed_over(self, upstream: &Upstream, rules: &PortRules) -> bool {
        let seen = self.seen_by(upstream);
        upstream.has_no_route(seen, self.now)
            || rules.passive_health && upstream.is_passed_over(seen, self.now)
    }

    fn has_route(self, upstream: &Upstream) -> bool {
        !upstream.has_no_route(self.seen_by(upstream), self.now)
    }
}

/// An endpoint that was picked for a connection.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) upstream: Arc<Upstream>,
    /// The endpoint would otherwise be skipped, but no better one was left.
    pub(crate) is_last_resort: bool,
}

impl ServicePort {
    pub(crate) fn new(name: ServicePortName, family: Family, affinity_budget: Arc<Budget>) -> Self {
        let random = foldhash::fast::RandomState::default();
        Self {
            backends: ArcSwap::default(),
            balancers: [0, 1].map(|set: u64| Balancer::new(random.hash_one(set))),
            has_socket_health: AtomicBool::new(false),
            affinity: OnceLock::new(),
            affinity_budget,
            name: Arc::new(name),
            family,
            roster: Mutex::default(),
            has_lost: AtomicBool::new(false),
            socket_health: ArcSwapOption::empty(),
            doubts: Default::default(),
            times: OnceLock::new(),
            datagrams: OnceLock::new(),
        }
    }

    /// Namespace, Service, port and protocol.
    pub fn name(&self) -> &ServicePortName {
        &self.name
    }

    /// The name, shared.
    pub fn shared_name(&self) -> &Arc<ServicePortName> {
        &self.name
    }

    /// The family of this half.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The current endpoints. The returned version does not change: call this again to see changes.
    pub fn backends(&self) -> Arc<Backends> {
        self.backends.load_full()
    }

    /// Every endpoint in the slices, whether it can serve or not, sorted by address.
    pub fn endpoints(&self) -> Vec<Arc<Upstream>> {
        self.roster().current().to_vec()
    }

    /// The traffic of all endpoints, including those that are gone. Never decreases, except for
    /// [`Traffic::active`].
    pub fn traffic(&self) -> Traffic {
        self.roster().traffic()
    }

    /// Every endpoint and [`ServicePort::traffic`], at the same moment.
    pub fn endpoints_and_traffic(&self) -> (Vec<Arc<Upstream>>, Traffic) {
        let mut roster = self.roster();
        (roster.current().to_vec(), roster.traffic())
    }

    /// Where workers record how long connections take to establish and last. It stays when endpoints leave.
    pub fn times(&self) -> &ServiceTimes {
        self.times.get_or_init(Box::default)
    }

    /// Like [`ServicePort::times`], but `None` if nothing was ever recorded.
    pub fn times_so_far(&self) -> Option<&ServiceTimes> {
        self.times.get().map(|times| &**times)
    }

    /// Where workers count datagrams. It stays when endpoints leave.
    pub fn datagrams(&self) -> &Datagrams {
        self.datagrams.get_or_init(Box::default)
    }

    /// Like [`ServicePort::datagrams`], but `None` if nothing was ever counted.
    pub fn datagrams_so_far(&self) -> Option<&Datagrams> {
        self.datagrams.get().map(|datagrams| &**datagrams)
    }

    /// Whether an endpoint has stopped serving, or gone, since the last call. If so, owners of state about
    /// UDP endpoints that do not serve have to update it.
    pub fn take_lost(&self) -> bool {
        self.has_lost.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn note_lost(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
    }

    /// From now on shares the health of its endpoints with these BPF programs, which replace the previous
    /// ones. The ids that endpoints had there are cleared.
    pub fn share_health(&self, with: &SharedHealth) {
        if self.socket_health.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, with)) {
            return;
        }
        // Clear the ids first: a thread that sees the new programs and then asks for an id must not get one
        // of the old programs.
        for upstream in self.roster().current() {
            upstream.set_socket_number(SetName::Cluster, None);
            upstream.set_socket_number(SetName::Local, None);
        }
        self.socket_health.store(Some(Arc::clone(with)));
        self.has_socket_health.store(true, Ordering::Relaxed);
    }

    /// The health of its endpoints as BPF programs see it, in socket mode. Do not hold the guard for long.
    fn socket_health(&self) -> Option<Guard<Option<SharedHealth>>> {
        self.has_socket_health.load(Ordering::Relaxed).then(|| self.socket_health.load())
    }

    /// Reports to the BPF programs, if any, whether a connection to an endpoint succeeded.
    pub(crate) fn tell(&self, upstream: &Upstream, has_served: bool) {
        if let Some(health) = self.socket_health().as_deref().and_then(Option::as_ref) {
            tell(&***health, upstream, has_served);
        }
    }

    /// The writer holds the lock while it changes endpoints, others only to read.
    pub(crate) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clients that keep their endpoints, if the Service has ever had session affinity.
    pub fn affinity(&self) -> Option<&Affinity> {
        self.affinity.get().map(|affinity| &**affinity)
    }

    /// Replaces the follower that is notified which endpoint each client of this node keeps. Each client is
    /// reported at its next connection. Does nothing if the Service has never had session affinity.
    pub fn share_affinity(&self, with: Option<SharedFollower>) {
        if let Some(affinity) = self.affinity() {
            affinity.set_follower(with);
        }
    }

    /// Remembers a client that BPF programs have been translating since before the table knew it, unless the
    /// client is known. Returns whether they are to go on doing so.
    pub fn adopt_client(&self, adopted: &Adopted<'_>, now: Instant) -> bool {
        let timeout = self.load().rules.affinity;
        let known = timeout.zip(self.affinity.get());
        known.is_some_and(|(timeout, affinity)| affinity.adopt(adopted, timeout, now))
    }

    /// The clients that keep an endpoint at this moment, at most `limit` of them, for the next agent. Clients
    /// that a [`Follower`](crate::Follower) translates are left out: the follower hands them over itself.
    pub fn kept_clients(&self, now: Instant, limit: usize) -> Vec<Kept> {
        let known = self.load().rules.affinity.zip(self.affinity.get());
        known.map(|(timeout, affinity)| affinity.all_kept(timeout, now, limit)).unwrap_or_default()
    }

    /// Remembers a client that another agent remembered, unless it is known here, its timeout has passed, its
    /// endpoint is gone, or there is no room. Returns whether this call added it.
    pub fn recall_client(&self, kept: &Kept, now: Instant) -> bool {
        let backends = self.load();
        let Some((timeout, affinity)) = backends.rules.affinity.zip(self.affinity.get()) else {
            return false;
        };
        let Some(upstream) = self.endpoint_at(kept.endpoint) else { return false };
        let is_kept = backends.cluster.contains(&upstream) || backends.local.contains(&upstream);
        is_kept && affinity.recall(kept, &upstream, timeout, now)
    }

    /// The endpoint at an address in the slices, whether it can serve or not.
    pub(crate) fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<Upstream>> {
        self.roster().at(address).map(Arc::clone)
    }

    /// Forgets some of the clients that were idle for longer than the Service allows. Returns whether there
    /// may still be clients.
    pub(crate) fn expire_affinity(&self, now: Instant) -> bool {
        let Some(affinity) = self.affinity.get() else { return false };
        let timeout = self.load().rules.affinity;
        affinity.expire(timeout, now);
        timeout.is_some() || !affinity.is_empty()
    }

    /// The current version. Do not hold the guard for long: that slows the writer down.
    pub(crate) fn load(&self) -> Guard<Arc<Backends>> {
        self.backends.load()
    }

    /// The endpoint for a client's new connection: the one that the client keeps, or else the one that the
    /// balancing policy chooses.
    #[inline]
    pub(crate) fn pick(&self, backends: &Backends, asked: Asked) -> Option<Picked> {
        // The fast path for the common case.
        let rules = &backends.rules;
        if rules.balance == Balance::RoundRobin && rules.affinity.is_none() {
            let upstream = backends.set(asked.set).turn(&self.balancer(asked.set).rotation)?;
            if !upstream.was_passed_over() || !asked.is_passed_over(upstream, rules) {
                return Some(Picked { upstream: Arc::clone(upstream), is_last_resort: false });
            }
        }
        self.pick_other(backends, asked, &[], false)
    }

    /// An unverified endpoint, for a client whose connection was not translated, most likely because of that
    /// endpoint. So each unverified endpoint gets the same share of new connections as if it were verified.
    #[inline]
    pub(crate) fn pick_in_doubt(&self, backends: &Backends, asked: Asked) -> Option<Picked> {
        // A client with session affinity is not moved to another endpoint for this. Unverified endpoints are
        // tried when they are chosen for other connections.
        if backends.rules.affinity.is_some() {
            return None;
        }
        let health = self.socket_health()?;
        let health = health.as_ref()?;
        let set = backends.set(asked.set);
        let rotation = &self.balancer(asked.set).rotation;
        let (upstreams, turn) = (set.upstreams(), rotation.peek());
        let is_it = |upstream: &&Arc<Upstream>| {
            upstream.socket_number(asked.set).is_some_and(|number| health.is_in_doubt(number))
                && !asked.is_passed_over(upstream, &backends.rules)
        };
        let upstream = if upstreams.len() <= doubt_search::SMALL {
            let (before, after) = upstreams.split_at_checked(set.position(turn))?;
            after.iter().chain(before).find(is_it)?
        } else {
            let [cluster, local] = &self.doubts;
            let search = match asked.set {
                SetName::Cluster => cluster,
                SetName::Local => local,
            };
            let search = search.get_or_init(|| Box::new(DoubtSearch::new(asked.now)));
            let is_there = |place| upstreams.get(place).is_some_and(|upstream| is_it(&upstream));
            upstreams.get(search.find(upstreams.len(), turn, asked.now, is_there)?)?
        };
        // The next search begins behind it.
        rotation.next();
        Some(Picked { upstream: Arc::clone(upstream), is_last_resort: false })
    }

    /// Like [`Self::pick`], but never an endpoint in `failed`. `is_last_resort` says that all others are
    /// known to be skipped, which saves checking each of them again.
    #[inline(never)]
    pub(crate) fn pick_other(
        &self,
        backends: &Backends,
        asked: Asked,
        failed: &[Arc<Upstream>],
        is_last_resort: bool,
    ) -> Option<Picked> {
        let (set, rules) = (backends.set(asked.set), &backends.rules);
        let (balancer, client) = (self.balancer(asked.set), asked.client.ip);
        let is_untried = |upstream: &Arc<Upstream>| !failed.iter().any(|f| Arc::ptr_eq(f, upstream));
        let is_usable =
            |upstream: &Arc<Upstream>| is_untried(upstream) && !asked.is_passed_over(upstream, rules);
        let is_last_resort = Cell::new(is_last_resort);
        let choose = || {
            if !is_last_resort.get()
                && let Some(usable) = balancer.choose(rules.balance, set, client, is_usable)
            {
                return Some(Arc::clone(usable));
            }
            is_last_resort.set(true);
            // An endpoint that has failed may have recovered. Where there was no route a moment ago there is
            // hardly one by now.
            let has_route = |upstream: &Arc<Upstream>| is_untried(upstream) && asked.has_route(upstream);
            // Not round robin: the search above has advanced the position by the same amount as for the
            // previous connection, so the next position might be the same endpoint's each time.
            let balance = match rules.balance {
                Balance::SourceHash => Balance::SourceHash,
                _ => Balance::Random,
            };
            let least_bad = balancer.choose(balance, set, client, has_route);
            least_bad.or_else(|| balancer.choose(balance, set, client, is_untried)).cloned()
        };
        let upstream = match rules.affinity.zip(self.affinity.get()) {
            Some((timeout, affinity)) => {
                let asking = Asking { client: asked.client, now: asked.now };
                let is_kept = |upstream: &Arc<Upstream>| set.contains(upstream) && is_usable(upstream);
                if rules.policies.use_both_sets() {
                    let other = backends.set(asked.set.other());
                    let is_elsewhere =
                        |upstream: &Arc<Upstream>| !set.contains(upstream) && other.contains(upstream);
                    affinity.pick_of_two(asking, timeout, is_kept, is_elsewhere, choose)
                } else {
                    affinity.pick(asking, timeout, is_kept, choose)
                }
            }
            None => choose(),
        }?;
        Some(Picked { upstream, is_last_resort: is_last_resort.get() })
    }

    /// Swaps in new sets and rules. Returns whether anything differs from before. The round robin continues
    /// where it was. Clients of endpoints that are gone from both sets lose them.
    pub(crate) fn publish(
        &self,
        cluster: Vec<Arc<Upstream>>,
        local: Vec<Arc<Upstream>>,
        facts: Facts,
        rules: PortRules,
    ) -> bool {
        let old = self.backends.load();
        if old.cluster.is(&cluster) && old.local.is(&local) && *old.facts == facts && old.rules == rules {
            return false;
        }
        let [for_cluster, for_local] = &self.balancers;
        let new = Arc::new(Backends {
            cluster: old.cluster.next_version(cluster, &for_cluster.rotation, rules.balance),
            local: old.local.next_version(local, &for_local.rotation, rules.balance),
            facts: Box::new(facts),
            rules,
        });
        if new.rules.affinity.is_some() {
            self.affinity.get_or_init(|| Box::new(Affinity::new(Arc::clone(&self.affinity_budget))));
        }
        self.backends.store(Arc::clone(&new));
        if self.affinity.get().is_some_and(|affinity| !affinity.is_empty()) {
            let stays = |upstream: &&Arc<Upstream>| {
                new.rules.affinity.is_some()
                    && (new.cluster.contains(upstream) || new.local.contains(upstream))
            };
            let before = old.cluster.upstreams().iter().chain(old.local.upstreams());
            let left =
                before.filter(|upstream| !stays(upstream)).map(|upstream| upstream.end_tenure()).count();
            if left > 0
                && let Some(affinity) = self.affinity.get()
            {
                affinity.look_at_all();
            }
        }
        true
    }

    fn balancer(&self, name: SetName) -> &Balancer {
        let [cluster, local] = &self.balancers;
        match name {
            SetName::Cluster => cluster,
            SetName::Local => local,
        }
    }
}
