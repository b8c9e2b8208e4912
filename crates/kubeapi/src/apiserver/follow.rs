//! Follows one resource: list, watch, and recovery when either fails. One task per resource.
//!
//! ```text
//!           complete                  410, or an error that a list may mend
//!   List ───────────► Watch(version) ───────────► List
//!    ▲ │                 ▲ │
//!    └─┘ failed: wait    └─┘ ended, cut, dead: wait unless it had lived, go on from the last version
//! ```

mod list;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Change, ObjectRef};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::answer::{self, Answer};
use super::backoff::Backoff;
use super::config::Timing;
use super::decode::{self, Decoded, Event, EventKind, MAX_OBJECT_BYTES, Meaning};
use super::health::{Health, ResourceHealth};
use super::lines::{Line, Lines};
use super::milestones::{Milestone, Milestones};
use super::names::Names;
use super::own_node::OwnNode;
use super::paging::Paging;
use super::reason::{self, Failure, Reason};
use super::resource::Resource;
use super::resume::{Resume, resume};
use super::transport::Transport;
use super::warned::Warned;

/// News from a follower.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Changes, in order.
    Changes(Vec<Change>),
    /// Every object of the resource has been reported at least once.
    Listed(Resource),
    /// An attempt to list the resource has failed; the next one may succeed.
    Failed(Resource),
    /// Listing the resource is forbidden, until somebody changes that.
    Denied(Resource),
}

/// Follows one resource.
#[derive(Debug)]
pub(super) struct Follower {
    resource: Resource,
    node: String,
    timing: Timing,
    transport: Arc<Transport>,
    health: Arc<Health>,
    news: mpsc::Sender<News>,
    backoff: Backoff,
    /// The names of objects that have been applied and not deleted.
    known: HashSet<ObjectRef>,
    /// Names that many objects share.
    names: Names,
    /// What was wrong with each object when it was last seen.
    warned: Warned,
    paging: Paging,
    /// The apiserver does not support the field of the selector.
    lacks_field: bool,
    /// There was a failure, and no success since.
    troubled: bool,
    /// How often in a row the apiserver answered that it has no such resource.
    not_found: usize,
    own_node: OwnNode,
    flaps: Flaps,
}

/// Whether watches that work are repeatedly cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaps {
    No,
    /// The last one worked, but has not lasted yet.
    Maybe,
    /// A working one was cut.
    Yes,
}

/// The state of a follower.
#[derive(Debug)]
enum State {
    /// Everything has to be read.
    List,
    /// All changes up to this version are known.
    Watch(String),
    /// The cluster does not have this resource.
    Absent,
}

impl Follower {
    pub(super) fn new(
        resource: Resource,
        node: String,
        timing: Timing,
        transport: Arc<Transport>,
        health: Arc<Health>,
        news: mpsc::Sender<News>,
    ) -> Self {
        Self {
            backoff: Backoff::new(timing.backoff_min, timing.backoff_max),
            paging: Paging::new(timing.page),
            lacks_field: false,
            known: HashSet::new(),
            names: Names::default(),
            warned: Warned::default(),
            troubled: false,
            not_found: 0,
            own_node: OwnNode::default(),
            flaps: Flaps::No,
            resource,
            node,
            timing,
            transport,
            health,
            news,
        }
    }

    /// Follows the resource until nobody receives its news.
    pub(super) async fn run(mut self) {
        let mut state = State::List;
        while !self.news.is_closed() {
            state = match state {
                State::List => self.list().await,
                State::Watch(version) => self.watch(version).await,
                State::Absent => {
                    sleep(self.timing.absent.mul_f64(1.0 + rand::random::<f64>())).await;
                    State::List
                }
            };
        }
    }

    async fn list(&mut self) -> State {
        match self.read_list().await {
            Ok(version) => {
                self.paging.done();
                self.not_found = 0;
                self.look_for_node();
                self.health().was_listed();
                self.health.contact(self.resource);
                self.say(News::Listed(self.resource)).await;
                State::Watch(version)
            }
            Err(Failure { reason: Reason::Status(404, _), .. }) if self.is_absent() => {
                tracing::debug!(resource = %self.resource, "the cluster has none of these");
                self.health().is_absent();
                let gone = self.known.drain().map(Change::Delete).collect();
                self.warned = Warned::default();
                self.say(News::Changes(gone)).await;
                self.backoff.reset();
                self.well();
                self.say(News::Listed(self.resource)).await;
                State::Absent
            }
            Err(failure) if self.lacks_field(&failure) => State::List,
            Err(failure) => {
                self.paging.failed(failure.reason == Reason::Expired);
                let delay = self.delay(&failure);
                let news = match failure.reason {
                    Reason::Forbidden(_) => News::Denied,
                    _ => News::Failed,
                };
                self.say(news(self.resource)).await;
                sleep(delay).await;
                State::List
            }
        }
    }

