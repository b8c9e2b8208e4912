//! Merges the news of all resources into batches. The first batch waits for the first full lists.

use std::collections::HashSet;
use std::time::Duration;

use sluice_model::Change;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::follow::News;
use super::resource::Resource;

/// The approximate number of changes in a batch. More changes wait in the followers, and finally at the apiserver.
const MAX_BATCH: usize = 10_000;

/// How long to wait for optional resources once the required ones are complete: enough for a few attempts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Changes that have not been passed on yet.
#[derive(Debug)]
pub(super) enum Pending {
    /// Some required resource is not complete.
    Waiting {
        /// All changes so far, except those found to be outdated.
        changes: Vec<Change>,
        /// The number of changes after the last removal of outdated ones.
        compacted: usize,
        /// By resource: whether there is nothing left to wait for.
        settled: [bool; Resource::ALL.len()],
        /// How long to wait for the optional resources, once the required ones are complete.
        until: Option<Instant>,
    },
    /// Changes since the last batch; the first one is due even if it is empty.
    Open { changes: Vec<Change>, is_due: bool },
}

impl Pending {
    pub(super) fn new() -> Self {
        let settled = Resource::ALL.map(Resource::is_optional);
        Self::Waiting { changes: Vec::new(), compacted: 0, settled, until: None }
    }

    /// Adds news.
    pub(super) fn add(&mut self, news: News) {
        match (&mut *self, news) {
            (Self::Open { changes, is_due }, News::Changes(more)) => {
                *is_due |= !more.is_empty();
                changes.extend(more);
            }
            (Self::Open { .. }, _) => {}
            (Self::Waiting { changes, compacted, .. }, News::Changes(more)) => {
                changes.extend(more);
                if changes.len() > MAX_BATCH + 2 * *compacted {
                    compact(changes);
                    *compacted = changes.len();
                }
            }
            (Self::Waiting { settled, until, .. }, news) => {
                let resource = match news {
                    News::Listed(resource) => resource,
                    // Without the node and the ranges, an agent would remove some of what an earlier run left,
                    // such as nodePorts. So they are waited for as long as they may still arrive with the rest.
                    News::Denied(resource) if !resource.is_required() => resource,
                    _ => return,
                };
                if let Some(settled) = settled.get_mut(resource.index()) {
                    *settled = true;
                }
                let is_settled = |resource: &Resource| settled.get(resource.index()) == Some(&true);
                if Resource::ALL.iter().all(is_settled) {
                    self.open();
                } else if Resource::ALL.iter().filter(|resource| resource.is_required()).all(is_settled) {
                    until.get_or_insert_with(|| Instant::now() + PATIENCE);
                }
            }
        }
    }

    /// When to stop waiting for optional resources.
    fn deadline(&self) -> Option<Instant> {
        if let Self::Waiting { until, .. } = self { *until } else { None }
    }

