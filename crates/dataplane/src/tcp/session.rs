//! A session: one client connection, from accept until both sides have ended.
//!
//! ```text
//!            ┌─ next attempt ─┐
//!            ▼                │            both FINs passed on
//!        Connecting ──► Relaying ───────────────────────────────► ended, clean
//!            │              │              └─ much has not arrived: Delivering ──►
//!            │              │ one side has failed
//!            │              ├─ after its FIN: the other still gets everything ──► ended
//!            │              ▼ before its FIN
//!            │          Draining: what that side sent before still goes to the other,
//!            ▼              │     then that one is reset too
//!   ended, client reset ◄───┘
//! ```
//!
//! Runs on the worker that accepted the connection, for all of its life.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use sluice_model::Protocol;
use sluice_table::{Selection, Upstream};

use super::attempt;
use super::connect::{Attempts, Failure, Overdue};
use super::direction::Tools;
use super::peer::Peer;
use super::relaying::Relaying;
use super::socket::{self, Ending, Search};
use crate::client::ClientKey;
use crate::connection::{Connection, ConnectionState};
use crate::connection_log::{End, Record, Trace};
use crate::core::{Core, TimerOwner};
use crate::descriptors::Permit;
use crate::timers::TimerId;
use crate::token::{SlotId, Source};
use crate::transparent::Local;

/// The age at which a session gets the settings for long-lived ones: keepalive takes eight system calls, and
/// most connections end before.
const SETTLED: Duration = Duration::from_secs(30);

/// The parts of its worker that a session uses.
pub(crate) struct Context<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) tools: &'a mut Tools,
}

/// How a session goes on after it was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for events.
    Wait,
    /// It has more to do and wants another turn.
    Again,
    /// It is over.
    End(End),
}

/// The two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client's.
    Downstream,
    /// The endpoint's.
    Upstream,
}

/// A client connection and its state.
#[derive(Debug)]
pub(crate) struct Session {
    id: SlotId,
    downstream: Peer,
    /// The client's address.
    client: SocketAddr,
    /// It counts as one client with all of its network: a [`ClientKey`] in one byte.
    is_network: bool,
    /// It counts among the holders of a local port towards the endpoint that it connects to or is connected
    /// to.
    has_port: bool,
    state: State,
    deadline: Option<TimerId>,
    /// When the first attempt to connect began.
    began: Instant,
    /// Present if the session is to be written to the connection log.
    trace: Option<Box<Trace>>,
    /// It is queued for a turn, so an event need not queue it again.
    pub(crate) is_queued: bool,
    _permit: Permit,
}

#[derive(Debug)]
enum State {
    Connecting(Connecting),
    Relaying(Relaying),
}

#[derive(Debug)]
struct Connecting {
    attempts: Attempts,
    current: Option<(Peer, Arc<Upstream>)>,
    /// How thoroughly the next attempt searches for a port. Thoroughly only once: all other attempts together
    /// try only a few ports for each endpoint.
    search: Search,
}

impl Session {
    /// A session for an accepted connection. [`Session::begin`] starts it.
    pub(crate) fn new(
        id: SlotId,
        downstream: Peer,
        (client, client_key): (SocketAddr, ClientKey),
        selection: Selection,
        trace: Option<Box<Trace>>,
        permit: Permit,
        now: Instant,
    ) -> Self {
        let attempts = Attempts::new(selection, now);
        let state = State::Connecting(Connecting { attempts, current: None, search: Search::Thorough });
        let (deadline, is_queued, has_port, is_network) = (None, false, false, client_key.is_network());
        Self {
            id,
            downstream,
            client,
            is_network,
            has_port,
            state,
            deadline,
            began: now,
            trace,
            is_queued,
            _permit: permit,
        }
    }

    /// The client that the session counts for.
    pub(crate) fn client_key(&self) -> ClientKey {
        ClientKey::of(self.client.ip(), self.is_network)
    }

