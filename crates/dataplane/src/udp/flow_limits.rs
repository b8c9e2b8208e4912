//! Bounds of a flow table: how many flows, how much of them one client may have, and for how long. Pure.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::flow_class::Timeouts;

/// Bounds of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowLimits {
    /// Most flows at a time.
    pub(crate) capacity: NonZeroUsize,
    /// What a client may have of those.
    pub(crate) places: Shares,
    /// What a client may have of the ephemeral ports that flows may hold.
    pub(crate) ports: Shares,
    /// How long a flow may be silent.
    pub(crate) timeouts: Timeouts,
}

/// How many flows of a kind a client may have before its own make room first where there are no more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    /// If it has more, they do so for everybody.
    pub(crate) share: usize,
    /// If it has more, it is large: they do so for its own new ones.
    pub(crate) large: usize,
}

/// One in this many of all flows makes a client large.
const LARGE: usize = 8;

/// How long an answered question may be silent under pressure, at most: time enough for a second answer
/// to the same question.
const EXCHANGE_IDLE: Duration = Duration::from_secs(5);

/// How much longer a conversation may be silent than anything else: as the kernel's `nf_conntrack_udp_timeout_stream`,
/// 120 s, is to `nf_conntrack_udp_timeout`, 30 s.
pub(crate) const STREAM_FACTOR: u32 = 4;

impl FlowLimits {
    /// With a share of so many in a hundred for each client: of the flows, and of the ephemeral ports that they may hold.
    pub(crate) fn new(capacity: NonZeroUsize, ports: usize, client_percent: u8, idle: Duration) -> Self {
        let timeouts =
            Timeouts { idle, stream: idle.saturating_mul(STREAM_FACTOR), exchange: idle.min(EXCHANGE_IDLE) };
        let (places, ports) = (Shares::of(capacity.get(), client_percent), Shares::of(ports, client_percent));
        Self { capacity, places, ports, timeouts }
    }
}

impl Shares {
    /// Those of a client that may have so many in a hundred of so much.
    pub(crate) fn of(whole: usize, percent: u8) -> Self {
        let share = whole.saturating_mul(percent.into()) / 100;
        Self { share: share.max(1), large: whole / LARGE }
    }
}
