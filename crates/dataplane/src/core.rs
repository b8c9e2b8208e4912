//! What every part of a worker uses: one value, owned by the worker and lent to its TCP and UDP sides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;
use sluice_table::Reader;

use crate::descriptors::Descriptors;
use crate::stats::WorkerStats;
use crate::timers::Timers;
use crate::token::SlotId;

/// Whose deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerOwner {
    Session(SlotId),
    AcceptRetry,
    UdpHousekeeping,
}

/// What every part of a worker uses.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) registry: Registry,
    pub(crate) timers: Timers<TimerOwner>,
    pub(crate) reader: Reader,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) descriptors: Arc<Descriptors>,
    /// How long a half-closed TCP session may stand still.
    pub(crate) half_closed_idle: Duration,
    /// The time at which the current turn of the loop began.
    pub(crate) now: Instant,
}