    /// The description of the session for listings.
    pub(crate) fn look(&self) -> Connection {
        let (state, service_port, endpoint, moved, sent, received) = match &self.state {
            State::Connecting(Connecting { attempts, current, .. }) => {
                let port = attempts.selection().service_port().shared_name();
                let endpoint = current.as_ref().map(|(_, upstream)| upstream.address());
                (ConnectionState::Connecting, port, endpoint, self.began, 0, 0)
            }
            State::Relaying(relaying) => {
                let Relaying { lease, last_moved, sent, received, .. } = relaying;
                let endpoint = Some(lease.address());
                let state = relaying.state();
                (state, lease.service_port(), endpoint, *last_moved, *sent, *received)
            }
        };
        Connection {
            protocol: Protocol::Tcp,
            client: self.client,
            frontend: self.downstream.stream.local_addr().ok(),
            service_port: Arc::clone(service_port),
            endpoint,
            state,
            began: self.began,
            moved,
            bytes_to_endpoint: sent,
            bytes_from_endpoint: received,
        }
    }

    /// Starts the first attempt to connect. The client is not watched until an attempt has taken long: most
    /// sessions are connected before the client could have gone away.
    pub(crate) fn begin(&mut self, context: &mut Context<'_>) -> Step {
        self.attempt(context)
    }

    /// Handles an event of one of the two sockets.
    pub(crate) fn on_event(&mut self, side: Side, event: &Event, context: &mut Context<'_>) -> Step {
        match (&mut self.state, side) {
            (_, Side::Downstream) => self.downstream.note(event),
            (State::Connecting(Connecting { current: Some((peer, _)), .. }), _) => peer.note(event),
            (State::Connecting(_), _) => {}
            (State::Relaying(relaying), _) => relaying.upstream.note(event),
        }
        match (&self.state, side) {
            (State::Connecting(_), Side::Downstream) if event.is_error() || event.is_write_closed() => {
                context.core.stats.tcp_client_gone.add(1);
                Step::End(End::ClientGone)
            }
            (State::Connecting(_), Side::Downstream) => Step::Wait,
            (State::Connecting(_), Side::Upstream) => self.check_connect(context),
            (State::Relaying(_), _) if self.is_queued => Step::Wait,
            // In line with other bulk transfers: sessions that move little come first.
            (State::Relaying(relaying), _) if relaying.is_bulk() => Step::Again,
            (State::Relaying(_), _) => self.turn(context),
        }
    }

    /// Handles a deadline.
    pub(crate) fn on_timer(&mut self, context: &mut Context<'_>) -> Step {
        self.deadline = None;
        let now = context.core.refresh();
        let relaying = match &mut self.state {
            State::Connecting(_) => return self.check_overdue(context),
            State::Relaying(relaying) if relaying.poll_interval(now).is_some() => return self.turn(context),
            State::Relaying(relaying) => relaying,
        };
        let settles = self.began + SETTLED;
        if !relaying.is_settled && settles <= now {
            relaying.is_settled = true;
            socket::keep_alive(&self.downstream.stream);
            socket::keep_alive(&relaying.upstream.stream);
        }
        let idle_until = relaying
            .is_half_closed(&self.downstream)
            .then(|| relaying.last_moved + context.core.half_closed_idle);
        if idle_until.is_some_and(|until| until <= now) {
            context.core.stats.tcp_half_closed_timeouts.add(1);
            return Step::End(End::HalfClosed);
        }
        if let Some(next) = idle_until.into_iter().chain((!relaying.is_settled).then_some(settles)).min() {
            self.set_deadline(next, context);
        }
        Step::Wait
    }

    /// Moves what can be moved in both directions.
    pub(crate) fn turn(&mut self, context: &mut Context<'_>) -> Step {
        let State::Relaying(relaying) = &mut self.state else { return Step::Wait };
        let step = relaying.pump(&mut self.downstream, context);
        if step == Step::Wait {
            let now = context.core.now;
            let half_closed =
                || relaying.is_half_closed(&self.downstream).then_some(context.core.half_closed_idle);
            if let Some(at) = relaying.poll_interval(now).or_else(half_closed).map(|after| now + after)
                && self.deadline.is_none_or(|deadline| at < deadline.at())
            {
                self.set_deadline(at, context);
            }
        }
        match step {
            Step::Wait | Step::Again => self.watch(context).unwrap_or(step),
            Step::End(_) => step,
        }
    }

