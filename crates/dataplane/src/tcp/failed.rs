//! A session one side of which has failed: it was reset, or has vanished.
//!
//! If its FIN had arrived before, it had said all that it had to say. The other side still gets every byte and the FIN, however
//! slowly it reads; only what goes to the failed side has nobody to go to. Such a failure is mostly just the end of a connection
//! that was closed: the kernel of a program that has closed its socket forgets it after a minute (`net.ipv4.tcp_fin_timeout`),
//! and answers our keepalive with a reset.

use std::time::{Duration, Instant};

use super::delivering;
use super::direction::Pumped;
use super::peer::Peer;
use super::session::{Context, Side, Step};
use super::socket::{self, KEEPALIVE_IDLE};
use crate::connection_log::End;

/// How long what was sent before a reset may take to reach the other side before that one is reset
/// too; a reset makes the kernel throw away what is still on its way.
const RESET_GRACE: Duration = Duration::from_secs(1);

/// How often it is looked, in that time, whether it has.
const RESET_POLL: Duration = Duration::from_millis(5);

/// How long the other side may acknowledge nothing once it has sent something that nobody will take: it may be one that reads on
/// only when all that it writes has been taken.
const STANDSTILL: Duration = Duration::from_secs(10);

/// The side that has failed; if both have, the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) side: Side,
    /// When it was noticed.
    since: Instant,
    fate: Fate,
    /// How many bytes the other side had not acknowledged at the last look.
    left: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It failed before its FIN, and so is the other side to be reset.
    CutOff,
    /// It failed after its FIN.
    Outlived {
        /// Bytes for it were read from the other side, and dropped.
        has_dropped: bool,
    },
}

impl Failed {
    /// Before its FIN.
    pub(super) fn cut_off(side: Side, since: Instant) -> Self {
        Self { side, since, fate: Fate::CutOff, left: 0 }
    }

    /// After its FIN, and whether anything that the other side has sent was dropped.
    pub(super) fn outlived(side: Side, since: Instant, has_dropped: bool) -> Self {
        Self { side, since, fate: Fate::Outlived { has_dropped }, left: 0 }
    }

    /// Whether it failed before its FIN.
    pub(super) fn is_cut_off(&self) -> bool {
        self.fate == Fate::CutOff
    }

    /// How soon to look again: no event tells how much was acknowledged.
    pub(super) fn poll_interval(&self, now: Instant) -> Duration {
        if now < self.since + RESET_GRACE { RESET_POLL } else { delivering::POLL }
    }

    /// What is to become of the session. `pumped` is the direction to the other side.
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

    /// A session that is passed on as reset once what came before has arrived, or has had its time.
    fn cut_off_too(&self, pumped: Pumped, other: &Peer, context: &Context<'_>) -> Step {
        let is_over = match pumped {
            Pumped::Waiting => false,
            Pumped::Yielded => return Step::Again,
            Pumped::TargetReset => true,
            Pumped::SourceReset | Pumped::Finished => socket::is_delivered(&other.stream),
        };
        if is_over || context.core.now >= self.since + RESET_GRACE { self.reset() } else { Step::Wait }
    }

    /// A session that goes on until all has arrived.
    fn outlive(
        &mut self,
        pumped: Pumped,
        survivor: &Peer,
        has_dropped: bool,
        last_moved: &mut Instant,
        context: &Context<'_>,
    ) -> Step {
        let now = context.core.now;
        // Whether the survivor has sent something that cannot be passed on.
        let has_lost = || has_dropped || survivor.has_unread();
        let left = u32::try_from(socket::undelivered(&survivor.stream)).unwrap_or(u32::MAX);
        match pumped {
            _ if survivor.has_failed() => return self.reset(),
            Pumped::SourceReset | Pumped::TargetReset => return self.reset(),
            Pumped::Yielded => return Step::Again,
            Pumped::Finished if left == 0 => {
                // One that reads slowly, or waits, is not reset: that can cost it what its kernel holds for it (not with Linux), and
                // without the relay it would hear nothing either. The kernel resets it if it sends something.
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
