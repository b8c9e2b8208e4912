//! Faults on demand. Each takes effect at once, on open watches too, and lasts until it is used up or
//! cleared.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::counters::Verb;
use super::resource::Resource;

/// The requests that a fault affects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target {
    /// Only this verb.
    pub verb: Option<Verb>,
    /// Only this resource.
    pub resource: Option<Resource>,
}

impl Target {
    /// All requests, including those for no resource.
    pub const ANY: Self = Self { verb: None, resource: None };

    /// Requests with this verb.
    pub const fn verb(verb: Verb) -> Self {
        Self { verb: Some(verb), resource: None }
    }

    /// Requests for this resource.
    pub const fn resource(resource: Resource) -> Self {
        Self { verb: None, resource: Some(resource) }
    }

    /// Restricts the target to this resource.
    #[must_use]
    pub const fn of(self, resource: Resource) -> Self {
        Self { resource: Some(resource), ..self }
    }

    fn matches(self, of: Option<(Verb, Resource)>) -> bool {
        let (verb, resource) = of.unzip();
        (self.verb.is_none() || self.verb == verb) && (self.resource.is_none() || self.resource == resource)
    }
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 401.
    Unauthorized,
    /// 403 that names the verb and the resource, as RBAC does.
    Forbidden,
    /// 429 with `Retry-After`.
    TooManyRequests {
        /// Seconds.
        retry_after: u32,
    },
    /// 410, as for a continued list whose revision is forgotten.
    Expired,
    /// 422, as for an invalid object.
    Invalid,
    /// 500.
    InternalError,
    /// 503.
    Unavailable,
    /// 200 with a page that is not JSON, as from a proxy in between.
    Garbage,
    /// The connection is closed without an answer.
    Disconnect,
    /// There is never an answer.
    Hang,
}

/// How a watch from a forgotten revision is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// 200, and an ERROR event with a Status of 410: what apiservers do.
    #[default]
    Event,
    /// HTTP 410.
    Status,
}

/// How fast bodies are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Throttle {
    pub(crate) bytes: usize,
    pub(crate) interval: Duration,
}

/// Switches faults on and off.
#[derive(Debug, Default)]
pub struct Faults {
    plan: Mutex<Plan>,
    /// Changes whenever watches should check for a fault or a write.
    tick: Arc<watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct Plan {
    failures: Vec<(Target, Failure, usize)>,
    expiry: Expiry,
    expirations: usize,
    cut_events: Vec<(Target, usize)>,
    throttle: Option<Throttle>,
    silent: bool,
    held: HashMap<Resource, u64>,
    orders: Orders,
}

/// The numbers of the latest orders to all open watches. A watch follows those after its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    pub(crate) cut: u64,
    pub(crate) close: u64,
    pub(crate) bookmark: u64,
}

/// The faults that affect a watch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatchFaults {
    pub(crate) orders: Orders,
    pub(crate) silent: bool,
    /// Changes after this revision are withheld.
    pub(crate) held_after: Option<u64>,
}

impl Faults {
    /// Faults that wake watches through `tick`.
    pub(crate) fn new(tick: Arc<watch::Sender<()>>) -> Self {
        Self { plan: Mutex::default(), tick }
    }

    /// The next `times` matching requests fail. Several failures for the same requests are used up one after
    /// the other.
    pub fn fail(&self, target: Target, failure: Failure, times: usize) {
        self.change(|plan| plan.failures.push((target, failure, times)));
    }

    /// Cuts every open watch, as if its connection had broken.
    pub fn cut_watches(&self) {
        self.change(|plan| plan.orders.cut += 1);
    }

    /// Ends every open watch normally, as at its timeout.
    pub fn close_watches(&self) {
        self.change(|plan| plan.orders.close += 1);
    }

    /// Cuts the watch that sends the next event for a target after this many bytes of the event. Over
    /// HTTP/1.1 these bytes arrive; over HTTP/2 the reset of the stream may overtake them.
    pub fn cut_next_event(&self, target: Target, after_bytes: usize) {
        self.change(|plan| plan.cut_events.push((target, after_bytes)));
    }

    /// The next `times` watches are refused because their revision is too old, whatever it is.
    pub fn expire_next_watches(&self, times: usize) {
        self.change(|plan| plan.expirations = times);
    }