    /// Registers the connected sockets for events. Returns how the session goes on if that fails.
    fn watch(&mut self, context: &mut Context<'_>) -> Option<Step> {
        let registry = &context.core.registry;
        let mut watched = self.downstream.watch(registry, Source::Downstream(self.id).token());
        if let State::Relaying(relaying) = &mut self.state {
            let upstream = relaying.upstream.watch(registry, Source::Upstream(self.id).token());
            watched = watched.and(upstream);
        }
        let error = watched.err()?;
        if let Some(left_out) = context.core.says.unregistered.admit(context.core.now) {
            tracing::warn!(client = %self.client, %error, left_out, "cannot register a connection with epoll");
        }
        context.core.stats.tcp_over_limit.add(1);
        Some(Step::End(End::ThisNode))
    }

    /// Ends the session and closes both sockets.
    pub(crate) fn end(mut self, end: End, core: &mut Core) {
        if let Some(deadline) = self.deadline {
            core.timers.cancel(deadline);
        }
        let lasted = core.now.saturating_duration_since(self.began);
        if let State::Relaying(relaying) = &self.state {
            core.stats.times.tcp_sessions.add_alone(lasted);
            if core.service_times {
                relaying.service.times().lives.add(lasted);
            }
        }
        let endpoint = match &self.state {
            State::Connecting(connecting) => {
                connecting.current.as_ref().map(|(_, upstream)| upstream.address())
            }
            State::Relaying(relaying) => Some(relaying.lease.address()),
        };
        if let Some(endpoint) = endpoint {
            self.leave_port(endpoint, core);
        }
        self.tell(end, lasted, core);
        let ending = if end == End::Closed { Ending::Clean } else { Ending::Reset };
        socket::close(self.downstream.stream, ending);
        match self.state {
            State::Connecting(Connecting { current: Some((peer, _)), .. }) => {
                socket::close(peer.stream, Ending::Reset);
            }
            State::Connecting(_) => {}
            State::Relaying(relaying) => socket::close(relaying.upstream.stream, ending),
        }
    }

    /// Releases the local port towards this endpoint, if the session holds one.
    fn leave_port(&mut self, endpoint: SocketAddr, core: &mut Core) {
        if std::mem::take(&mut self.has_port) {
            core.port_shares.remove(endpoint, self.client_key());
        }
    }

    /// Writes the session to the connection log, if it was chosen for that.
    fn tell(&mut self, end: End, duration: Duration, core: &Core) {
        let (Some(log), Some(trace)) = (&core.log, self.trace.take()) else { return };
        let (service_port, endpoint, sent, received) = match &self.state {
            State::Connecting(connecting) => {
                (connecting.attempts.selection().service_port().shared_name(), None, 0, 0)
            }
            State::Relaying(relaying) => {
                let Relaying { lease, sent, received, .. } = relaying;
                (lease.service_port(), Some(lease.address()), *sent, *received)
            }
        };
        let record = Record {
            protocol: Protocol::Tcp,
            client: self.client,
            service_port: Arc::clone(service_port),
            endpoint,
            bytes_to_endpoint: sent,
            bytes_from_endpoint: received,
            duration,
            end,
            trace: *trace,
        };
        log.put(record, &core.stats);
    }

    fn set_deadline(&mut self, at: Instant, context: &mut Context<'_>) {
        let timers = &mut context.core.timers;
        if let Some(former) = self.deadline.replace(timers.set(at, TimerOwner::Session(self.id))) {
            timers.cancel(former);
        }
    }

    /// Starts attempts until one is in progress, or none is left.
    fn attempt(&mut self, context: &mut Context<'_>) -> Step {
        let client_key = self.client_key();
        let State::Connecting(connecting) = &mut self.state else { return Step::Wait };
        let mut failure = None;
        // Each attempt's time starts when it begins, not with the worker's turn.
        while let Some((upstream, timeout)) = connecting.attempts.next(context.core.refresh()) {
            let source = connecting.attempts.selection().source_address(&upstream);
            let local = Local::new(context.core.marks, self.client, source);
            let client = (self.client, client_key);
            let failed =
                match attempt::start(self.id, client, &upstream, local, &mut connecting.search, context.core)
                {
                    Ok(peer) => {
                        self.has_port = local.client.is_none();
                        if self.has_port {
                            context.core.port_shares.add(upstream.address(), client_key);
                        }
                        context.core.stats.tcp_retries.add(connecting.attempts.has_failed().into());
                        connecting.current = Some((peer, upstream));
                        if connecting.current.as_ref().is_some_and(|(peer, _)| peer.writable) {
                            return self.connected(context);
                        }
                        self.set_deadline(context.core.now + timeout, context);
                        return Step::Wait;
                    }
                    Err(failed) => failed,
                };
            failure = Some(failed);
            connecting.attempts.fail(&upstream, failed, context.core.now);
            if failed == Failure::OfThisNode {
                break;
            }
        }
        let stats = &context.core.stats;
        let is_ours = failure.is_some_and(Failure::is_ours);
        match failure {
            Some(Failure::OverPortShare) => stats.tcp_over_share.add(1),
            _ if is_ours => stats.tcp_over_limit.add(1),
            _ => stats.tcp_all_endpoints_failed.add(1),
        }
        if let Some(left_out) = context.core.says.unanswered.admit(context.core.now) {
            let service = connecting.attempts.selection().service_port().name();
            tracing::debug!(client = %self.client, %service, left_out, "no endpoint answers");
        }
        Step::End(if is_ours { End::ThisNode } else { End::NoEndpoint })
    }

