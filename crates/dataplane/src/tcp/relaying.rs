//! The two directions of a session with an established endpoint: moving data, turns, and failures.
//! [`super::session`] handles the begin, the end and the deadlines of sessions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_table::{Lease, ServicePort};

use super::delivering::{self, Delivering, Delivery, PATIENCE};
use super::direction::{Direction, Pump, Pumped};
use super::failed::Failed;
use super::peer::Peer;
use super::session::{Context, Side, Step};
use super::socket;
use crate::connection::ConnectionState;
use crate::connection_log::End;

/// The number of bytes that one direction may move in a turn: one fill of a pipe.
pub(crate) const TURN_BUDGET: usize = 256 << 10;

/// The state of a session with an established endpoint.
#[derive(Debug)]
pub(super) struct Relaying {
    pub(super) upstream: Peer,
    to_upstream: Direction,
    to_downstream: Direction,
    pub(super) lease: Lease,
    pub(super) service: Arc<ServicePort>,
    failed: Option<Failed>,
    /// Present while everything was passed on, but much has not arrived.
    delivering: Option<Delivering>,
    pub(super) last_moved: Instant,
    /// The session was old enough for keepalive, which is on.
    pub(super) is_settled: bool,
    /// Bytes passed on.
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Relaying {
    /// Starts to relay between an endpoint that has just answered and the session's client.
    pub(super) fn new(upstream: Peer, lease: Lease, service: Arc<ServicePort>, now: Instant) -> Self {
        Self {
            upstream,
            to_upstream: Direction::default(),
            to_downstream: Direction::default(),
            lease,
            service,
            failed: None,
            delivering: None,
            last_moved: now,
            is_settled: false,
            sent: 0,
            received: 0,
        }
    }

    /// The state for listings.
    pub(super) fn state(&self) -> ConnectionState {
        match (self.failed, self.to_upstream.is_finished(), self.to_downstream.is_finished()) {
            (Some(failed), ..) if failed.is_cut_off() => ConnectionState::Resetting,
            (Some(Failed { side: Side::Downstream, .. }), ..) | (None, true, _) => {
                ConnectionState::ClientClosed
            }
            (Some(Failed { side: Side::Upstream, .. }), ..) | (None, false, true) => {
                ConnectionState::EndpointClosed
            }
            (None, false, false) => ConnectionState::Open,
        }
    }

    /// Whether one side has ended but the session has not, whether or not that side's data was passed on.
    pub(super) fn is_half_closed(&self, downstream: &Peer) -> bool {
        let finished = [self.to_upstream.is_finished(), self.to_downstream.is_finished()];
        let has_ended = finished.contains(&true) || downstream.is_ending() || self.upstream.is_ending();
        has_ended && finished.contains(&false)
    }

    /// Whether everything was passed on, and the session waits for its delivery.
    pub(super) fn is_delivering(&self) -> bool {
        self.delivering.is_some()
    }

    /// How soon to check how much the kernels have acknowledged, which no event reports.
    pub(super) fn poll_interval(&self, now: Instant) -> Option<Duration> {
        if self.is_delivering() {
            Some(delivering::POLL)
        } else {
            self.failed.map(|failed| failed.poll_interval(now))
        }
    }

    /// Whether a direction moves bulk data.
    pub(super) fn is_bulk(&self) -> bool {
        self.to_upstream.is_bulk() || self.to_downstream.is_bulk()
    }

    /// Moves what can be moved in both directions.
    pub(super) fn pump(&mut self, downstream: &mut Peer, context: &mut Context<'_>) -> Step {
        if let Some(delivering) = &mut self.delivering {
            let streams = [&downstream.stream, &self.upstream.stream];
            let patience = context.core.half_closed_idle.min(PATIENCE);
            let (now, most) = (context.core.now, context.core.orphans.left_to_kernel(context.core.now));
            return match delivering.look(streams, &mut self.last_moved, now, patience, most) {
                Delivery::Waiting => Step::Wait,
                Delivery::Done => Step::End(End::Closed),
                Delivery::Overdue => {
                    context.core.stats.tcp_half_closed_timeouts.add(1);
                    Step::End(End::HalfClosed)
                }
            };
        }
        let mut pumped = [Pumped::Waiting; 2];
        self.notice_failure(downstream, context.core.now);
        // At most twice: the outcome of one direction may change what the other one has to do.
        for _ in 0..2 {
            let failed_before = self.failed;
            pumped = self.pump_both(downstream, context);
            self.notice_failure(downstream, context.core.now);
            if self.failed == failed_before {
                break;
            }
        }
        match (pumped, &mut self.failed) {
            ([Pumped::Finished, Pumped::Finished], _) => {
                let sides = [(&downstream.stream, self.received), (&self.upstream.stream, self.sent)];
                self.last_moved = context.core.now;
                let most = context.core.orphans.left_to_kernel(context.core.now);
                self.delivering = Delivering::begin(sides, most);
                context.core.stats.tcp_delivering.add(self.is_delivering().into());
                if self.is_delivering() { Step::Wait } else { Step::End(End::Closed) }
            }
            ([to_upstream, to_downstream], Some(failed)) => {
                let (pumped, other) = match failed.side {
                    Side::Downstream => (to_upstream, &self.upstream),
                    Side::Upstream => (to_downstream, &*downstream),
                };
                failed.step(pumped, other, &mut self.last_moved, context)
            }
            ([Pumped::Yielded, _] | [_, Pumped::Yielded], None) => Step::Again,
            _ => Step::Wait,
        }
    }

    /// Pumps the directions that are still in use.
    fn pump_both(&mut self, downstream: &mut Peer, context: &mut Context<'_>) -> [Pumped; 2] {
        let (stats, now) = (&*context.core.stats, context.core.now);
        let mut pump = Pump { tools: &mut *context.tools, stats, budget: TURN_BUDGET, is_last: false };
        let failed_side = self.failed.map(|failed| failed.side);
        let mut pumped = [&self.to_upstream, &self.to_downstream]
            .map(|direction| if direction.is_finished() { Pumped::Finished } else { Pumped::Waiting });
        // Nothing more can be sent to a side that has failed.
        if failed_side != Some(Side::Upstream) {
            pump.is_last = self.to_downstream.is_finished();
            let (outcome, bytes) = self.to_upstream.pump(downstream, &mut self.upstream, &mut pump);
            self.note(Side::Downstream, outcome, bytes, now);
            pumped[0] = outcome;
        }
        if failed_side != Some(Side::Downstream) {
            pump.is_last = self.to_upstream.is_finished();
            let (outcome, bytes) = self.to_downstream.pump(&mut self.upstream, downstream, &mut pump);
            self.note(Side::Upstream, outcome, bytes, now);
            pumped[1] = outcome;
        }
        pumped
    }

    /// Records the first failure. The failed side itself may not be used at the moment: what it sent may wait
    /// for the other side, which does not read, and there may be nothing to send to it. The failure was
    /// reported by a single event.
    fn notice_failure(&mut self, downstream: &mut Peer, now: Instant) {
        if self.failed.is_some() {
            return;
        }
        let (side, peer, towards) = if downstream.has_failed() {
            (Side::Downstream, downstream, &mut self.to_downstream)
        } else if self.upstream.has_failed() {
            (Side::Upstream, &mut self.upstream, &mut self.to_upstream)
        } else {
            return;
        };
        peer.settle_failure();
        // What it sent before can be read, whether or not an event said so.
        peer.readable = true;
        self.failed = Some(if peer.is_cut_off() {
            Failed::cut_off(side, now)
        } else {
            Failed::outlived(side, now, towards.give_up())
        });
    }

    /// Records the outcome of the direction from `source`.
    fn note(&mut self, source: Side, outcome: Pumped, bytes: usize, now: Instant) {
        if bytes == 0 {
            return;
        }
        self.last_moved = now;
        if source == Side::Upstream && self.received == 0 && outcome == Pumped::Waiting {
            // The endpoint may hold back its next segment until this one is acknowledged (Nagle), but nothing
            // is sent to it that carries the acknowledgement: since the handshake, our kernel delays
            // acknowledgements in case the client sends data.
            socket::acknowledge_at_once(&self.upstream.stream);
        }
        let stats = self.lease.upstream().stats();
        let (own, of_endpoint) = match source {
            Side::Downstream => (&mut self.sent, &stats.bytes_to_endpoint),
            Side::Upstream => (&mut self.received, &stats.bytes_from_endpoint),
        };
        *own += bytes as u64;
        of_endpoint.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
