//! What other threads may see of socket mode: whether it is on, how much the maps hold, and which sockets are
//! translated.

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

/// The longest reason, in characters: it is a label of a metric, and people read no more.
const REASON: usize = 240;

/// A view of socket mode, shared between threads.
#[derive(Debug, Clone, Default)]
pub(crate) struct View(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    reason: ArcSwapOption<String>,
    looks: ArcSwapOption<Looks>,
    stats: Mutex<Stats>,
}

/// What there is to see of attached programs.
#[derive(Debug)]
pub(crate) struct Looks {
    /// Which sockets are translated.
    pub(crate) census: Census,
    /// What the programs know of a frontend.
    pub(crate) frontends: Frontends,
    /// What the programs have counted.
    pub(crate) ledger: Arc<Ledger>,
    /// Which sockets were ended.
    pub(crate) swept: Arc<Swept>,
    /// The network namespaces in which sockets are translated.
    pub(crate) names: Arc<Names>,
    /// The pods' annotations, if they count.
    pub(crate) pods: Option<Arc<Pods>>,
    /// Where pods have their addresses, if pods of this node are recognised by address.
    pub(crate) detector: Option<Arc<Detector>>,
    /// How much the maps hold.
    pub(crate) capacity: Capacity,
    /// The cgroup whose sockets are translated.
    pub(crate) cgroup: PathBuf,
    /// Whether pods' sockets are never translated.
    pub(crate) host_only: bool,
}

impl View {
    /// Sets why socket mode is off although it was asked for.
    pub(crate) fn set_reason(&self, reason: &str) {
        let line = reason.lines().next().unwrap_or_default();
        self.0.reason.store(Some(Arc::new(line.chars().take(REASON).collect())));
    }

    /// Puts back an earlier reason.
    pub(super) fn restore_reason(&self, reason: Option<Arc<String>>) {
        self.0.reason.store(reason);
    }

    /// Socket mode is on from now on.
    pub(crate) fn set_attached(&self, looks: Looks) {
        self.0.reason.store(None);
        self.0.looks.store(Some(Arc::new(looks)));
    }

    /// Socket mode is off for this agent: the maps' contents may mean something else from now on.
    pub(crate) fn set_detached(&self, reason: &str) {
        self.settle();
        if self.0.looks.swap(None).is_some() {
            self.set_reason(reason);
        }
    }

    /// Sets how much the maps hold now.
    pub(crate) fn set_stats(&self, stats: Stats) {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Why socket mode is off, if it was asked for.
    pub(crate) fn reason(&self) -> Option<Arc<String>> {
        self.0.reason.load_full()
    }

    /// What there is to see of attached programs, if socket mode is on.
    pub(crate) fn looks(&self) -> Option<Arc<Looks>> {
        self.0.looks.load_full()
    }

    /// How much the maps held a moment ago.
    pub(crate) fn stats(&self) -> Stats {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what translated sockets did to the counters of the table's endpoints. Returns the sum over all
    /// endpoints.
    pub(crate) fn settle(&self) -> Option<Sum> {
        let looks = self.looks()?;
        looks.ledger.settle();
        Some(looks.ledger.sum())
    }
}
