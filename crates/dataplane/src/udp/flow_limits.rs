//! The limits of a flow table: the number of flows, the part of them that one client may have, and their
//! timeouts. Pure.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::flow_class::Timeouts;

/// The limits of a flow table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowLimits {
    /// The maximum number of flows.
    pub(crate) capacity: NonZeroUsize,
    /// A client's part of the flows.
    pub(crate) places: Shares,
    /// A client's part of the ephemeral ports that flows may hold.
    pub(crate) ports: Shares,
    /// How long a flow may be idle.
    pub(crate) timeouts: Timeouts,
}

/// How much of a resource a client may hold before its own flows are evicted first, once the resource is used
/// up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    /// Above it, the client's flows are evicted for any new flow.
    pub(crate) share: usize,
    /// Above it, the client is large: its flows are evicted for its own new flows.
    pub(crate) large: usize,
}

/// A client is large if it has more than one in this many of all flows.
const LARGE: usize = 8;

/// How long an exchange may be idle at most while the table is more than half full: time enough for a second
/// answer to the same question.
const EXCHANGE_IDLE: Duration = Duration::from_secs(5);

/// How many times longer than other flows a conversation may be idle: the ratio of the kernel's
/// `nf_conntrack_udp_timeout_stream`, 120 s, to `nf_conntrack_udp_timeout`, 30 s.
pub(crate) const STREAM_FACTOR: u32 = 4;

impl FlowLimits {
    /// The limits with a share of `client_percent` for each client: of the flows, and of the ephemeral ports
    /// that flows may hold.
    pub(crate) fn new(capacity: NonZeroUsize, ports: usize, client_percent: u8, idle: Duration) -> Self {
        let timeouts =
            Timeouts { idle, stream: idle.saturating_mul(STREAM_FACTOR), exchange: idle.min(EXCHANGE_IDLE) };
        let (places, ports) = (Shares::of(capacity.get(), client_percent), Shares::of(ports, client_percent));
        Self { capacity, places, ports, timeouts }
    }
}

impl Shares {
    /// The shares of a client that may have `percent` of `whole`.
    pub(crate) fn of(whole: usize, percent: u8) -> Self {
        let share = whole.saturating_mul(percent.into()) / 100;
        Self { share: share.max(1), large: whole / LARGE }
    }
}
