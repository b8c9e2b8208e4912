//! What is looked through now and then: flows that are idle or lead nowhere any more. Few are ended in a turn of the loop, as
//! closing a socket takes some microseconds and everybody else of the worker waits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::flow_table::Flow;
use super::ending::on_end;
use super::{Link, State, UdpRelay};
use crate::core::{Core, TimerOwner};

/// How often idle and invalid flows are looked for.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// How many flows are looked at in a turn of the loop.
const LOOKED_AT: usize = 4_096;

/// How many flows are ended in a turn of the loop, about: a millisecond's worth.
pub(crate) const ENDED: usize = 256;

/// How long it counts for all clients of a socket that a datagram to one of them could not be joined with others.
const REFUSAL: Duration = Duration::from_secs(10);

impl UdpRelay {
    /// Begins to end all flows that lead nowhere any more, or for which this node has no address any more: these are gone.
    pub(crate) fn begin_to_end(&mut self, gone: Arc<[IpAddr]>) {
        self.gone = Some(gone);
        self.state.flows.request_sweep();
    }

    /// Ends some of those; whether none is left.
    pub(crate) fn end_invalid(&mut self, core: &mut Core) -> bool {
        self.sweep(core);
        let is_done = !self.state.flows.sweep_pending();
        if is_done {
            self.gone = None;
            self.state.replies.tidy();
        }
        is_done
    }

    /// Ends flows that are idle or lead nowhere any more, and does what else is due now and then while there are flows.
    pub(crate) fn on_housekeeping(&mut self, core: &mut Core) {
        self.is_housekeeping_due = false;
        let State { flows, kept_ports, .. } = &mut self.state;
        let expired = flows.expire(core.now, ENDED, &mut |ended| on_end(ended, kept_ports, core));
        let is_all = expired < ENDED && {
            if !flows.sweep_pending() {
                flows.request_sweep();
            }
            self.sweep(core)
        };
        self.state.replies.tidy();
        self.forget_refusals(core.now);
        self.count_drops(core);
        self.close_frontends(core);
        self.keep_house_in(if is_all { HOUSEKEEPING } else { Duration::ZERO }, core);
    }

    /// Looks at some flows of those that are to be looked at, and ends what is invalid. Whether it was few.
    fn sweep(&mut self, core: &Core) -> bool {
        let State { flows, kept_ports, .. } = &mut self.state;
        let gone = self.gone.as_deref().unwrap_or_default();
        let is_valid = |flow: &Flow<Link>| Link::is_valid(flow) && !flow.upstream.sends_from(gone);
        let mut count = 0;
        for _ in 0..LOOKED_AT / ENDED {
            flows.sweep(ENDED, is_valid, &mut |ended| {
                count += 1;
                on_end(ended, kept_ports, core);
            });
            if count >= ENDED {
                return false;
            }
        }
        true
    }

    /// A client behind a narrow path does not keep the answers of others from being joined for good.
    fn forget_refusals(&mut self, now: Instant) {
        if self.refusals_forgotten.is_none_or(|last| now.saturating_duration_since(last) >= REFUSAL) {
            self.refusals_forgotten = Some(now);
            self.state.replies.forget_refusals();
            for id in self.state.frontends.ids() {
                if let Some(frontend) = self.state.frontends.get_mut(id) {
                    frontend.joining.forget();
                }
            }
        }
    }

    /// Sees to it that there is a housekeeping while there are flows, or sockets that are to be closed.
    pub(super) fn keep_house(&mut self, core: &mut Core) {
        self.keep_house_in(HOUSEKEEPING, core);
    }

    fn keep_house_in(&mut self, time: Duration, core: &mut Core) {
        if !self.is_housekeeping_due && (self.state.flows.len() > 0 || self.closing > 0) {
            core.timers.set(core.now + time, TimerOwner::UdpHousekeeping);
            self.is_housekeeping_due = true;
        }
    }
}
