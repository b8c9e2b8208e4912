//! Whether what was queued has reached the kernel: since when a change waits, and when all was last up to date. Written
//! by whoever hands changes over and by the controller; read by anyone. (kube-proxy: `QueuedUpdate` and `Updated` of
//! `healthcheck/proxy_health.go`.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use prometheus_client::metrics::histogram::{Histogram, linear_buckets};
use sluice_model::{Change, Object, ObjectRef};

/// The state of what is queued.
#[derive(Debug)]
pub(crate) struct Programming {
    state: Mutex<State>,
    /// Seconds.
    network_durations: Histogram,
    /// What changed before is no measure of this agent.
    started: SystemTime,
}

impl Default for Programming {
    fn default() -> Self {
        // kube-proxy's (`NetworkProgrammingLatency`).
        let buckets = linear_buckets(0.25, 0.25, 2).chain(linear_buckets(1.0, 1.0, 59));
        let buckets = buckets.chain(linear_buckets(60.0, 5.0, 12)).chain(linear_buckets(120.0, 30.0, 7));
        let (state, started) = (Mutex::default(), SystemTime::now());
        Self { state, network_durations: Histogram::new(buckets), started }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Batches of changes that were handed over.
    queued: u64,
    /// Those of them that the proxy has taken in.
    taken: u64,
    /// Since when the oldest that has not taken effect waits.
    oldest: Option<Instant>,
    numbers: Numbers,
}

/// What there was so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers {
    /// When changes last took effect.
    pub updated: Option<Timestamp>,
    /// When changes were last handed over.
    pub last_queued: Option<Timestamp>,
    pub services: Changes,
    /// Of EndpointSlices.
    pub endpoints: Changes,
}

/// Changes of one kind of object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub total: u64,
    /// Those that have not taken effect. A batch that comes while another is under way makes these last as long as it.
    pub pending: u64,
}

impl Numbers {
    fn count(&mut self, change: &Change) {
        let changes = match change {
            Change::Apply(Object::Service(_)) | Change::Delete(ObjectRef::Service(_)) => &mut self.services,
            Change::Apply(Object::EndpointSlice(_)) | Change::Delete(ObjectRef::EndpointSlice(_)) => {
                &mut self.endpoints
            }
            _ => return,
        };
        changes.total += 1;
        changes.pending += 1;
    }
}

impl Programming {
    /// A batch of changes is handed over now.
    pub(crate) fn queued(&self, now: Instant, changes: &[Change]) {
        let mut state = self.lock();
        state.numbers.last_queued = Some(Timestamp::now());
        changes.iter().for_each(|change| state.numbers.count(change));
        state.queued += 1;
        state.oldest.get_or_insert(now);
    }

    /// The proxy knows this many more batches.
    pub(crate) fn taken(&self, batches: u64) {
        self.lock().taken += batches;
    }

    /// All that was taken has taken effect; where `is_good` is false only as far as that could be done.
    pub(crate) fn settled(&self, now: Instant, is_good: bool) {
        let mut state = self.lock();
        if state.oldest.is_none() || !is_good {
            return;
        }
        // What came in since has not waited for longer than this.
        state.oldest = (state.taken != state.queued).then_some(now);
        state.numbers.updated = Some(Timestamp::now());
        if state.oldest.is_none() {
            (state.numbers.services.pending, state.numbers.endpoints.pending) = (0, 0);
        }
    }

    /// Changes of endpoints that happened in the cluster at these times have taken effect now.
    pub(crate) fn endpoints_settled(&self, triggers: &[SystemTime], now: SystemTime) {
        for trigger in triggers.iter().filter(|trigger| **trigger > self.started) {
            // A clock that is behind makes no time negative.
            let took = now.duration_since(*trigger).unwrap_or_default();
            self.network_durations.observe(took.as_secs_f64());
        }
    }

    /// How long it took from changes of endpoints in the cluster until they had taken effect.
    pub(crate) fn network_durations(&self) -> &Histogram {
        &self.network_durations
    }

    /// For how long a change has waited; none where nothing waits.
    pub(crate) fn pending_for(&self, now: Instant) -> Option<Duration> {
        self.lock().oldest.map(|since| now.saturating_duration_since(since))
    }

    /// When changes last took effect.
    pub(crate) fn updated(&self) -> Option<Timestamp> {
        self.lock().numbers.updated
    }

    /// What there was so far.
    pub(crate) fn numbers(&self) -> Numbers {
        self.lock().numbers
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
        programming.settled(at(0), true);
        assert_eq!((waits(0), programming.updated()), (None, None), "nothing was queued so far");

        let service = Change::Delete(ObjectRef::Service(sluice_model::ObjectName::new("default", "web")));
        programming.queued(at(10), &[service.clone(), service]);
        programming.queued(at(20), &[]);
        programming.taken(1);
        assert_eq!(waits(30), Some(20), "the oldest counts");
        programming.settled(at(40), false);
        assert_eq!((waits(40), programming.updated()), (Some(30), None), "an attempt that failed is none");
        programming.settled(at(50), true);
        assert_eq!(waits(60), Some(10), "one of two is not in it");
        assert!(programming.updated().is_some());
        assert_eq!(
            programming.numbers().services,
            Changes { total: 2, pending: 2 },
            "it may be one of these"
        );
        programming.taken(1);
        programming.settled(at(70), true);
        assert_eq!(waits(80), None);
        assert_eq!(programming.numbers().services, Changes { total: 2, pending: 0 });
        assert_eq!(programming.numbers().endpoints, Changes::default());
    }
}
