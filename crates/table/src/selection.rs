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

/// Where a client is. It decides about the short circuit of `externalTrafficPolicy: Local` and about
/// the source address that endpoints see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pod of this node, as the local detector tells (`--detect-local-mode`).
    LocalPod,
    /// A process in the node's own network namespace.
    Node,
    /// Anywhere else, and every pod where there is no local detector.
    Outside,
}

impl Origin {
    /// On this node.
    pub fn is_inside(self) -> bool {
        self != Self::Outside
    }
}

/// Who asks for a connection.
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
    /// Whether it is for nothing but the number of connections that the Service has.
    pub fn is_limit(self) -> bool {
        self.verdict == TOO_MANY.verdict
    }
}

/// Endpoints that are named for one connection at most. The chance that so many are dead and another
/// one is not is small, and each costs a socket, a turn, and with a flood of clients the turns of others.
const ENDPOINTS: usize = 4;

/// Endpoints besides that one connection finds out not to be for it, which takes a look each, and no socket.
const NOT_TRIED: usize = 16;

/// Of those that are tried, the ones that are passed over otherwise. They have all just failed several times; what a
/// connection is to find out is whether that is over, and other connections find it out too. Of those that this node
/// knew no way to it is one.
const LAST_RESORTS: usize = 2;

/// The Service has as many connections as it may.
const TOO_MANY: Rejection = Rejection { verdict: Verdict::Refuse(Reason::TooManyConnections) };

/// Names the endpoints to try for one connection: first the one that the rules choose, and after
/// each failure another one, until every endpoint of the set was tried or enough were: four, and of those
/// that are passed over two.
///
/// Each is chosen from the endpoints as they are at that moment: one that went away while another
/// was tried is not named any more. Dropping the selection says that the attempt is over.
#[derive(Debug)]
pub struct Selection {
    port: Arc<ServicePort>,
    client: Client,
    kind: FrontendKind,
    /// Before it is known which endpoint it is.
    source: SourceAddress,
    /// The endpoint that was chosen together with the verdict.
    first: Option<Arc<Upstream>>,
    /// Endpoints that are not named any more: [`ENDPOINTS`] that were tried, and [`NOT_TRIED`] that were not, at most. Allocates
    /// only once there is one.
    failed: Vec<Arc<Upstream>>,
    /// How many of those were not tried.
    not_tried: usize,
    /// How many were named that are passed over otherwise; as good as all that may be once none is left that is any better.
    last_resorts: usize,
    connecting: Option<Connecting>,
    /// Its part of the Service's limit, until it is handed to the lease.
    slot: Option<Slot>,
    /// Whether failures can lead to an endpoint being passed over.
    passive_health: bool,
}

impl Selection {
    /// Decides about a new connection or flow; or about one that goes on, which names the endpoint that it has first.
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

    /// The next endpoint to try, one that has not [`fail`](Self::fail)ed; none if all have, or enough.
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

    /// Whether enough endpoints were named.
    fn is_exhausted(&self) -> bool {
        let tried = self.failed.len() - self.not_tried;
        tried >= ENDPOINTS || self.not_tried >= NOT_TRIED || self.last_resorts >= LAST_RESORTS
    }

    /// The address from which to connect to the endpoint that was named last.
    pub fn source_address(&self, upstream: &Upstream) -> SourceAddress {
        self.source.towards(self.client, upstream)
    }

    /// Notes that connecting to the endpoint that was named last failed, and what was heard of it: it is
    /// not named again, and counted.
    pub fn fail(&mut self, upstream: &Arc<Upstream>, heard: Heard, now: Instant) {
        self.connecting = None;
        let seen = Seen::new(self.source_address(upstream), self.client.ip);
        upstream.note_failure(self.passive_health, seen, heard, now);
        self.port.tell(upstream, false);
        if !self.failed.iter().any(|failed| Arc::ptr_eq(failed, upstream)) {
            self.failed.push(Arc::clone(upstream));
        }
    }

    /// Notes that this node knows no way to the endpoint that was named last: it is not named again, and others pass it
    /// over for a second, but it is not blamed.
    pub fn no_route(&mut self, upstream: &Arc<Upstream>, now: Instant) {
        let seen = Seen::new(self.source_address(upstream), self.client.ip);
        let was_known = upstream.note_no_route(seen, now);
        if was_known && self.last_resorts > 0 {
            // None is left that is any better.
            self.last_resorts = LAST_RESORTS;
        }
        self.skip(upstream);
    }

    /// Has an endpoint not named again that was not even tried: no socket was made, as it is known already that there is no
    /// port towards it for this client.
    pub fn pass_by(&mut self, upstream: &Arc<Upstream>) {
        self.skip(upstream);
        self.not_tried += 1;
    }

    /// Has an endpoint not named again, by no fault of its own.
    pub fn skip(&mut self, upstream: &Arc<Upstream>) {
        self.connecting = None;
        self.failed.push(Arc::clone(upstream));
    }

    /// Notes that the connection is established (TCP) or the flow opened (UDP). The lease counts it
    /// as active until it is dropped.
    ///
    /// An established connection is an answer from the endpoint; an opened flow is not: see
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
