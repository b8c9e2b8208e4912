//! The endpoints for one connection, in the order in which they are to be tried.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sluice_model::{FrontendKind, Protocol};

use crate::balance::Connecting;
use crate::connection_limit::Slot;
use crate::passive_health::{Heard, Seen};
use crate::service_port::{Asked, Picked, ServicePort};
use crate::socket_health::may_be_decided_there;
use crate::{Balance, Lease, Reason, SourceAddress, Upstream, Verdict};

/// Where a client is. The short circuit of `externalTrafficPolicy: Local` and the source address that
/// endpoints see depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pod of this node, according to the local detector (`--detect-local-mode`).
    LocalPod,
    /// A process in the node's own network namespace.
    Node,
    /// Anywhere else; without a local detector, also every pod.
    Outside,
}

impl Origin {
    /// Whether the client is on this node.
    pub fn is_inside(self) -> bool {
        self != Self::Outside
    }
}

/// The client of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    /// The address it connects from.
    pub ip: IpAddr,
    /// Where it is.
    pub origin: Origin,
}

/// A connection that is not to be relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// Refuse or drop, and why. Never [`Verdict::Relay`].
    pub verdict: Verdict,
}

impl Rejection {
    /// Whether the Service's connection limit is the only reason.
    pub fn is_limit(self) -> bool {
        self.verdict == TOO_MANY.verdict
    }
}

/// The maximum number of endpoints that are tried for one connection. It is unlikely that this many are dead
/// and another one is not. Each attempt costs a socket and a round-robin position, and a flood of clients
/// would use up the positions of others.
const ENDPOINTS: usize = 4;

/// The maximum number of endpoints that a connection skips without trying them. Each costs a check, but no
/// socket.
const NOT_TRIED: usize = 16;

/// The maximum number of skipped (ejected) endpoints that are tried as a last resort. They have all just
/// failed several times. A connection only has to find out whether one of them has recovered, and other
/// connections find out too. Only one is tried if this node had no route to it.
const LAST_RESORTS: usize = 2;

/// The Service's connection limit is reached.
const TOO_MANY: Rejection = Rejection { verdict: Verdict::Refuse(Reason::TooManyConnections) };

/// Returns the endpoints to try for one connection: first the one that the rules choose, and after each
/// failure another one. It ends when every endpoint of the set was tried, or four were, or two that are only
/// a last resort.
///
/// Each is chosen from the current endpoints, so one that has gone while another one was tried is not
/// returned. Dropping the selection ends the attempt.
#[derive(Debug)]
pub struct Selection {
    port: Arc<ServicePort>,
    client: Client,
    kind: FrontendKind,
    /// Before the endpoint is known.
    source: SourceAddress,
    /// The endpoint that was chosen together with the verdict.
    first: Option<Arc<Upstream>>,
    /// Endpoints that are not returned again: at most [`ENDPOINTS`] that were tried and [`NOT_TRIED`] that
    /// were not. Allocated with the first one.
    failed: Vec<Arc<Upstream>>,
    /// How many of `failed` were not tried.
    not_tried: usize,
    /// How many were tried as a last resort. Set to the maximum when no better endpoint is left.
    last_resorts: usize,
    connecting: Option<Connecting>,
    /// The connection's slot in the Service's limit, until the lease takes it.
    slot: Option<Slot>,
    /// Whether failures can eject an endpoint.
    passive_health: bool,
}

impl Selection {
    /// Decides about a new connection or flow, or about an existing flow, for which `kept` is the first
    /// endpoint.
    #[inline]
    pub(crate) fn new(
        port: &Arc<ServicePort>,
        kind: FrontendKind,
        client: Client,
        kept: Option<Arc<Upstream>>,
        now: Instant,
    ) -> Result<Self, Rejection> {
        let client = client.canonical();
        let backends = port.load();
        let (set, source) = backends.decide(kind, client).map_err(|verdict| Rejection { verdict })?;
        let slot = match &backends.rules.limit {
            None => None,
            Some(limit) => Some(limit.take().ok_or(TOO_MANY)?),
        };
        let asked = Asked { set, client, source, now };
        let kept = kept.map(|upstream| Picked { upstream, is_last_resort: false });
        let picked = kept.or_else(|| {
            let may_be_due_to_doubt = may_be_decided_there(kind, client.origin);
            let in_doubt = may_be_due_to_doubt.then(|| port.pick_in_doubt(&backends, asked)).flatten();
            in_doubt.or_else(|| port.pick(&backends, asked))
        });
        let last_resorts = picked.as_ref().map_or(0, |picked| usize::from(picked.is_last_resort));
        let first = picked.map(|picked| picked.upstream);
        let connecting = first.as_ref().filter(|_| backends.balance() == Balance::LeastConnections);
        let connecting = connecting.map(Connecting::new);
        let passive_health = backends.rules.passive_health;
        let port = Arc::clone(port);
        let (failed, not_tried) = (Vec::new(), 0);
        Ok(Self {
            port,
            client,
            kind,
            source,
            first,
            failed,
            not_tried,
            last_resorts,
            connecting,
            slot,
            passive_health,
        })
    }