    /// Whether a 404 means that the cluster has no such resource. If it had some, that takes many 404s in a row:
    /// while a cluster's apiservers are upgraded one after another, some know the resource and some do not.
    fn is_absent(&mut self) -> bool {
        self.not_found += 1;
        self.resource.may_be_absent() && (self.known.is_empty() || self.not_found >= NOT_FOUND_MAX)
    }

    /// Runs one watch from start to end.
    async fn watch(&mut self, mut version: String) -> State {
        let started = Instant::now();
        let end = self.read_events(&mut version).await;
        self.health().restarted();
        match end {
            Ok(()) => {
                // Every watch ends at some time. One that ends at once must not be restarted in a tight loop.
                if started.elapsed() < self.timing.backoff_min {
                    sleep(self.backoff.failed(rand::random())).await;
                }
                State::Watch(version)
            }
            // One list or watch may go to a newer apiserver, and the next one to an older one.
            Err(failure) if self.lacks_field(&failure) => State::Watch(version),
            Err(failure) => {
                if self.flaps == Flaps::Maybe {
                    self.flaps = Flaps::Yes;
                }
                let delay = self.delay(&failure);
                sleep(delay).await;
                match resume(&failure.reason) {
                    Resume::Watch => State::Watch(version),
                    Resume::List => State::List,
                }
            }
        }
    }

