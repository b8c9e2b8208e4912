//! A flow of the [table](super::flow_table), and the reasons for which it ends.

use std::time::{Duration, Instant};

use super::flow_class::Class;
use super::flow_key::FlowKey;
use crate::token::SlotId;

/// Identifies a flow while it exists, and is never reused. Fits into the worker's tokens.
pub(crate) type FlowId = SlotId;

/// A flow, and the worker's data for it.
#[derive(Debug)]
pub(crate) struct Flow<U> {
    pub(super) key: FlowKey,
    pub(super) opened: Instant,
    pub(super) last_used: Instant,
    pub(super) datagrams: u64,
    pub(super) replies: u64,
    pub(super) is_stream: bool,
    pub(super) has_port: bool,
    /// Its endpoint, route and socket.
    pub(crate) upstream: U,
}

/// A flow that was removed from the table. Dropping it drops the worker's data for it.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "held to be dropped: that closes the flow's socket"))]
pub(crate) struct EndedFlow<U> {
    pub(crate) id: FlowId,
    pub(crate) flow: Flow<U>,
    pub(crate) cause: Cause,
}

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// No datagram passed for as long as is allowed.
    Idle,
    /// Another flow needed its place, or its file descriptor.
    Evicted,
    /// Like [`Self::Evicted`], and its client exceeded its share.
    OverShare,
    /// Another flow needed its ephemeral port.
    EvictedForPort,
    /// Its endpoint stopped serving, or its route is gone, or the node's address that it was sent from.
    Gone,
    /// The worker closed it, because its socket failed.
    Closed,
    /// The same client opened it again.
    Replaced,
}

/// How many flows were opened, and how many ended for each reason. The difference is the number of flows that
/// exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FlowCounters {
    pub(crate) opened: u64,
    pub(crate) idle: u64,
    pub(crate) evicted: u64,
    pub(crate) over_share: u64,
    pub(crate) evicted_for_port: u64,
    pub(crate) gone: u64,
    pub(crate) closed: u64,
    pub(crate) replaced: u64,
}

impl<U> Flow<U> {
    pub(crate) fn key(&self) -> FlowKey {
        self.key
    }

    /// The time from its first datagram to its last one.
    pub(crate) fn lasted(&self) -> Duration {
        self.last_used.saturating_duration_since(self.opened)
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.last_used
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.replies > 0
    }

    pub(super) fn class(&self) -> Class {
        match (self.datagrams, self.replies) {
            (_, 0) => Class::Unanswered,
            (1, 1) => Class::Exchange,
            _ if self.is_stream => Class::Stream,
            _ => Class::Answered,
        }
    }
}

impl FlowCounters {
    /// The counter of a reason.
    pub(crate) fn of_mut(&mut self, cause: Cause) -> &mut u64 {
        match cause {
            Cause::Idle => &mut self.idle,
            Cause::Evicted => &mut self.evicted,
            Cause::OverShare => &mut self.over_share,
            Cause::EvictedForPort => &mut self.evicted_for_port,
            Cause::Gone => &mut self.gone,
            Cause::Closed => &mut self.closed,
            Cause::Replaced => &mut self.replaced,
        }
    }

    /// Number of flows that have ended.
    pub(crate) fn ended(self) -> u64 {
        self.idle
            + self.evicted
            + self.over_share
            + self.evicted_for_port
            + self.gone
            + self.closed
            + self.replaced
    }
}
