//! Events (events.k8s.io/v1): what `kubectl get events` shows of this agent, as for kube-proxy. Callers put
//! Events into a queue and do not wait; one task writes them at a bounded rate. Events above the rate are
//! counted and dropped; the log has them anyway.

mod forbidden;
mod series;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sluice_kubeapi::apiserver::{EventError, EventWriter};
use sluice_model::ObjectName;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tracing::{debug, info, warn};

use forbidden::Forbidden;
use series::{Recorder, Request};

/// How many Events may wait to be written.
const QUEUE: usize = 100;

/// How often repetitions are written. client-go writes the first one at once, and then waits for minutes.
const TELL_REPEATED: Duration = Duration::from_secs(30);

/// How often an Event is tried, and the pause in between.
const TRIES: usize = 3;
const RETRY: Duration = Duration::from_secs(10);

/// The longest pause, even if the apiserver asks for a longer one.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum About {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
}

impl About {
    /// The namespace of its Events: those about a Node, which has no namespace, are in `default`.
    fn namespace(&self) -> &str {
        match self {
            Self::Node => "default",
            Self::Service(service) => &service.namespace,
        }
    }
}

/// The severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

/// Something that people should see at an object.
#[derive(Debug, Clone)]
pub(crate) struct Happening {
    pub(crate) about: About,
    pub(crate) kind: Kind,
    /// The reason in one word, for scripts.
    pub(crate) reason: &'static str,
    /// What was done or attempted, in one word.
    pub(crate) action: &'static str,
    /// The text, for people.
    pub(crate) note: String,
}

/// A sender of Events. Clones share it; the default one discards everything.
#[derive(Debug, Clone, Default)]
pub struct Events {
    queue: Option<Sender<Happening>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Events that nobody writes yet.
#[derive(Debug)]
pub(crate) struct Unwritten(Receiver<Happening>);

impl Events {
    /// A queue, and its other end for [`Events::write`]. If that end is dropped, Events are discarded.
    pub(crate) fn new() -> (Self, Unwritten) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue: Some(queue), counts: Arc::default() }, Unwritten(receiver))
    }

    /// Queues an Event; never waits.
    pub(crate) fn say(&self, happening: Happening) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(happening) {
            self.counts.drop_one();
        }
    }

    /// Queues a warning about a Service.
    pub(crate) fn warn(
        &self,
        service: &ObjectName,
        reason: &'static str,
        action: &'static str,
        note: impl Into<String>,
    ) {
        let about = About::Service(service.clone());
        self.say(Happening { about, kind: Kind::Warning, reason, action, note: note.into() });
    }

    /// How many Events were written, including updates of their counts.
    pub(crate) fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Relaxed)
    }

    /// How many Events were dropped: there were too many at a time, or the apiserver refused them.
    pub(crate) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Writes the queued Events in a task of its own until all senders are gone.
    pub(crate) fn write(&self, unwritten: Unwritten, writer: EventWriter, node: &str) {
        let recorder = Recorder::new(node);
        let task =
            Task { writer, recorder, counts: Arc::clone(&self.counts), forbidden: Forbidden::default() };
        tokio::spawn(task.run(unwritten.0));
    }
}

struct Task {
    writer: EventWriter,
    recorder: Recorder,
    counts: Arc<Counts>,
    forbidden: Forbidden,
}

impl Task {
    async fn run(mut self, mut queue: Receiver<Happening>) {
        let mut repeated = tokio::time::interval(TELL_REPEATED);
        loop {
            tokio::select! {
                happening = queue.recv() => match happening {
                    Some(happening) => self.take(&happening).await,
                    None => return,
                },
                _ = repeated.tick() => {
                    for request in self.recorder.repeated(Instant::now()) {
                        self.send(request).await;
                    }
                }
            }
        }
    }

    async fn take(&mut self, happening: &Happening) {
        if self.forbidden.is_so(happening.about.namespace(), Instant::now()) {
            return self.counts.drop_one();
        }
        match self.recorder.take(happening, Instant::now(), Timestamp::now()) {
            Ok(Some(request)) => self.send(request).await,
            Ok(None) => {}
            Err(series::TooMany) => self.counts.drop_one(),
        }
    }

    async fn send(&mut self, request: Request) {
        for attempt in 1..=TRIES {
            let sent = match &request {
                Request::Create { event, .. } => self.writer.create(event).await,
                Request::Patch { name, part, .. } => self.writer.patch(name, part).await,
            };
            let wait = match sent {
                Ok(()) => {
                    if self.forbidden.remove(request.namespace()) {
                        info!("Events are written again in {}", request.namespace());
                    }
                    self.counts.written.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(error @ EventError::Forbidden(_)) => {
                    let namespace = request.namespace();
                    // One warning is enough for all namespaces that lack the right.
                    if self.forbidden.add(namespace.to_owned(), Instant::now()) {
                        warn!("no Events are written in {namespace}, all else goes on: {error}");
                    } else {
                        debug!("no Events are written in {namespace}: {error}");
                    }
                    break;
                }
                // It was deleted with its namespace, or when it expired (after an hour): the next one is a new
                // Event.
                Err(EventError::Gone) => break,
                // As in client-go: a retry would be refused too.
                Err(error @ EventError::Refused(_)) => {
                    debug!("an Event was refused: {error}");
                    break;
                }
                Err(EventError::Busy(after)) => after.unwrap_or(RETRY).min(RETRY_MAX),
                Err(error @ EventError::Other(_)) => {
                    debug!("an Event was not written: {error}");
                    RETRY
                }
            };
            if attempt < TRIES {
                tokio::time::sleep(wait).await;
            }
        }
        self.counts.drop_one();
        self.recorder.forget(request);
    }
}
