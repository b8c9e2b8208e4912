//! Tracks whether queued changes have reached the kernel: since when a change waits, and when everything was
//! last up to date. Written by those who hand over changes and by the controller; read by anyone. (kube-proxy:
//! `QueuedUpdate` and `Updated` of `healthcheck/proxy_health.go`.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use prometheus_client::metrics::histogram::{Histogram, linear_buckets};
use sluice_model::{Change, Object, ObjectRef};

/// The most changes of endpoints that are timed in a step; more are not measured.
const TRIGGERS: usize = 100_000;

/// The state of queued changes.
#[derive(Debug)]
pub(crate) struct Programming {
    state: Mutex<State>,
    /// In seconds.
    network_durations: Histogram,
    /// Earlier changes are no measure of this agent.
    started: SystemTime,
}

impl Default for Programming {
    fn default() -> Self {
        // kube-proxy's buckets (`NetworkProgrammingLatency`).
        let buckets = linear_buckets(0.25, 0.25, 2).chain(linear_buckets(1.0, 1.0, 59));
        let buckets = buckets.chain(linear_buckets(60.0, 5.0, 12)).chain(linear_buckets(120.0, 30.0, 7));
        let (state, started) = (Mutex::default(), SystemTime::now());
        Self { state, network_durations: Histogram::new(buckets), started }
    }
}

/// The stages that changes pass. A step owns the changes that it began with, so later ones never make it look
/// unfinished.
#[derive(Debug, Default)]
struct State {
    /// Handed over, but not yet taken in by the proxy.
    queued: Waiting,
    /// Taken in, but in no step yet.
    taken: Waiting,
    /// In the step under way, or in one that failed.
    in_step: Waiting,
    /// When the endpoints in `in_step` changed in the cluster.
    triggers: Vec<SystemTime>,
    numbers: Numbers,
}

/// Batches of changes at the same stage.
#[derive(Debug, Default)]
struct Waiting {
    batches: u64,
    /// Since when the oldest waits.
    since: Option<Instant>,
    services: u64,
    endpoints: u64,
}

impl Waiting {
    /// A number of batches with these changes; the oldest has waited since `since`.
    fn new(batches: u64, since: Option<Instant>, changes: &[Change]) -> Self {
        let count =
            |is_one: fn(&Change) -> bool| changes.iter().filter(|change| is_one(change)).count() as u64;
        Self { batches, since, services: count(is_service), endpoints: count(is_slice) }
    }

    fn add(&mut self, more: Self) {
        self.batches += more.batches;
        self.since = self.since.into_iter().chain(more.since).min();
        self.services += more.services;
        self.endpoints += more.endpoints;
    }

    /// Takes some batches out. The rest came later, and counts as waiting since `now` at the earliest.
    fn take(&mut self, batches: u64, changes: &[Change], now: Instant) -> Self {
        let taken = Self::new(batches, self.since, changes);
        self.batches = self.batches.saturating_sub(taken.batches);
        self.services = self.services.saturating_sub(taken.services);
        self.endpoints = self.endpoints.saturating_sub(taken.endpoints);
        self.since = (self.batches > 0).then_some(now);
        taken
    }
}

fn is_service(change: &Change) -> bool {
    matches!(change, Change::Apply(Object::Service(_)) | Change::Delete(ObjectRef::Service(_)))
}

fn is_slice(change: &Change) -> bool {
    matches!(change, Change::Apply(Object::EndpointSlice(_)) | Change::Delete(ObjectRef::EndpointSlice(_)))
}

impl State {
    fn waiting(&self) -> [&Waiting; 3] {
        [&self.queued, &self.taken, &self.in_step]
    }
}

/// Totals so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers {
    /// When changes last took effect.
    pub updated: Option<Timestamp>,
    /// When changes were last handed over.
    pub last_queued: Option<Timestamp>,
    pub services: Changes,
    /// Changes of EndpointSlices.
    pub endpoints: Changes,
}

/// Changes of one kind of object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub total: u64,
    /// Changes that have not taken effect yet.
    pub pending: u64,
}

impl Programming {
    /// Counts a batch of changes that is handed over now.
    pub(crate) fn queued(&self, now: Instant, changes: &[Change]) {
        let mut state = self.lock();
        let batch = Waiting::new(1, Some(now), changes);
        state.numbers.last_queued = Some(Timestamp::now());
        state.numbers.services.total += batch.services;
        state.numbers.endpoints.total += batch.endpoints;
        state.queued.add(batch);
    }

    /// The proxy is about to take in this many batches, with these changes.
    pub(crate) fn taken(&self, now: Instant, batches: u64, changes: &[Change]) {
        let state = &mut *self.lock();
        state.taken.add(state.queued.take(batches, changes, now));
    }

    /// A step begins with everything that was taken in so far. `triggers`: when endpoints changed in the
    /// cluster since the last step.
    pub(crate) fn step_begins(&self, triggers: Vec<SystemTime>) {
        let state = &mut *self.lock();
        state.in_step.add(std::mem::take(&mut state.taken));
        let room = TRIGGERS.saturating_sub(state.triggers.len());
        state.triggers.extend(triggers.into_iter().take(room));
    }

    /// A step has ended; its changes have taken effect if `is_good`. If not, they wait: the next good step
    /// includes them.
    pub(crate) fn step_ends(&self, is_good: bool) {
        let mut state = self.lock();
        if state.in_step.since.is_none() || !is_good {
            return;
        }
        state.in_step = Waiting::default();
        state.numbers.updated = Some(Timestamp::now());
        let triggers = std::mem::take(&mut state.triggers);
        drop(state);
        self.endpoints_settled(&triggers, SystemTime::now());
    }

