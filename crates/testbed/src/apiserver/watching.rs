//! A watch: follows the changes to a part of a resource and sends them as events.
//!
//! Each watch pulls from the history at its own pace and remembers only its position, so a client that does
//! not read costs nothing. If it falls behind the history, it gets 410. Runs as a task of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::body::{Closed, Pipe};
use super::counters::OpenWatch;
use super::faults::{Orders, WatchFaults};
use super::negotiate::Format;
use super::object::{Object, type_meta};
use super::query::{Initial, WatchQuery};
use super::resource::Resource;
use super::selector::Scope;
use super::status::Status;
use super::store::{Change, ChangeKind};
use super::table::{Include, table};

/// The number of changes examined before they are sent.
const BATCH: usize = 256;
/// The size up to which events are sent together.
const CHUNK_BYTES: usize = 64 * 1024;

/// A watch that is being served.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    resource: Resource,
    scope: Scope,
    format: Format,
    include: Include,
    bookmarks: bool,
    timeout: Duration,
    /// All changes up to this revision were examined.
    cursor: u64,
    backlog: Vec<Arc<Object>>,
    /// A bookmark is due after the backlog.
    initial_bookmark: bool,
    /// The periodic bookmark is due as soon as there is nothing else to send.
    bookmark_due: bool,
    /// Nothing but this 410 is sent.
    expired: Option<Status>,
    orders: Orders,
    columns_sent: bool,
    _open: OpenWatch,
}

/// The next step of a watch.
enum Step {
    Send(Vec<Bytes>),
    /// Sends this, and ends.
    Fail(Status),
    Cut,
    End,
    Wait,
}