    /// Reads events until the watch ends, and updates `version`.
    async fn read_events(&mut self, version: &mut String) -> Result<(), Failure> {
        let mut query = self.selectors();
        // Between one and two times as long, so that watches do not all end at once.
        let seconds = self.timing.watch.mul_f64(1.0 + rand::random::<f64>()).as_secs().max(1);
        query.extend([
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("resourceVersion", version.clone()),
            ("timeoutSeconds", seconds.to_string()),
        ]);
        let mut answer = self.get(&query).await?;
        let open = self.health.open(self.resource);
        // An apiserver ends a watch in time. If it stays open for longer, something in between keeps it open,
        // and the next request shows whether the apiserver is there. Until then it may be silent: the
        // connection's own probes tell whether it is alive.
        let overdue = Duration::from_secs(seconds) + self.timing.answer;
        let Timing { backoff_min, backoff_max, .. } = self.timing;
        let mut milestones = Milestones::new(Instant::now(), backoff_min, backoff_max, overdue);
        let mut lines = Lines::new(MAX_OBJECT_BYTES + MAX_EVENT_OVERHEAD);
        loop {
            let now = Instant::now();
            match milestones.reached(now) {
                Some(Milestone::Works) => self.works(),
                Some(Milestone::Lasts) => {
                    self.flaps = Flaps::No;
                    self.well();
                }
                Some(Milestone::Overdue) => {
                    tracing::debug!(resource = %self.resource, "a watch was not ended in time");
                    return Ok(());
                }
                None => {}
            }
            let bytes = match answer.chunk(milestones.left(now)).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) if lines.is_empty() => {
                    open.ended_well();
                    return Ok(());
                }
                Ok(None) => {
                    let what = "it ended in the middle of an event".to_owned();
                    return Err(answer.failure(Reason::Unreachable(what)));
                }
                Err(Failure { reason: Reason::Silent(_), .. }) => continue,
                Err(failure) => {
                    self.transport.give_up(answer.index(), &failure.reason).await;
                    return Err(failure);
                }
            };
            lines.push(&bytes);
            let mut changes = Vec::new();
            let mut failed = None;
            while let Some(line) = lines.next() {
                if let Err(reason) = self.event(line, version, &mut changes) {
                    failed = Some(reason);
                    break;
                }
            }
            self.look_for_node();
            // Events that came before an error count.
            self.say(News::Changes(changes)).await;
            if let Some((reason, retry_after)) = failed {
                return Err(Failure { retry_after, ..answer.failure(reason) });
            }
            self.health.contact(self.resource);
        }
    }

    fn event(
        &mut self,
        line: Line<'_>,
        version: &mut String,
        changes: &mut Vec<Change>,
    ) -> Result<(), (Reason, Option<Duration>)> {
        let bytes = match line {
            Line::Whole([]) => return Ok(()),
            Line::Whole(bytes) => bytes,
            Line::TooLong => {
                self.skip(None, "an event of a size that no apiserver sends");
                return Ok(());
            }
        };
        let event: Event<'_> = serde_json::from_slice(bytes)
            .map_err(|error| (Reason::NotUnderstood(reason::one_line(&error.to_string())), None))?;
        let seen = match event.kind {
            EventKind::Applied => {
                let object = decode::object(self.resource, event.object.get());
                let seen = object.version.clone();
                self.apply(object, changes);
                seen
            }
            EventKind::Deleted => {
                let object = decode::identity(event.object.get()).metadata;
                let namespace = object.namespace.as_deref();
                if let Some(name) = object.name.map(|name| self.resource.reference(namespace, &name)) {
                    self.forget(&name, changes);
                }
                object.version
            }
            EventKind::Bookmark => decode::identity(event.object.get()).metadata.version,
            EventKind::Error => {
                let status: decode::Status = serde_json::from_str(event.object.get()).unwrap_or_default();
                let retry_after = status.details.and_then(|details| details.retry_after);
                let reason = answer::of_status(self.resource, status.code, &status.message);
                return Err((reason, answer::seconds(retry_after)));
            }
            EventKind::Unknown => None,
        };
        if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
            *version = seen;
        }
        Ok(())
    }

    /// Turns an object into a change. Returns its name, if it has a readable one.
    fn apply(&mut self, object: Decoded, changes: &mut Vec<Change>) -> Option<ObjectRef> {
        match object.meaning {
            Meaning::Counts(mut object, problems) => {
                self.names.share(&mut object);
                let name = object.reference();
                self.health().leave_out(problems.len());
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                self.warn_once(Some(&name), &problems.join("; "));
                self.known.insert(name.clone());
                changes.push(Change::Apply(object));
                Some(name)
            }
            Meaning::Ignored(skip) => {
                let name = object.reference?;
                tracing::debug!(object = %name, reason = %skip, "not served");
                self.forget(&name, changes);
                Some(name)
            }
            Meaning::Broken(why) => {
                self.skip(object.reference.as_ref(), &why);
                object.reference
            }
        }
    }

    fn forget(&mut self, name: &ObjectRef, changes: &mut Vec<Change>) {
        self.warn_once(Some(name), "");
        if self.known.remove(name) {
            changes.push(Change::Delete(name.clone()));
        }
    }

    fn look_for_node(&mut self) {
        if self.resource == Resource::Node {
            let has_node = !self.known.is_empty();
            self.own_node.seen(&self.node, has_node);
            self.health.set_has_node(has_node);
        }
    }

    fn skip(&mut self, name: Option<&ObjectRef>, why: &str) {
        self.health().skip();
        let why = format!("cannot be used, and stays as it was, if it was: {why}: correct the object");
        self.warn_once(name, &why);
    }

    /// Warns, unless this was the last warning about the object. An empty `what` means that nothing is wrong.
    fn warn_once(&mut self, name: Option<&ObjectRef>, what: &str) {
        let what = reason::one_line(what);
        if self.warned.is_news(name, &what) {
            let subject = name.map_or_else(|| format!("one of the {}", self.resource), ToString::to_string);
            tracing::warn!("{subject}: {what}");
        }
    }

    fn selectors(&self) -> Vec<(&'static str, String)> {
        let mut selectors = self.resource.selectors(&self.node);
        selectors.retain(|(kind, _)| !(self.lacks_field && *kind == "fieldSelector"));
        selectors
    }

    /// Whether the request failed because of the selector's field. If so, later requests leave it out.
    fn lacks_field(&mut self, failure: &Failure) -> bool {
        let is_news = !self.lacks_field && self.resource.lacks_field(&failure.reason);
        if is_news {
            tracing::info!("the apiserver is of Kubernetes 1.30 or before: headless Services come, too");
        }
        self.lacks_field |= is_news;
        is_news
    }

    async fn get(&self, query: &[(&str, String)]) -> Result<Answer, Failure> {
        let on_answer = |outcome, took| self.health.answered(outcome, took);
        self.transport.get(self.resource, query, || self.health().requested(), on_answer).await
    }

    /// Notes a failure. Returns the delay before the next request.
    fn delay(&mut self, failure: &Failure) -> Duration {
        self.troubled = true;
        self.health.failed(self.resource, failure);
        let delay = self.backoff.failed(rand::random());
        delay.max(failure.retry_after.unwrap_or_default())
    }

    /// Notes that a watch works: the next one need not wait for long. Recovery is logged once, not after each of
    /// the watches that are cut soon after they have worked (a balancer may close all long connections). For
    /// those it is logged when one lasts.
    fn works(&mut self) {
        self.backoff.reset();
        match self.flaps {
            Flaps::Yes => self.health.contact(self.resource),
            Flaps::No | Flaps::Maybe => {
                self.flaps = Flaps::Maybe;
                self.well();
            }
        }
    }

    fn well(&mut self) {
        if std::mem::take(&mut self.troubled) {
            self.health.well(self.resource);
        } else {
            self.health.contact(self.resource);
        }
    }

    fn health(&self) -> &ResourceHealth {
        self.health.of(self.resource)
    }

    /// Reports news. If nobody receives it, `run` ends before the next step.
    async fn say(&self, news: News) {
        if news != News::Changes(Vec::new()) {
            let _ = self.news.send(news).await;
        }
    }
}

/// The number of 404s in a row after which a resource that existed counts as gone: about three minutes, by backoff.
const NOT_FOUND_MAX: usize = 10;

/// The size of an event without its object.
const MAX_EVENT_OVERHEAD: usize = 1024;