    /// Measures changes of endpoints that happened in the cluster at these times and have taken effect now.
    fn endpoints_settled(&self, triggers: &[SystemTime], now: SystemTime) {
        for trigger in triggers.iter().filter(|trigger| **trigger > self.started) {
            // If the clock is behind, the time counts as zero.
            let took = now.duration_since(*trigger).unwrap_or_default();
            self.network_durations.observe(took.as_secs_f64());
        }
    }

    /// The times from a change of endpoints in the cluster until it took effect.
    pub(crate) fn network_durations(&self) -> &Histogram {
        &self.network_durations
    }

    /// How long the oldest change has waited; `None` if nothing waits.
    pub(crate) fn pending_for(&self, now: Instant) -> Option<Duration> {
        let oldest = self.lock().waiting().into_iter().filter_map(|waiting| waiting.since).min();
        oldest.map(|since| now.saturating_duration_since(since))
    }

    /// How long the oldest change has waited for the proxy to take it in, which never has to wait; `None` if
    /// nothing waits.
    pub(crate) fn queued_for(&self, now: Instant) -> Option<Duration> {
        self.lock().queued.since.map(|since| now.saturating_duration_since(since))
    }

    /// When changes last took effect.
    pub(crate) fn updated(&self) -> Option<Timestamp> {
        self.lock().numbers.updated
    }

    /// Totals so far.
    pub(crate) fn numbers(&self) -> Numbers {
        let state = self.lock();
        let mut numbers = state.numbers;
        numbers.services.pending = state.waiting().iter().map(|waiting| waiting.services).sum();
        numbers.endpoints.pending = state.waiting().iter().map(|waiting| waiting.endpoints).sum();
        numbers
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_before_the_start_is_not_measured_and_no_time_is_negative() {
        use prometheus_client::encoding::text;
        use prometheus_client::registry::Registry;

        let programming = Programming::default();
        let after = |seconds| programming.started + Duration::from_secs(seconds);
        let triggers =
            [programming.started - Duration::from_secs(5), programming.started, after(1), after(9)];
        programming.endpoints_settled(&triggers, after(4));
        let mut registry = Registry::default();
        registry.register("took", "It took", programming.network_durations().clone());
        let mut said = String::new();
        text::encode(&mut said, &registry).unwrap();
        for line in ["took_count 2\n", "took_sum 3.0\n", "took_bucket{le=\"0.25\"} 1\n", "{le=\"300.0\"} 2\n"]
        {
            assert!(said.contains(line), "{line} is not in\n{said}");
        }
    }

    #[test]
    fn a_change_waits_from_when_it_is_queued_to_when_it_has_taken_effect() {
        let programming = Programming::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let waits = |seconds| programming.pending_for(at(seconds)).map(|time| time.as_secs());
        programming.step_ends(true);
        assert_eq!((waits(0), programming.updated()), (None, None), "nothing was queued so far");

        let batch = [service(), service()];
        programming.queued(at(10), &batch);
        programming.queued(at(20), &[]);
        programming.taken(at(25), 1, &batch);
        programming.step_begins(Vec::new());
        assert_eq!(waits(30), Some(20), "the oldest counts");
        programming.step_ends(false);
        assert_eq!((waits(40), programming.updated()), (Some(30), None), "an attempt that failed is none");
        assert_eq!(programming.numbers().services, Changes { total: 2, pending: 2 });
        programming.step_ends(true);
        assert_eq!(waits(60), Some(35), "one of two is not in it");
        assert!(programming.updated().is_some());
        assert_eq!(programming.numbers().services, Changes { total: 2, pending: 0 });
        programming.taken(at(65), 1, &[]);
        programming.step_begins(Vec::new());
        programming.step_ends(true);
        assert_eq!(waits(80), None);
        assert_eq!(programming.numbers().endpoints, Changes::default());
    }

    #[test]
    fn where_each_step_is_good_no_change_waits_for_longer_than_the_step_that_it_is_in_and_the_one_before() {
        let programming = Programming::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let change_at = |seconds| {
            programming.queued(at(seconds), &[service()]);
            programming.taken(at(seconds), 1, &[service()]);
        };
        change_at(0);
        programming.step_begins(Vec::new());
        // Steps of ten seconds; during each, a change comes for the next one.
        for step in 0..20 {
            change_at(10 * step + 5);
            programming.step_ends(true);
            programming.step_begins(Vec::new());
            assert_eq!(programming.pending_for(at(10 * step + 10)), Some(Duration::from_secs(5)));
            assert_eq!(programming.numbers().services.pending, 1);
        }
        // From now on, they fail.
        for step in 20..40 {
            change_at(10 * step + 5);
            programming.step_ends(false);
            programming.step_begins(Vec::new());
            let wanted = Duration::from_secs(10 * (step + 1) - 195);
            assert_eq!(programming.pending_for(at(10 * step + 10)), Some(wanted));
            assert_eq!(programming.numbers().services.pending, step - 18);
        }
        // A good step includes the changes of all failed ones.
        programming.step_ends(true);
        assert_eq!(programming.pending_for(at(500)), None);
        assert_eq!(programming.numbers().services, Changes { total: 41, pending: 0 });
    }

    fn service() -> Change {
        Change::Delete(ObjectRef::Service(sluice_model::ObjectName::new("default", "web")))
    }
}
