//! A flow of the [table](super::flow_table), and what becomes of it.

use std::time::{Duration, Instant};

use super::flow_class::Class;
use super::flow_key::FlowKey;
use crate::token::SlotId;

/// Names a flow for as long as it lives, and nothing afterwards. Fits the worker's tokens.
pub(crate) type FlowId = SlotId;

/// A flow, with whatever the worker keeps for it.
#[derive(Debug)]
pub(crate) struct Flow<U> {
    pub(super) key: FlowKey,
    pub(super) opened: Instant,
    pub(super) last_used: Instant,
    pub(super) datagrams: u64,
    pub(super) replies: u64,
    pub(super) is_stream: bool,
    pub(super) has_port: bool,
    /// Where it leads: endpoint, route, socket.
    pub(crate) upstream: U,
}

/// A flow that is no longer in the table. Dropping it drops what the worker kept for it.
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
    /// Nobody used it for as long as is allowed.
    Idle,
    /// Another flow needed its place, or its file descriptor.
    Evicted,
    /// The same, and its client had more than its share.
    OverShare,
    /// Another flow needed its ephemeral port.
    EvictedForPort,
    /// Its endpoint stopped serving, or its route is gone, or the node's address that it was sent from.
    Gone,
    /// The worker closed it: its socket failed.
    Closed,
    /// The same client opened it again.
    Replaced,
}

/// How many flows there have been, and why they ended. Those that live are the difference.
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

    /// From its first datagram to its last one.
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
    /// How many have ended for a reason.
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

    /// Flows that are no more.
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