    /// Handles an event of the connecting socket: it is connected, or has failed.
    fn check_connect(&mut self, context: &mut Context<'_>) -> Step {
        let State::Connecting(connecting) = &mut self.state else { return Step::Wait };
        let Some((peer, upstream)) = &connecting.current else { return Step::Wait };
        let failure = if peer.has_failed() {
            match peer.stream.take_error() {
                Ok(Some(error)) | Err(error) => Failure::reported(&error),
                Ok(None) => Failure::Refused,
            }
        } else if !peer.writable {
            return Step::Wait;
        } else if socket::is_self_connected(&peer.stream, upstream.address(), &context.core.local_ports) {
            Failure::Refused
        } else {
            return self.connected(context);
        };
        if let Some((peer, upstream)) = connecting.current.take() {
            socket::close(peer.stream, Ending::Reset);
            connecting.attempts.fail(&upstream, failure, context.core.now);
            self.leave_port(upstream.address(), context.core);
        }
        self.attempt(context)
    }

    /// Handles the timeout of the current attempt.
    fn check_overdue(&mut self, context: &mut Context<'_>) -> Step {
        let State::Connecting(connecting) = &mut self.state else { return Step::Wait };
        let Some((peer, upstream)) = &connecting.current else { return Step::Wait };
        // It may have succeeded while the worker was busy.
        if socket::is_connected(&peer.stream) {
            return self.connected(context);
        }
        match connecting.attempts.overdue(upstream, context.core.now) {
            Overdue::Wait(longer) => {
                self.set_deadline(context.core.now + longer, context);
                self.watch(context).unwrap_or(Step::Wait)
            }
            Overdue::Move | Overdue::GiveUp => {
                if let Some((mut peer, upstream)) = connecting.current.take() {
                    // A program that is just being started may hold the socket for a moment longer, and the
                    // next attempt has the same token.
                    peer.unwatch(&context.core.registry);
                    socket::close(peer.stream, Ending::Reset);
                    self.leave_port(upstream.address(), context.core);
                }
                match self.attempt(context) {
                    Step::Wait => self.watch(context).unwrap_or(Step::Wait),
                    other => other,
                }
            }
        }
    }

    fn connected(&mut self, context: &mut Context<'_>) -> Step {
        let State::Connecting(connecting) = &mut self.state else { return Step::Wait };
        let Some((upstream, endpoint)) = connecting.current.take() else { return Step::Wait };
        // The current time, not the time at which the worker's turn began.
        let known = context.core.refresh();
        let lease = connecting.attempts.connected(&endpoint, known);
        context.core.stats.tcp_established.add(1);
        let service = Arc::clone(connecting.attempts.selection().service_port());
        let took = known.saturating_duration_since(self.began);
        context.core.stats.times.tcp_connecting.add_alone(took);
        if context.core.service_times {
            service.times().connecting.add(took);
        }
        if let Some(trace) = &mut self.trace {
            trace.connect = Some(took);
        }
        self.state = State::Relaying(Relaying::new(upstream, lease, service, known));
        self.set_deadline(self.began + SETTLED, context);
        let step = self.turn(context);
        if let State::Relaying(relaying) = &self.state
            && relaying.sent == 0
        {
            socket::acknowledge_at_once(&relaying.upstream.stream);
        }
        step
    }
}

#[cfg(test)]
mod tests;