    /// Releases everything collected so far.
    fn open(&mut self) {
        if let Self::Waiting { changes, .. } = self {
            let mut changes = std::mem::take(changes);
            compact(&mut changes);
            changes.shrink_to_fit();
            *self = Self::Open { changes, is_due: true };
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

/// Keeps only the last state of each object, and drops deleted objects.
fn compact(changes: &mut Vec<Change>) {
    let mut seen = HashSet::new();
    changes.reverse();
    changes.retain(|change| match change {
        Change::Apply(object) => seen.insert(object.reference()),
        Change::Delete(name) => {
            seen.insert(name.clone());
            false
        }
    });
    changes.reverse();
}

/// Passes news on in batches until one side is gone. Calls `on_first` when the first batch is passed on.
pub(super) async fn collect(
    mut news: mpsc::Receiver<News>,
    batches: mpsc::Sender<Vec<Change>>,
    on_first: impl FnOnce(&[Change]),
) {
    let mut pending = Pending::new();
    let mut on_first = Some(on_first);
    loop {
        let deadline = pending.deadline();
        // While the receiver is busy, changes accumulate.
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
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => pending.open(),
            () = batches.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{Node, Object, ServiceCidr};

    use super::*;

    fn node(name: &str) -> Object {
        let name = name.into();
        Node { name, zone: None, addresses: Vec::new(), pod_cidrs: Vec::new(), eligible: true }.into()
    }

    fn cidr() -> Object {
        ServiceCidr { name: "c".into(), cidrs: Vec::new() }.into()
    }

    fn changes(objects: &[Object]) -> News {
        News::Changes(objects.iter().cloned().map(Change::Apply).collect())
    }

    #[test]
    fn nothing_is_due_before_all_is_listed_and_then_the_latest_state_is() {
        let mut pending = Pending::new();
        pending.add(changes(&[node("a"), node("b"), cidr()]));
        pending.add(News::Changes(vec![Change::Delete(node("a").reference())]));
        for resource in [Resource::Services, Resource::EndpointSlices, Resource::Node] {
            pending.add(News::Failed(Resource::Services));
            pending.add(News::Listed(resource));
            assert!(!pending.is_due());
        }
        pending.add(News::Listed(Resource::ServiceCidrs));
        assert!(pending.is_due());
        assert_eq!(pending.take(), [Change::Apply(node("b")), Change::Apply(cidr())]);
        assert!(!pending.is_due());
        pending.add(News::Listed(Resource::Services));
        assert!(!pending.is_due(), "another list without changes is no news");
        let gone = Change::Delete(node("b").reference());
        pending.add(News::Changes(vec![gone.clone()]));
        assert_eq!(pending.take(), [gone]);
    }

    #[test]
    fn what_gathers_before_all_is_listed_is_bounded_by_what_there_is() {
        let mut pending = Pending::new();
        let zoned = |zone: usize| match node("a") {
            Object::Node(node) => Object::from(Node { zone: Some(zone.to_string().into()), ..node }),
            other => other,
        };
        for zone in 0..3 * MAX_BATCH {
            pending.add(changes(&[zoned(zone), node(&format!("b{}", zone % 10))]));
            assert!(matches!(&pending, Pending::Waiting { changes, .. } if changes.len() < 2 * MAX_BATCH));
        }
        Resource::ALL.into_iter().for_each(|resource| pending.add(News::Listed(resource)));
        let taken = pending.take();
        assert_eq!(taken.len(), 11);
        assert!(taken.contains(&Change::Apply(zoned(3 * MAX_BATCH - 1))));
    }

    #[test]
    fn only_services_and_slices_are_waited_for_when_they_may_not_be_listed() {
        let mut pending = Pending::new();
        for resource in Resource::ALL {
            pending.add(News::Denied(resource));
        }
        pending.add(News::Listed(Resource::Services));
        assert!(!pending.is_due());
        pending.add(News::Listed(Resource::EndpointSlices));
        assert!(pending.is_due(), "an empty cluster is news");
        assert_eq!(pending.take(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_a_moment_is_waited_for_but_not_for_ever() {
        let (news, receiver) = mpsc::channel(NEWS);
        let (batches, mut output) = mpsc::channel(1);
        tokio::spawn(collect(receiver, batches, |_| {}));
        for resource in Resource::ALWAYS {
            news.send(News::Failed(resource)).await.unwrap();
        }
        let began = Instant::now();
        for resource in [Resource::Services, Resource::EndpointSlices, Resource::ServiceCidrs] {
            news.send(News::Listed(resource)).await.unwrap();
        }
        // Paused time advances when nothing else can run.
        assert_eq!(output.recv().await, Some(Vec::new()));
        assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
        news.send(changes(&[node("a")])).await.unwrap();
        assert_eq!(output.recv().await, Some(vec![Change::Apply(node("a"))]));
    }

    /// The number of messages: more than the channels hold.
    const NEWS: usize = 16;

    #[tokio::test]
    async fn what_gathers_for_a_slow_receiver_is_bounded_and_complete() {
        let (news, receiver) = mpsc::channel(1);
        let (batches, mut output) = mpsc::channel(1);
        let collecting = tokio::spawn(collect(receiver, batches, |_| {}));
        for resource in Resource::ALL {
            news.send(News::Listed(resource)).await.unwrap();
        }
        let some = changes(&vec![cidr(); 100]);
        let News::Changes(some) = some else { unreachable!() };
        let mut sent = 0;
        // Until the channels are full.
        while !is_stuck(&news).await {
            news.send(News::Changes(some.clone())).await.unwrap();
            sent += some.len();
            assert!(sent < 3 * MAX_BATCH);
        }
        let mut received = 0;
        while received < sent {
            let batch = output.recv().await.unwrap();
            assert!(batch.len() <= MAX_BATCH + some.len());
            received += batch.len();
        }
        drop(output);
        collecting.await.unwrap();
    }

    /// Whether the other side takes nothing, however often it gets to run.
    async fn is_stuck(news: &mpsc::Sender<News>) -> bool {
        for _ in 0..1000 {
            if news.capacity() > 0 {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }
}
