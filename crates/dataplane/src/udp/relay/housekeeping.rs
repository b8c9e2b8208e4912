//! Periodic work: ends flows that are idle or invalid. Few are ended in a turn of the loop, because closing a
//! socket takes some microseconds, during which all others on the worker wait.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::flow_table::Flow;
use super::ending::on_end;
use super::{Link, State, UdpRelay};
use crate::core::{Core, TimerOwner};

/// How often idle and invalid flows are ended.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// The maximum number of flows checked in a turn of the loop.
const LOOKED_AT: usize = 4_096;

/// The approximate maximum number of flows ended in a turn of the loop: a millisecond's worth.
pub(crate) const ENDED: usize = 256;

/// How long a failure to join the datagrams for one client affects all clients of a socket.
const REFUSAL: Duration = Duration::from_secs(10);

impl UdpRelay {
    /// Starts to end all flows that are invalid or need one of the addresses `gone`, which this node has
    /// lost.
    pub(crate) fn begin_to_end(&mut self, gone: Arc<[IpAddr]>) {
        self.gone = Some(gone);
        self.state.flows.request_sweep();
    }

    /// Ends some of these flows. Returns whether none is left.
    pub(crate) fn end_invalid(&mut self, core: &mut Core) -> bool {
        self.sweep(core);
        let is_done = !self.state.flows.sweep_pending();
        if is_done {
            self.gone = None;
            self.state.replies.tidy();
        }
        is_done
    }

    /// Ends flows that are idle or invalid, and does the other periodic work.
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

    /// Checks some of the flows that are to be checked, and ends invalid ones. Returns false if it ended as
    /// many as one turn allows.
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

    /// Forgets failures to join datagrams now and then, so that a client behind a path with a small MTU does
    /// not prevent joining for others for good.
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

    /// Schedules the next housekeeping, if there are flows, or sockets that are to be closed.
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
