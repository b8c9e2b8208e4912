//! The state of the source while it runs: atomics that anyone may read, and the log of failures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::reason::{Failure, Reason};
use super::resource::Resource;

/// The state of the source. Counters only grow.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// The longest time for which the loss of an apiserver stays unnoticed while a watch is open.
    unnoticed: Duration,
    synced: AtomicBool,
    resources: [ResourceHealth; Resource::ALL.len()],
    /// The cluster has a Node of this agent's name.
    has_node: AtomicBool,
    /// It has had one at some time.
    had_node: AtomicBool,
    reasons: Mutex<BTreeMap<Resource, Known>>,
    answers: Mutex<BTreeMap<Outcome, u64>>,
    /// By host and method.
    durations: Mutex<BTreeMap<(String, String), Durations>>,
}

/// A problem with a resource.
#[derive(Debug)]
struct Known {
    reason: Reason,
    server: String,
    /// This reason, or one before it, was logged as a warning. So its end is worth a line.
    was_warned_of: bool,
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// The apiserver: its host and port.
    pub host: String,
    /// The HTTP method.
    pub method: String,
    /// `None` if there was no response.
    pub status: Option<u16>,
}

/// The maximum number of outcomes in [`Health::answers`]; more than actually occur.
const ANSWERS_MAX: usize = 256;

/// The upper bounds of durations, in seconds, as in client-go; longer ones are in an additional bucket.
const BOUNDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// The durations of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Durations {
    fn observe(&mut self, took: Duration) {
        let at = BOUNDS.iter().take_while(|bound| took.as_secs_f64() > **bound).count();
        self.counts[at] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// The number of requests in each bucket, by its upper bound; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.into_iter().chain([f64::INFINITY]).zip(self.counts)
    }

    /// The number of requests.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

/// The state of one resource.
#[derive(Debug, Default)]
pub struct ResourceHealth {
    listed: AtomicBool,
    /// Milliseconds since the start, plus one; 0 means never.
    contact: AtomicU64,
    contacts: AtomicU64,
    /// A watch is open.
    is_open: AtomicBool,
    requests: AtomicU64,
    lists: AtomicU64,
    restarts: AtomicU64,
    errors: AtomicU64,
    skipped: AtomicU64,
    left_out: AtomicU64,
}

impl Health {
    pub(super) fn new(unnoticed: Duration) -> Self {
        Self {
            started: Instant::now(),
            unnoticed,
            synced: AtomicBool::new(false),
            has_node: AtomicBool::new(false),
            had_node: AtomicBool::new(false),
            resources: Default::default(),
            reasons: Mutex::default(),
            answers: Mutex::default(),
            durations: Mutex::default(),
        }
    }

