//! A service port as readers see it: who it is, the current version of its endpoints and rules, and
//! what outlives every version.

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

/// One family's half of a service port. Lives from the first frontend that leads to it until the
/// Service or the port goes away; endpoint changes swap [`Backends`] inside it.
// In this order, what a pick looks at shares a cache line with the reference count that it changes.
#[derive(Debug)]
#[repr(C)]
pub struct ServicePort {
    backends: ArcSwap<Backends>,
    balancers: [Balancer; 2],
    /// Whether there is a [`Self::socket_health`]; where there is not, a pick need not look there.
    has_socket_health: AtomicBool,
    /// Made when the Service first asks for it.
    affinity: OnceLock<Box<Affinity>>,
    affinity_budget: Arc<Budget>,
    name: Arc<ServicePortName>,
    family: Family,
    roster: Mutex<Roster>,
    has_lost: AtomicBool,
    /// What is known of its endpoints where connections are decided at their sockets, if they are.
    socket_health: ArcSwapOption<Box<dyn SocketHealth>>,
    /// Of each set, made when one in doubt is first looked for among many.
    doubts: [OnceLock<Box<DoubtSearch>>; 2],
    /// Made with the first connection that is timed.
    times: OnceLock<Box<ServiceTimes>>,
    /// Made with the first datagram that is counted.
    datagrams: OnceLock<Box<Datagrams>>,
}