    /// The service port that the connection is for.
    pub fn service_port(&self) -> &Arc<ServicePort> {
        &self.port
    }

    /// The next endpoint to try, never one that has [`fail`](Self::fail)ed. `None` once all endpoints have
    /// failed, or enough of them.
    #[inline]
    pub fn next(&mut self, now: Instant) -> Option<Arc<Upstream>> {
        self.first.take().or_else(|| self.another(now))
    }

    #[inline(never)]
    fn another(&mut self, now: Instant) -> Option<Arc<Upstream>> {
        self.connecting = None;
        if self.is_exhausted() {
            return None;
        }
        let backends = self.port.load();
        let (set, source) = backends.decide(self.kind, self.client).ok()?;
        let asked = Asked { set, client: self.client, source, now };
        let picked = self.port.pick_other(&backends, asked, &self.failed, self.last_resorts > 0)?;
        let Picked { upstream, is_last_resort } = picked;
        self.last_resorts += usize::from(is_last_resort);
        self.source = source;
        if !self.failed.is_empty() {
            upstream.stats().retries.fetch_add(1, Ordering::Relaxed);
        }
        if backends.balance() == Balance::LeastConnections {
            self.connecting = Some(Connecting::new(&upstream));
        }
        Some(upstream)
    }

    /// Whether enough endpoints were returned.
    fn is_exhausted(&self) -> bool {
        let tried = self.failed.len() - self.not_tried;
        tried >= ENDPOINTS || self.not_tried >= NOT_TRIED || self.last_resorts >= LAST_RESORTS
    }

    /// The address from which to connect to the endpoint that was returned last.
    pub fn source_address(&self, upstream: &Upstream) -> SourceAddress {
        self.source.towards(self.client, upstream)
    }

    /// Records that connecting to the endpoint that was returned last failed, and how. It is counted, and the
    /// endpoint is not returned again.
    pub fn fail(&mut self, upstream: &Arc<Upstream>, heard: Heard, now: Instant) {
        self.connecting = None;
        let seen = Seen::new(self.source_address(upstream), self.client.ip);
        upstream.note_failure(self.passive_health, seen, heard, now);
        self.port.tell(upstream, false);
        if !self.failed.iter().any(|failed| Arc::ptr_eq(failed, upstream)) {
            self.failed.push(Arc::clone(upstream));
        }
    }

    /// Records that this node has no route to the endpoint that was returned last. It is not returned again,
    /// and other connections skip it for a second, but this is not counted as its failure.
    pub fn no_route(&mut self, upstream: &Arc<Upstream>, now: Instant) {
        let seen = Seen::new(self.source_address(upstream), self.client.ip);
        let was_known = upstream.note_no_route(seen, now);
        if was_known && self.last_resorts > 0 {
            // No better endpoint is left.
            self.last_resorts = LAST_RESORTS;
        }
        self.skip(upstream);
    }

    /// Excludes an endpoint without trying it: it is already known that no source port towards it is free for
    /// this client, so no socket was made.
    pub fn pass_by(&mut self, upstream: &Arc<Upstream>) {
        self.skip(upstream);
        self.not_tried += 1;
    }

    /// Excludes an endpoint without counting a failure.
    pub fn skip(&mut self, upstream: &Arc<Upstream>) {
        self.connecting = None;
        self.failed.push(Arc::clone(upstream));
    }

    /// Records that the connection is established (TCP) or the flow opened (UDP). It counts as active until
    /// the lease is dropped.
    ///
    /// An established connection proves that the endpoint answers. An opened flow does not: see
    /// [`Lease::answered`] and [`Lease::refused`].
    pub fn connected(&mut self, upstream: &Arc<Upstream>, _now: Instant) -> Lease {
        let source = self.source_address(upstream);
        let seen = Seen::new(source, self.client.ip);
        upstream.note_route(seen);
        if self.port.name().protocol == Protocol::Tcp {
            upstream.note_success(seen);
            self.port.tell(upstream, true);
        }
        Lease::new(upstream, self.client.ip, source, self.passive_health).with(self.slot.take())
    }
}