    /// Whether the first full lists are complete and passed on.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Relaxed)
    }

    /// Whether the cluster has a Node of this agent's name; `None` before the first lookup.
    pub fn has_node(&self) -> Option<bool> {
        self.of(Resource::Node).is_listed().then(|| self.has_node.load(Relaxed))
    }

    /// Whether the cluster has had a Node of this agent's name since the start. Its last known state stays in use.
    pub fn had_node(&self) -> bool {
        self.had_node.load(Relaxed)
    }

    pub(super) fn set_has_node(&self, has_node: bool) {
        self.has_node.store(has_node, Relaxed);
        self.had_node.fetch_or(has_node, Relaxed);
    }

    /// The state of one resource.
    pub fn of(&self, resource: Resource) -> &ResourceHealth {
        // Unreachable fallback: indexes come from the enum that gives the array its length.
        self.resources.get(resource.index()).unwrap_or(&self.resources[0])
    }

    /// How long ago the apiserver was last known to be there: it answered successfully about the resource, or a
    /// watch was open, whose connection is kept alive by pings. `None` if it never was.
    pub fn age(&self, resource: Resource) -> Option<Duration> {
        let of = self.of(resource);
        let at = Duration::from_millis(of.contact.load(Relaxed).checked_sub(1)?);
        let age = self.started.elapsed().saturating_sub(at);
        Some(if of.is_open.load(Relaxed) { age.min(self.unnoticed) } else { age })
    }

    /// The age of the data that is served: the larger one of Services and EndpointSlices. `None` before both
    /// have been received.
    pub fn last_contact(&self) -> Option<Duration> {
        Some(self.age(Resource::Services)?.max(self.age(Resource::EndpointSlices)?))
    }

    /// The current problems, by resource: one line each.
    pub fn reasons(&self) -> Vec<(Resource, String)> {
        let reasons = self.lock();
        reasons.iter().map(|(resource, known)| (*resource, line(&known.server, &known.reason))).collect()
    }

    /// The number of requests by outcome.
    pub fn answers(&self) -> Vec<(Outcome, u64)> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().map(|(outcome, number)| (outcome.clone(), *number)).collect()
    }

    /// The durations of requests until their response, by host and method.
    pub fn durations(&self) -> Vec<((String, String), Durations)> {
        let durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        durations.iter().map(|(of, durations)| (of.clone(), *durations)).collect()
    }

    pub(super) fn answered(&self, outcome: Outcome, took: Duration) {
        let of = (outcome.host.clone(), outcome.method.clone());
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        if durations.len() < ANSWERS_MAX || durations.contains_key(&of) {
            durations.entry(of).or_default().observe(took);
        }
        drop(durations);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() < ANSWERS_MAX || answers.contains_key(&outcome) {
            *answers.entry(outcome).or_default() += 1;
        }
    }

    pub(super) fn contact(&self, resource: Resource) {
        self.of(resource).contact.store(millis(self.started.elapsed()).saturating_add(1), Relaxed);
        self.of(resource).contacts.fetch_add(1, Relaxed);
    }

    /// Notes that a watch is open, until the returned value is dropped.
    pub(super) fn open(self: &Arc<Self>, resource: Resource) -> OpenWatch {
        self.contact(resource);
        self.of(resource).is_open.store(true, Relaxed);
        OpenWatch { health: Arc::clone(self), resource, ended_well: false }
    }

    pub(super) fn set_synced(&self) {
        self.synced.store(true, Relaxed);
    }

    /// Notes a failure. Returns whether it was logged: it differs from the previous one, and no other resource
    /// has the same one.
    pub(super) fn failed(&self, resource: Resource, failure: &Failure) -> bool {
        self.of(resource).errors.fetch_add(1, Relaxed);
        let Failure { reason, server, .. } = failure;
        let mut reasons = self.lock();
        let is_news = reasons.values().all(|known| known.reason != *reason);
        let was_warned_of =
            *reason != Reason::Expired || reasons.get(&resource).is_some_and(|known| known.was_warned_of);
        reasons.insert(resource, Known { reason: reason.clone(), server: server.clone(), was_warned_of });
        if !is_news {
            tracing::debug!(%resource, "{}", line(server, reason));
        } else if *reason == Reason::Expired {
            // Watches fail like this now and then, and nothing has to be fixed.
            tracing::info!(%resource, "{}", line(server, reason));
        } else {
            tracing::warn!(%resource, "{}", line(server, reason));
        }
        is_news
    }

    /// Notes a success. Returns whether the recovery was logged.
    pub(super) fn well(&self, resource: Resource) -> bool {
        self.contact(resource);
        let was = self.lock().remove(&resource);
        let is_news = was.is_some_and(|known| known.was_warned_of);
        if is_news {
            tracing::info!(%resource, "followed again");
        }
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Resource, Known>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open watch.
#[derive(Debug)]
pub(super) struct OpenWatch {
    health: Arc<Health>,
    resource: Resource,
    ended_well: bool,
}

impl OpenWatch {
    /// The apiserver has ended the watch, so it is there.
    pub(super) fn ended_well(mut self) {
        self.ended_well = true;
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        let of = self.health.of(self.resource);
        let known = if self.ended_well { Duration::ZERO } else { self.health.unnoticed };
        let at = self.health.started.elapsed().saturating_sub(known);
        of.contact.fetch_max(millis(at).saturating_add(1), Relaxed);
        of.is_open.store(false, Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

fn line(server: &str, reason: &Reason) -> String {
    format!("apiserver {server}: {reason}")
}

impl ResourceHealth {
    /// A full list of it is complete, or the cluster does not have the resource.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Relaxed)
    }

    /// The number of successful messages from the apiserver: pages of lists, events, bookmarks.
    pub fn contacts(&self) -> u64 {
        self.contacts.load(Relaxed)
    }

    /// The number of requests, including failed ones.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// The number of completed full lists; all but the first are relists.
    pub fn lists(&self) -> u64 {
        self.lists.load(Relaxed)
    }

    /// The number of watches that have ended, or could not be started; each was followed by another one or a list.
    pub fn watch_restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// The number of failures of any kind.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// How often an object arrived that could not be understood.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// How often an element of an object was left out; the rest of the object counted.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }

    pub(super) fn requested(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(super) fn was_listed(&self) {
        self.lists.fetch_add(1, Relaxed);
        self.listed.store(true, Relaxed);
    }

    pub(super) fn is_absent(&self) {
        self.listed.store(true, Relaxed);
    }

    pub(super) fn restarted(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }

    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Relaxed);
    }

    pub(super) fn leave_out(&self, elements: usize) {
        self.left_out.fetch_add(u64::try_from(elements).unwrap_or(u64::MAX), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: Reason) -> Failure {
        Failure { reason, server: "https://a".to_owned(), retry_after: None }
    }

    #[test]
    fn outcomes_are_counted_by_apiserver_method_and_status_within_a_bound() {
        let health = Health::new(Duration::ZERO);
        let outcome = |host: &str, method: &str, status| Outcome {
            host: host.to_owned(),
            method: method.to_owned(),
            status,
        };
        for (method, status) in [("GET", Some(200)), ("GET", None), ("POST", Some(200)), ("GET", Some(200))] {
            health.answered(outcome("a:6443", method, status), Duration::from_millis(30));
        }
        let wanted = [("GET", None, 1), ("GET", Some(200), 2), ("POST", Some(200), 1)];
        let wanted = wanted.map(|(method, status, number)| (outcome("a:6443", method, status), number));
        assert_eq!(health.answers(), wanted);
        for status in 0..1000 {
            health.answered(outcome("b:6443", "GET", Some(status)), Duration::from_millis(30));
        }
        health.answered(outcome("a:6443", "GET", None), Duration::from_millis(30));
        assert_eq!(health.answers().len(), ANSWERS_MAX);
        assert_eq!(health.answers()[0].1, 2, "what is known is counted on");
    }

    #[test]
    fn durations_are_counted_by_host_and_method_up_to_a_bound() {
        let health = Health::new(Duration::from_secs(45));
        let outcome = |method: &str| Outcome {
            host: "a:6443".to_owned(),
            method: method.to_owned(),
            status: Some(200),
        };
        for millis in [5, 6, 70_000] {
            health.answered(outcome("GET"), Duration::from_millis(millis));
        }
        health.answered(outcome("POST"), Duration::ZERO);
        let durations = health.durations();
        let methods: Vec<_> =
            durations.iter().map(|((_, method), of)| (method.as_str(), of.count())).collect();
        assert_eq!(methods, [("GET", 3), ("POST", 1)]);
        let buckets: Vec<(f64, u64)> = durations[0].1.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(buckets, [(0.005, 1), (0.025, 1), (f64::INFINITY, 1)]);
        assert_eq!(durations[0].1.sum(), Duration::from_millis(70_011));
        for host in 0..1000 {
            let outcome = Outcome { host: host.to_string(), ..outcome("GET") };
            health.answered(outcome, Duration::ZERO);
        }
        assert_eq!(health.durations().len(), ANSWERS_MAX);
    }

    #[test]
    fn a_reason_is_logged_when_it_changes_and_not_for_every_attempt() {
        let health = Health::new(Duration::from_secs(45));
        let down = || failure(Reason::Unreachable("refused".to_owned()));
        assert!(health.failed(Resource::Services, &down()));
        for resource in Resource::ALL {
            assert!(!health.failed(resource, &down()), "the same for all resources");
        }
        assert!(health.failed(Resource::Node, &failure(Reason::Unauthorized)));
        assert_eq!(health.reasons().len(), Resource::ALL.len());
        assert!(Resource::ALL.iter().all(|resource| health.well(*resource)));
        assert_eq!(health.reasons(), []);
        assert!(!health.well(Resource::Services), "it was well already");
        assert!(health.failed(Resource::Services, &down()), "it was well in between");
        assert_eq!(health.of(Resource::Services).errors(), 3);
    }

    #[test]
    fn an_outage_that_ends_in_an_expired_version_is_said_to_be_over() {
        let health = Health::new(Duration::from_secs(45));
        let (down, expired) = (Reason::Unreachable("refused".to_owned()), Reason::Expired);
        for (reasons, is_said) in [
            (vec![&expired], false),
            (vec![&expired, &expired], false),
            (vec![&down, &expired], true),
            (vec![&down, &expired, &expired], true),
            (vec![&expired, &down], true),
        ] {
            for reason in &reasons {
                health.failed(Resource::Services, &failure((*reason).clone()));
            }
            assert_eq!(health.well(Resource::Services), is_said, "{reasons:?}");
            assert!(!health.well(Resource::Services));
        }
    }

    #[test]
    fn contact_has_an_age_once_there_was_one() {
        let health = Health::new(Duration::from_secs(45));
        health.contact(Resource::Services);
        assert!(health.age(Resource::Services).is_some());
        assert_eq!((health.age(Resource::Node), health.last_contact()), (None, None));
        health.contact(Resource::EndpointSlices);
        assert!(health.last_contact().is_some());
    }

    #[test]
    fn an_open_watch_is_contact_but_for_what_goes_unnoticed() {
        let unnoticed = Duration::from_secs(45);
        let hour = Duration::from_secs(3600);
        let mut health = Health::new(unnoticed);
        health.started -= hour;
        let health = Arc::new(health);
        let age = || health.age(Resource::Services).unwrap();
        let long_ago = || health.of(Resource::Services).contact.store(1, Relaxed);
        health.contact(Resource::Services);
        long_ago();
        assert!(age() >= hour);
        let open = health.open(Resource::Services);
        long_ago();
        assert_eq!(age(), unnoticed, "silent for an hour");
        drop(open);
        assert!(age() >= unnoticed && age() < hour, "it may have been gone for as long as that");
        let open = health.open(Resource::Services);
        long_ago();
        open.ended_well();
        assert!(age() < unnoticed);
    }
}
