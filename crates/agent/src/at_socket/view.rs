//! What is decided at clients' sockets, for whoever looks at the proxy: whether anything is, how much, and which sockets.
//! Shared; any thread may look.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use sluice_capture::socket::{Ledger, Sum};
use sluice_socket::{Census, Frontends};
use sluice_socket_maps::{Capacity, Stats};

use super::detector::Detector;
use super::namespaces::Names;
use super::pods::Pods;
use super::sweep::Swept;

/// A reason is a label of a metric: no more of it than people read.
const REASON: usize = 240;

/// A view of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    reason: ArcSwapOption<String>,
    looks: ArcSwapOption<Looks>,
    stats: Mutex<Stats>,
}

/// What there is to see of programs that are attached.
#[derive(Debug)]
pub(crate) struct Looks {
    /// Which sockets are translated.
    pub(crate) census: Census,
    /// What the programs know of a frontend.
    pub(crate) frontends: Frontends,
    /// What they did.
    pub(crate) ledger: Arc<Ledger>,
    /// Which of them were ended.
    pub(crate) swept: Arc<Swept>,
    /// In which network namespaces.
    pub(crate) names: Arc<Names>,
    /// What pods are annotated with, if somebody goes by it.
    pub(crate) pods: Option<Arc<Pods>>,
    /// Where pods have their addresses, if pods of this node are told by address.
    pub(crate) detector: Option<Arc<Detector>>,
    /// How much the maps hold.
    pub(crate) capacity: Capacity,
    /// Whose sockets they are.
    pub(crate) cgroup: PathBuf,
    /// Whether nothing is decided about those of pods.
    pub(crate) host_only: bool,
}

impl View {
    /// Nothing is decided at sockets, although it was asked for.
    pub(crate) fn set_reason(&self, reason: &str) {
        let line = reason.lines().next().unwrap_or_default();
        self.0.reason.store(Some(Arc::new(line.chars().take(REASON).collect())));
    }

    /// The reason is what it was before another one.
    pub(super) fn restore_reason(&self, reason: Option<Arc<String>>) {
        self.0.reason.store(reason);
    }

    /// From now on it is.
    pub(crate) fn set_attached(&self, looks: Looks) {
        self.0.reason.store(None);
        self.0.looks.store(Some(Arc::new(looks)));
    }

    /// It is not any more, by this agent: what is in the maps may mean something else from now on.
    pub(crate) fn set_detached(&self, reason: &str) {
        self.settle();
        if self.0.looks.swap(None).is_some() {
            self.set_reason(reason);
        }
    }

    /// How much there is now.
    pub(crate) fn set_stats(&self, stats: Stats) {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Why nothing is decided at sockets, where it was asked for.
    pub(crate) fn reason(&self) -> Option<Arc<String>> {
        self.0.reason.load_full()
    }

    /// What there is to see, where anything is decided.
    pub(crate) fn looks(&self) -> Option<Arc<Looks>> {
        self.0.looks.load_full()
    }

    /// How much there was a moment ago.
    pub(crate) fn stats(&self) -> Stats {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the table's endpoints have what their translated sockets did; what all did together.
    pub(crate) fn settle(&self) -> Option<Sum> {
        let looks = self.looks()?;
        looks.ledger.settle();
        Some(looks.ledger.sum())
    }
}