    /// Sets how that is reported, also to watches whose revision is really forgotten.
    pub fn expire_as(&self, expiry: Expiry) {
        self.change(|plan| plan.expiry = expiry);
    }

    /// Watches stay open and can be opened, but nothing is sent on them.
    pub fn silence_watches(&self) {
        self.change(|plan| plan.silent = true);
    }

    /// Ends [`Faults::silence_watches`]. Watches continue where they were.
    pub fn end_silence(&self) {
        self.change(|plan| plan.silent = false);
    }

    /// Bodies are sent in pieces of `bytes` at this interval.
    pub fn throttle(&self, bytes: usize, interval: Duration) {
        self.change(|plan| plan.throttle = Some(Throttle { bytes, interval }));
    }

    /// Ends [`Faults::throttle`].
    pub fn end_throttle(&self) {
        self.change(|plan| plan.throttle = None);
    }

    /// Ends [`Apiserver::hold`](super::Apiserver::hold).
    pub fn release(&self, resource: Resource) {
        self.change(|plan| {
            plan.held.remove(&resource);
        });
    }

    /// Ends all lasting faults. Watches that were cut stay cut.
    pub fn clear(&self) {
        self.change(|plan| *plan = Plan { orders: plan.orders, ..Plan::default() });
    }

    /// Watches get no changes to this resource after this revision.
    pub(crate) fn hold_after(&self, resource: Resource, revision: u64) {
        self.change(|plan| {
            plan.held.entry(resource).or_insert(revision);
        });
    }

    pub(crate) fn order_bookmarks(&self) {
        self.change(|plan| plan.orders.bookmark += 1);
    }

    pub(crate) fn ticks(&self) -> watch::Receiver<()> {
        self.tick.subscribe()
    }

    pub(crate) fn for_watch(&self, resource: Resource) -> WatchFaults {
        let plan = self.lock();
        WatchFaults {
            orders: plan.orders,
            silent: plan.silent,
            held_after: plan.held.get(&resource).copied(),
        }
    }

    /// Waits for a cut after this one.
    pub(crate) async fn cut_after(&self, cut: u64) {
        let mut ticks = self.ticks();
        while self.lock().orders.cut == cut {
            if ticks.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn take_failure(&self, of: Option<(Verb, Resource)>) -> Option<Failure> {
        let mut plan = self.lock();
        let (_, failure, left) =
            plan.failures.iter_mut().find(|(target, _, left)| *left > 0 && target.matches(of))?;
        let failure = *failure;
        *left -= 1;
        plan.failures.retain(|(_, _, left)| *left > 0);
        Some(failure)
    }

    pub(crate) fn take_expiration(&self) -> bool {
        let mut plan = self.lock();
        let due = plan.expirations > 0;
        plan.expirations = plan.expirations.saturating_sub(1);
        due
    }

    pub(crate) fn expiry(&self) -> Expiry {
        self.lock().expiry
    }

    pub(crate) fn take_event_cut(&self, resource: Resource) -> Option<usize> {
        let mut plan = self.lock();
        let of = Some((Verb::Watch, resource));
        let due = plan.cut_events.iter().position(|(target, _)| target.matches(of))?;
        Some(plan.cut_events.remove(due).1)
    }

    pub(crate) fn throttle_now(&self) -> Option<Throttle> {
        self.lock().throttle
    }

    fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.lock());
        self.tick.send_modify(|()| {});
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_used_up_by_the_requests_they_are_for() {
        let faults = Faults::default();
        let list = Target::verb(Verb::List).of(Resource::Services);
        faults.fail(list, Failure::InternalError, 1);
        faults.fail(list, Failure::TooManyRequests { retry_after: 2 }, 1);
        assert_eq!(faults.take_failure(Some((Verb::Watch, Resource::Services))), None);
        assert_eq!(faults.take_failure(None), None);
        let next = || faults.take_failure(Some((Verb::List, Resource::Services)));
        assert_eq!(next(), Some(Failure::InternalError));
        assert_eq!(next(), Some(Failure::TooManyRequests { retry_after: 2 }));
        assert_eq!(next(), None);
        faults.fail(Target::ANY, Failure::Hang, usize::MAX);
        assert_eq!(faults.take_failure(None), Some(Failure::Hang));
        faults.clear();
        assert_eq!(faults.take_failure(None), None);
    }
}
