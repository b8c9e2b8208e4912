//! Bringing the news of all resources together: nothing before the first full lists, then everything
//! that has come in, in batches.

use std::collections::HashMap;

use sluice_model::{Change, Object, ObjectRef};
use tokio::sync::mpsc;

use super::follow::News;
use super::resource::Resource;

/// Changes in one batch, about: more wait in the followers, and in the end at the apiserver.
const MAX_BATCH: usize = 10_000;

/// What has not been handed over yet.
#[derive(Debug)]
pub(super) enum Pending {
    /// Not all that is needed is there: the latest state of each object.
    Waiting {
        objects: HashMap<ObjectRef, Object>,
        /// By resource: whether there is nothing to wait for any more.
        settled: [bool; Resource::ALL.len()],
    },
    /// Changes since the last batch; the first one is due even if it is empty.
    Open { changes: Vec<Change>, is_due: bool },
}

impl Pending {
    pub(super) fn new() -> Self {
        Self::Waiting { objects: HashMap::new(), settled: [false; Resource::ALL.len()] }
    }

    /// Takes in news.
    pub(super) fn add(&mut self, news: News) {
        match (&mut *self, news) {
            (Self::Open { changes, is_due }, News::Changes(more)) => {
                *is_due |= !more.is_empty();
                changes.extend(more);
            }
            (Self::Open { .. }, _) => {}
            (Self::Waiting { objects, .. }, News::Changes(changes)) => {
                for change in changes {
                    match change {
                        Change::Apply(object) => objects.insert(object.reference(), object),
                        Change::Delete(name) => objects.remove(&name),
                    };
                }
            }
            (Self::Waiting { objects, settled }, news) => {
                let resource = match news {
                    News::Listed(resource) => resource,
                    // The node and the ranges are waited for as long as there is hope that they come with
                    // the rest: without them some of what an earlier run left would be taken away.
                    News::Failed(resource) if !resource.is_required() => resource,
                    _ => return,
                };
                if let Some(settled) = settled.get_mut(resource.index()) {
                    *settled = true;
                }
                if settled.iter().all(|settled| *settled) {
                    let objects = std::mem::take(objects);
                    let changes = objects.into_values().map(Change::Apply).collect();
                    *self = Self::Open { changes, is_due: true };
                }
            }
        }
    }

    fn is_due(&self) -> bool {
        matches!(self, Self::Open { is_due: true, .. })
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Open { changes, .. } if changes.len() >= MAX_BATCH)
    }

    fn take(&mut self) -> Vec<Change> {
        match self {
            Self::Open { changes, is_due } => {
                *is_due = false;
                std::mem::take(changes)
            }
            Self::Waiting { .. } => Vec::new(),
        }
    }
}

/// Passes news on in batches until one side is gone. `on_first` is called when the first batch is.
pub(super) async fn collect(
    mut news: mpsc::Receiver<News>,
    batches: mpsc::Sender<Vec<Change>>,
    on_first: impl FnOnce(&[Change]),
) {
    let mut pending = Pending::new();
    let mut on_first = Some(on_first);
    loop {
        // While the receiver is busy, changes gather.
        tokio::select! {
            permit = batches.reserve(), if pending.is_due() => {
                let Ok(permit) = permit else { return };
                while !pending.is_full() && let Ok(more) = news.try_recv() {
                    pending.add(more);
                }
                let changes = pending.take();
                if let Some(on_first) = on_first.take() {
                    on_first(&changes);
                }
                permit.send(changes);
            }
            more = news.recv(), if !pending.is_full() => match more {
                Some(more) => pending.add(more),
                None => return,
            },
            () = batches.closed() => return,
        }
    }
}
