//! A session of which one side has failed: it was reset, or has vanished.
//!
//! If its FIN had arrived before, its data is complete. The other side still gets every byte and the FIN,
//! however slowly it reads; only data for the failed side has no receiver. Such a failure is mostly the
//! normal end of a closed connection: the kernel of a program that has closed its socket forgets it after a
//! minute (`net.ipv4.tcp_fin_timeout`), and answers our keepalive with a reset.

use std::time::{Duration, Instant};

use super::delivering;
use super::direction::Pumped;
use super::peer::Peer;
use super::session::{Context, Side, Step};
use super::socket::{self, KEEPALIVE_IDLE};
use crate::connection_log::End;

/// How long data that was sent before a reset may take to reach the other side, before that side is reset
/// too. A reset makes the kernel discard data that is still on its way.
const RESET_GRACE: Duration = Duration::from_secs(1);

/// How often delivery is checked during that time.
const RESET_POLL: Duration = Duration::from_millis(5);

/// How long the other side may acknowledge nothing after it has sent data that nobody will receive. It may be
/// a program that goes on reading only when everything that it writes was taken.
const STANDSTILL: Duration = Duration::from_secs(10);

/// The side that failed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) side: Side,
    /// When the failure was noticed.
    since: Instant,
    fate: Fate,
    /// How many bytes the other side had not acknowledged at the last check.
    left: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It failed before its FIN, so the other side is to be reset too.
    CutOff,
    /// It failed after its FIN.
    Outlived {
        /// Whether bytes that were read from the other side for it were dropped.
        has_dropped: bool,
    },
}

impl Failed {
    /// A side that failed before its FIN.
    pub(super) fn cut_off(side: Side, since: Instant) -> Self {
        Self { side, since, fate: Fate::CutOff, left: 0 }
    }

    /// A side that failed after its FIN. `has_dropped`: bytes for it were dropped.
    pub(super) fn outlived(side: Side, since: Instant, has_dropped: bool) -> Self {
        Self { side, since, fate: Fate::Outlived { has_dropped }, left: 0 }
    }

    /// Whether it failed before its FIN.
    pub(super) fn is_cut_off(&self) -> bool {
        self.fate == Fate::CutOff
    }

    /// How soon to check again: no event reports how much was acknowledged.
    pub(super) fn poll_interval(&self, now: Instant) -> Duration {
        if now < self.since + RESET_GRACE { RESET_POLL } else { delivering::POLL }
    }

    /// Decides how the session goes on. `pumped` is the outcome of the direction to the other side.
    pub(super) fn step(
        &mut self,
        pumped: Pumped,
        other: &Peer,
        last_moved: &mut Instant,
        context: &Context<'_>,
    ) -> Step {
        let step = match self.fate {
            Fate::CutOff => self.cut_off_too(pumped, other, context),
            Fate::Outlived { has_dropped } => self.outlive(pumped, other, has_dropped, last_moved, context),
        };
        match step {
            Step::End(End::ClientReset | End::EndpointReset) => context.core.stats.tcp_resets.add(1),
            Step::End(End::HalfClosed) => context.core.stats.tcp_half_closed_timeouts.add(1),
            _ => {}
        }
        step
    }

    /// For a failure before the FIN: resets the other side once the earlier data has arrived, or its time is
    /// over.
    fn cut_off_too(&self, pumped: Pumped, other: &Peer, context: &Context<'_>) -> Step {
        let is_over = match pumped {
            Pumped::Waiting => false,
            Pumped::Yielded => return Step::Again,
            Pumped::TargetReset => true,
            Pumped::SourceReset | Pumped::Finished => socket::is_delivered(&other.stream),
        };
        if is_over || context.core.now >= self.since + RESET_GRACE { self.reset() } else { Step::Wait }
    }

    /// For a failure after the FIN: the session goes on until all data has arrived.
    fn outlive(
        &mut self,
        pumped: Pumped,
        survivor: &Peer,
        has_dropped: bool,
        last_moved: &mut Instant,
        context: &Context<'_>,
    ) -> Step {
        let now = context.core.now;
        // Whether the other side has sent data that cannot be passed on.
        let has_lost = || has_dropped || survivor.has_unread();
        let left = u32::try_from(socket::undelivered(&survivor.stream)).unwrap_or(u32::MAX);
        match pumped {
            _ if survivor.has_failed() => return self.reset(),
            Pumped::SourceReset | Pumped::TargetReset => return self.reset(),
            Pumped::Yielded => return Step::Again,
            Pumped::Finished if left == 0 => {
                // If it reads slowly, or waits, it is not reset: a reset can discard what its kernel holds
                // for it (not with Linux), and without the relay it would get no reset either. The kernel
                // resets it if it sends something.
                let is_quiet = now >= self.since + RESET_GRACE || self.since >= *last_moved + KEEPALIVE_IDLE;
                return if is_quiet && !has_lost() { Step::End(End::Closed) } else { self.reset() };
            }
            Pumped::Finished | Pumped::Waiting => {}
        }
        if left < std::mem::replace(&mut self.left, left) {
            *last_moved = now;
        }
        let idle = now.saturating_duration_since(*last_moved);
        if idle >= context.core.half_closed_idle {
            Step::End(End::HalfClosed)
        } else if idle >= STANDSTILL && has_lost() {
            self.reset()
        } else {
            Step::Wait
        }
    }

    fn reset(&self) -> Step {
        Step::End(match self.side {
            Side::Downstream => End::ClientReset,
            Side::Upstream => End::EndpointReset,
        })
    }
}