impl Watch {
    /// Starts as `query` says. Existing objects are selected now, and sent later.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        resource: Resource,
        scope: Scope,
        query: &WatchQuery,
        format: Format,
        include: Include,
    ) -> Self {
        let registry = shared.registry();
        let store = &registry.store;
        let backlog = match query.initial {
            Initial::Nothing => Vec::new(),
            _ => store.page(resource, &scope, store.revision(), None, usize::MAX).items,
        };
        let after = match query.initial {
            Initial::Nothing => query.after.unwrap_or(store.revision()),
            _ => store.revision(),
        };
        let expired = if shared.faults.take_expiration() {
            Some(Status::expired(format!("too old resource version: {after} ({})", store.revision())))
        } else {
            store.check_not_compacted(after).err()
        };
        Self {
            shared: Arc::clone(shared),
            resource,
            scope,
            format,
            include,
            bookmarks: query.bookmarks,
            timeout: query.timeout,
            cursor: after,
            backlog,
            initial_bookmark: query.initial == Initial::ObjectsAndBookmark,
            bookmark_due: false,
            expired,
            orders: shared.faults.for_watch(resource).orders,
            columns_sent: false,
            _open: OpenWatch::new(&shared.counters, resource),
        }
    }

    /// Why the watch is refused, if it is.
    pub(crate) fn expired(&self) -> Option<&Status> {
        self.expired.as_ref()
    }

    /// Serves the watch until it ends.
    pub(crate) async fn serve(mut self, pipe: Pipe) {
        let mut ticks = self.shared.faults.ticks();
        let end = Instant::now() + self.timeout;
        let period = self.shared.config.bookmark_interval;
        let mut next_bookmark = Instant::now() + period;
        loop {
            ticks.mark_unchanged();
            if Instant::now() >= end {
                let last = self.last_bookmark();
                let _ = self.send(&pipe, last.into_iter().collect()).await;
                return;
            }
            if Instant::now() >= next_bookmark {
                next_bookmark += period;
                self.bookmark_due = self.shared.has_bookmarks(self.resource);
            }
            match self.step() {
                Step::Send(events) => {
                    if self.send(&pipe, events).await.is_err() {
                        return;
                    }
                }
                Step::Fail(status) => {
                    let event = encode("ERROR", &status.to_json());
                    let _ = self.send(&pipe, vec![event]).await;
                    return;
                }
                Step::Cut => return pipe.cut().await,
                Step::End => return,
                Step::Wait => tokio::select! {
                    changed = ticks.changed() => if changed.is_err() { return },
                    () = pipe.closed() => return,
                    () = sleep_until(end.min(next_bookmark)) => {}
                },
            }
        }
    }

    fn step(&mut self) -> Step {
        let faults = self.shared.faults.for_watch(self.resource);
        if faults.orders.cut != self.orders.cut {
            return Step::Cut;
        }
        if faults.orders.close != self.orders.close {
            return Step::End;
        }
        if faults.silent {
            return Step::Wait;
        }
        if let Some(status) = self.expired.take() {
            return Step::Fail(status);
        }
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            return Step::Send(backlog.iter().map(|object| self.event("ADDED", object)).collect());
        }
        if std::mem::take(&mut self.initial_bookmark) && self.bookmarks {
            let annotations = json!({ "k8s.io/initial-events-end": "true" });
            return Step::Send(vec![self.bookmark(annotations)]);
        }
        match self.next_changes(&faults) {
            Err(status) => Step::Fail(status),
            Ok(changes) if changes.is_empty() => {
                let ordered = self.orders.bookmark != faults.orders.bookmark;
                self.orders.bookmark = faults.orders.bookmark;
                let due = std::mem::take(&mut self.bookmark_due) || ordered;
                if due && self.bookmarks { Step::Send(vec![self.bookmark(Value::Null)]) } else { Step::Wait }
            }
            Ok(changes) => Step::Send(changes.iter().filter_map(|change| self.event_of(change)).collect()),
        }
    }

    /// The next visible changes, and the position after them.
    fn next_changes(&mut self, faults: &WatchFaults) -> Result<Vec<Arc<Change>>, Status> {
        let registry = self.shared.registry();
        let store = &registry.store;
        let up_to = faults.held_after.unwrap_or(u64::MAX).min(store.revision());
        if up_to <= self.cursor {
            return Ok(Vec::new());
        }
        let changes = store.changes(self.resource, self.cursor, up_to, BATCH)?;
        drop(registry);
        let last = changes.last().filter(|_| changes.len() == BATCH);
        self.cursor = last.map_or(up_to, |change| change.revision());
        Ok(changes)
    }

    /// The event of a change for this watch: an object that starts or stops matching is added or deleted.
    fn event_of(&mut self, change: &Change) -> Option<Bytes> {
        let matches = change.kind != ChangeKind::Deleted && self.scope.matches(&change.object);
        let before = change.before.as_ref().filter(|before| self.scope.matches(before));
        match (before, matches) {
            (None, false) => None,
            (None, true) => Some(self.event("ADDED", &change.object)),
            (Some(_), true) => Some(self.event("MODIFIED", &change.object)),
            (Some(_), false) if change.kind == ChangeKind::Deleted => {
                Some(self.event("DELETED", &change.object))
            }
            // The last matching state, at the revision of the change.
            (Some(before), false) => Some(self.event("DELETED", &before.at(change.revision()))),
        }
    }

    fn event(&mut self, kind: &str, object: &Object) -> Bytes {
        if self.format == Format::Table {
            let metadata = json!({ "resourceVersion": object.revision().to_string() });
            let mut table = table(self.resource, [object], metadata, self.include, Timestamp::now());
            if std::mem::replace(&mut self.columns_sent, true) {
                table["columnDefinitions"] = Value::Null;
            }
            return encode(kind, &table);
        }
        let mut event = format!(r#"{{"type":"{kind}","object":"#).into_bytes();
        object.write_json(&mut event);
        event.extend_from_slice(b"}\n");
        event.into()
    }

    /// The bookmark that a watch sends at its timeout.
    fn last_bookmark(&self) -> Option<Bytes> {
        let silent = self.shared.faults.for_watch(self.resource).silent;
        let sound = self.backlog.is_empty() && self.expired.is_none() && !silent;
        (self.bookmarks && sound && self.shared.has_bookmarks(self.resource))
            .then(|| self.bookmark(Value::Null))
    }

    fn bookmark(&self, annotations: Value) -> Bytes {
        let mut metadata = json!({ "resourceVersion": self.cursor.to_string(), "creationTimestamp": null });
        if !annotations.is_null() {
            metadata["annotations"] = annotations;
        }
        if self.format == Format::Table {
            let mut table = table(self.resource, [], metadata, self.include, Timestamp::now());
            table["columnDefinitions"] = Value::Null;
            return encode("BOOKMARK", &table);
        }
        let object = type_meta(self.resource, self.resource.kind());
        Bytes::from(format!("{{\"type\":\"BOOKMARK\",\"object\":{object},\"metadata\":{metadata}}}}}\n"))
    }

    /// Sends events, several at once if possible.
    async fn send(&self, pipe: &Pipe, events: Vec<Bytes>) -> Result<(), Closed> {
        let faults = &self.shared.faults;
        let mut chunk = Vec::new();
        for event in events {
            let cut = faults.take_event_cut(self.resource);
            chunk.extend_from_slice(event.get(..cut.unwrap_or(event.len())).unwrap_or(&event));
            if cut.is_some() {
                pipe.send(chunk.into()).await?;
                pipe.cut().await;
                return Err(Closed);
            }
            if chunk.len() >= CHUNK_BYTES {
                self.send_chunk(pipe, std::mem::take(&mut chunk).into()).await?;
            }
        }
        self.send_chunk(pipe, chunk.into()).await
    }

    /// Sends a chunk. A cut does not wait until a slow client has read everything.
    async fn send_chunk(&self, pipe: &Pipe, chunk: Bytes) -> Result<(), Closed> {
        tokio::select! {
            sent = pipe.send(chunk) => sent,
            () = self.shared.faults.cut_after(self.orders.cut) => {
                pipe.cut().await;
                Err(Closed)
            }
        }
    }
}

fn encode(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
}