/// Whom an endpoint is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// From which set.
    pub(crate) set: SetName,
    pub(crate) client: Client,
    /// What the endpoint is to see, before it is known which one it is.
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
    /// It is passed over otherwise: none was left that is not.
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

    /// The same, for those who keep it.
    pub fn shared_name(&self) -> &Arc<ServicePortName> {
        &self.name
    }

    /// The family whose half this is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The current endpoints. The version returned stays as it is; take it anew to see changes.
    pub fn backends(&self) -> Arc<Backends> {
        self.backends.load_full()
    }

    /// Every endpoint that the slices name, whether it can serve or not, sorted by address.
    pub fn endpoints(&self) -> Vec<Arc<Upstream>> {
        self.roster().current().to_vec()
    }

    /// What was carried by all endpoints that there are and that there were: apart from
    /// [`Traffic::active`] it never gets less.
    pub fn traffic(&self) -> Traffic {
        self.roster().traffic()
    }

    /// What [`ServicePort::traffic`] says, together with every endpoint, of one moment.
    pub fn endpoints_and_traffic(&self) -> (Vec<Arc<Upstream>>, Traffic) {
        let mut roster = self.roster();
        (roster.current().to_vec(), roster.traffic())
    }

    /// Where workers count how long connections take and last. It stays when endpoints leave.
    pub fn times(&self) -> &ServiceTimes {
        self.times.get_or_init(Box::default)
    }

    /// The same, if anything was ever counted there.
    pub fn times_so_far(&self) -> Option<&ServiceTimes> {
        self.times.get().map(|times| &**times)
    }

    /// Where workers count datagrams. It stays when endpoints leave.
    pub fn datagrams(&self) -> &Datagrams {
        self.datagrams.get_or_init(Box::default)
    }

    /// The same, if anything was ever counted there.
    pub fn datagrams_so_far(&self) -> Option<&Datagrams> {
        self.datagrams.get().map(|datagrams| &**datagrams)
    }

    /// Whether an endpoint has stopped serving, or gone, since this was last asked. Whoever keeps something of UDP
    /// endpoints that do not serve has something to do then.
    pub fn take_lost(&self) -> bool {
        self.has_lost.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn note_lost(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
    }

    /// From now on shares what is known of its endpoints with those who decide at clients' sockets, in the place of those
    /// that it was shared with so far: the numbers that endpoints had there are gone.
    pub fn share_health(&self, with: &SharedHealth) {
        if self.socket_health.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, with)) {
            return;
        }
        // First: who sees the new ones and then asks for a number is not to find one of the old.
        for upstream in self.roster().current() {
            upstream.set_socket_number(SetName::Cluster, None);
            upstream.set_socket_number(SetName::Local, None);
        }
        self.socket_health.store(Some(Arc::clone(with)));
        self.has_socket_health.store(true, Ordering::Relaxed);
    }

    /// What is known of its endpoints where connections are decided at their sockets, for a moment.
    fn socket_health(&self) -> Option<Guard<Option<SharedHealth>>> {
        self.has_socket_health.load(Ordering::Relaxed).then(|| self.socket_health.load())
    }

    /// Notes how connecting to an endpoint went, where others share what is known of it.
    pub(crate) fn tell(&self, upstream: &Upstream, has_served: bool) {
        if let Some(health) = self.socket_health().as_deref().and_then(Option::as_ref) {
            tell(&***health, upstream, has_served);
        }
    }

    /// The writer holds it while it changes endpoints, others for a look.
    pub(crate) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clients that keep their endpoints, if the Service ever asked for that.
    pub fn affinity(&self) -> Option<&Affinity> {
        self.affinity.get().map(|affinity| &**affinity)
    }

    /// From now on has these told which endpoints clients of this node keep, in the place of those who were told so far; of each
    /// client with its next connection. Nobody is where the Service never asked for affinity, and once the port is gone.
    pub fn share_affinity(&self, with: Option<SharedFollower>) {
        if let Some(affinity) = self.affinity() {
            affinity.set_follower(with);
        }
    }

    /// Remembers a client that those who are told have led since before, unless it is known. Whether they are to lead it from now
    /// on, too.
    pub fn adopt_client(&self, adopted: &Adopted<'_>, now: Instant) -> bool {
        let timeout = self.load().rules.affinity;
        let known = timeout.zip(self.affinity.get());
        known.is_some_and(|(timeout, affinity)| affinity.adopt(adopted, timeout, now))
    }

    /// The clients that keep an endpoint at this moment, at most `limit` of them, for the next agent. Those whom a
    /// [`Follower`](crate::Follower) leads are left out: the follower hands them over itself.
    pub fn kept_clients(&self, now: Instant, limit: usize) -> Vec<Kept> {
        let known = self.load().rules.affinity.zip(self.affinity.get());
        known.map(|(timeout, affinity)| affinity.all_kept(timeout, now, limit)).unwrap_or_default()
    }

    /// Remembers a client that another agent remembered, unless it is known here, its time is over, its endpoint is gone, or
    /// there is no room. Returns whether it is remembered now because of this.
    pub fn recall_client(&self, kept: &Kept, now: Instant) -> bool {
        let backends = self.load();
        let Some((timeout, affinity)) = backends.rules.affinity.zip(self.affinity.get()) else {
            return false;
        };
        let Some(upstream) = self.endpoint_at(kept.endpoint) else { return false };
        let is_kept = backends.cluster.contains(&upstream) || backends.local.contains(&upstream);
        is_kept && affinity.recall(kept, &upstream, timeout, now)
    }

    /// The endpoint that the slices name at an address, whether it can serve or not.
    pub(crate) fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<Upstream>> {
        self.roster().at(address).map(Arc::clone)
    }

    /// Forgets some of the clients that were idle for longer than the Service allows; whether there may be
    /// clients.
    pub(crate) fn expire_affinity(&self, now: Instant) -> bool {
        let Some(affinity) = self.affinity.get() else { return false };
        let timeout = self.load().rules.affinity;
        affinity.expire(timeout, now);
        timeout.is_some() || !affinity.is_empty()
    }

    /// The current version, for a moment: a guard that is held for long slows the writer down.
    pub(crate) fn load(&self) -> Guard<Arc<Backends>> {
        self.backends.load()
    }

    /// The endpoint for a client's new connection: the one that it keeps, else the one that the
    /// balancing policy names.
    #[inline]
    pub(crate) fn pick(&self, backends: &Backends, asked: Asked) -> Option<Picked> {
        // The common case by the shortest way.
        let rules = &backends.rules;
        if rules.balance == Balance::RoundRobin && rules.affinity.is_none() {
            let upstream = backends.set(asked.set).turn(&self.balancer(asked.set).rotation)?;
            if !upstream.was_passed_over() || !asked.is_passed_over(upstream, rules) {
                return Some(Picked { upstream: Arc::clone(upstream), is_last_resort: false });
            }
        }
        self.pick_other(backends, asked, &[], false)
    }

    /// An endpoint that is in doubt where connections are decided at their sockets, for a client that was not decided about
    /// there: most likely because of it. So each has its share of new connections, as many as if it was not in doubt.
    #[inline]
    pub(crate) fn pick_in_doubt(&self, backends: &Backends, asked: Asked) -> Option<Picked> {
        // Who keeps an endpoint is not led to another one for that, and others find out about those in doubt in their turns.
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
        // Whoever asks next begins behind it.
        rotation.next();
        Some(Picked { upstream: Arc::clone(upstream), is_last_resort: false })
    }

    /// The same, other than the endpoints that `failed` this connection. `is_last_resort` says that all
    /// others are passed over, as far as is known: looking again would cost a look at each.
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
            // One that has failed may be there again; there is hardly a way where there was none a moment ago.
            let has_route = |upstream: &Arc<Upstream>| is_untried(upstream) && asked.has_route(upstream);
            // Not in turns: the search has taken some, as many as with the last connection, and so the next may be the same
            // endpoint's each time.
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

    /// Swaps in new sets and rules; whether anything differs from before. Turns go on where they
    /// are; clients of endpoints that are gone from both sets lose them.
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
