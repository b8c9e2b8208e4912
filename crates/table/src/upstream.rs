//! An endpoint as the data plane sees it: its address, whether it still serves, and its counters.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sluice_model::{Endpoint, ServicePortName};

use crate::SourceAddress;
use crate::no_route::NoRoute;
use crate::passive_health::{Heard, PassiveHealth, Seen};
use crate::policy::SetName;
use crate::socket_health::{SocketNumber, SocketNumbers};

/// An endpoint that takes less time to connect to is near. Its connect time is not recorded.
const FAR: Duration = Duration::from_millis(100);

/// A connect that takes this long has lost its first SYN, which the kernel then retransmits
/// (`TCP_TIMEOUT_INIT`), so it says nothing about the distance.
const SYN_AGAIN: Duration = Duration::from_secs(1);

/// One endpoint of one service port. The same value lives for as long as the address stays in the service
/// port, whatever happens to its conditions, so its counters do not restart.
// In this order, the fields that a pick reads share a cache line with the reference count that it changes.
#[derive(Debug)]
#[repr(C)]
pub struct Upstream {
    no_route: NoRoute,
    health: PassiveHealth,
    address: SocketAddr,
    condition: AtomicU8,
    in_node_network: AtomicBool,
    /// How often it has left the sets that connections are balanced over.
    tenure: AtomicU32,
    /// How long it takes to connect, in milliseconds; 0 if less than [`FAR`].
    connect_time: AtomicU32,
    stats: UpstreamStats,
    socket_numbers: SocketNumbers,
    service_port: Arc<ServicePortName>,
}

/// What one endpoint has carried. Workers add, any thread reads. Every value is exact once the connections
/// that it counts have ended.
#[derive(Debug, Default)]
pub struct UpstreamStats {
    /// TCP connections established and UDP flows opened.
    pub connections: AtomicU64,
    /// Connections and flows that have not ended.
    pub active: AtomicU64,
    /// Connections being established; counted only with `least-connections`, which needs it.
    pub connecting: AtomicU64,
    /// Attempts to connect that failed: refused, unreachable, timed out.
    pub connect_failures: AtomicU64,
    /// Attempts to connect to this endpoint because another one had failed.
    pub retries: AtomicU64,
    /// How often it was ejected.
    pub passed_over: AtomicU64,
    /// Bytes of payload from clients to the endpoint.
    pub bytes_to_endpoint: AtomicU64,
    /// Bytes of payload from the endpoint to clients.
    pub bytes_from_endpoint: AtomicU64,
    /// Created with the first translated connection.
    translated: OnceLock<Box<Translated>>,
}

/// The translated connections of one endpoint. No worker has a part in them, and the kernel reports most of
/// these values when a connection ends. They are not included in what workers count.
#[derive(Debug, Default)]
pub struct Translated {
    /// TCP connections established, UDP sockets connected and flows opened.
    pub connections: AtomicU64,
    /// TCP connections that have not ended.
    pub active: AtomicU64,
    /// TCP connections that could not be established.
    pub failures: AtomicU64,
    /// TCP connections that have ended, which `micros` and the bytes below are about.
    pub closed: AtomicU64,
    /// How long they lasted in total.
    pub micros: AtomicU64,
    /// Bytes of payload from clients to the endpoint.
    pub bytes_to_endpoint: AtomicU64,
    /// Bytes of payload from the endpoint to clients.
    pub bytes_from_endpoint: AtomicU64,
}

/// The state of an endpoint according to the slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Condition {
    /// It takes new connections.
    pub ready: bool,
    /// It is ready, or still serves while it terminates. In the latter case it takes new connections if no
    /// endpoint is ready.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
    /// It is on this node.
    pub here: bool,
}

impl Condition {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;
    const HERE: u8 = 8;

    pub(crate) fn new(endpoint: &Endpoint, here: bool) -> Self {
        let Endpoint { ready, serving, terminating, .. } = *endpoint;
        Self { ready, serving: ready || serving, terminating, here }
    }

    fn bits(self) -> u8 {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        bit(self.ready, Self::READY)
            | bit(self.serving, Self::SERVING)
            | bit(self.terminating, Self::TERMINATING)
            | bit(self.here, Self::HERE)
    }

    fn of_bits(bits: u8) -> Self {
        Self {
            ready: bits & Self::READY != 0,
            serving: bits & Self::SERVING != 0,
            terminating: bits & Self::TERMINATING != 0,
            here: bits & Self::HERE != 0,
        }
    }
}

/// [`UpstreamStats`] at one moment, of one endpoint or the sum of several: relayed and translated traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// TCP connections established and UDP flows opened.
    pub connections: u64,
    /// Connections and flows that have not ended.
    pub active: u64,
    /// Attempts to connect that failed.
    pub failures: u64,
    /// Attempts to connect after another endpoint had failed.
    pub retries: u64,
    /// How often an endpoint was ejected.
    pub passed_over: u64,
    /// Bytes of payload from clients.
    pub bytes_to_endpoint: u64,
    /// Bytes of payload to clients.
    pub bytes_from_endpoint: u64,
    /// How many of the connections were translated.
    pub translated: u64,
    /// How many of the translated TCP connections have ended.
    pub translated_closed: u64,
    /// How long these lasted in total, in microseconds.
    pub translated_micros: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.active += other.active;
        self.failures += other.failures;
        self.retries += other.retries;
        self.passed_over += other.passed_over;
        self.bytes_to_endpoint += other.bytes_to_endpoint;
        self.bytes_from_endpoint += other.bytes_from_endpoint;
        self.translated += other.translated;
        self.translated_closed += other.translated_closed;
        self.translated_micros += other.translated_micros;
    }
}

impl UpstreamStats {
    /// The current values.
    pub fn traffic(&self) -> Traffic {
        let now = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let relayed = Traffic {
            connections: now(&self.connections),
            active: now(&self.active),
            failures: now(&self.connect_failures),
            retries: now(&self.retries),
            passed_over: now(&self.passed_over),
            bytes_to_endpoint: now(&self.bytes_to_endpoint),
            bytes_from_endpoint: now(&self.bytes_from_endpoint),
            ..Traffic::default()
        };
        let Some(translated) = self.translated.get() else { return relayed };
        Traffic {
            connections: relayed.connections + now(&translated.connections),
            active: relayed.active + now(&translated.active),
            failures: relayed.failures + now(&translated.failures),
            bytes_to_endpoint: relayed.bytes_to_endpoint + now(&translated.bytes_to_endpoint),
            bytes_from_endpoint: relayed.bytes_from_endpoint + now(&translated.bytes_from_endpoint),
            translated: now(&translated.connections),
            translated_closed: now(&translated.closed),
            translated_micros: now(&translated.micros),
            ..relayed
        }
    }

    /// The counters of translated connections.
    pub fn translated(&self) -> &Translated {
        self.translated.get_or_init(Box::default)
    }
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr, service_port: Arc<ServicePortName>) -> Self {
        Self {
            no_route: NoRoute::default(),
            health: PassiveHealth::default(),
            address,
            condition: AtomicU8::new(Condition::SERVING),
            in_node_network: AtomicBool::new(false),
            tenure: AtomicU32::new(0),
            connect_time: AtomicU32::new(0),
            stats: UpstreamStats::default(),
            socket_numbers: SocketNumbers::default(),
            service_port,
        }
    }

    /// Address and port to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The service port that it is an endpoint of. The name is available for as long as connections are, even
    /// when the Service is gone.
    pub fn service_port(&self) -> &Arc<ServicePortName> {
        &self.service_port
    }

    /// Whether the endpoint is ready, or terminating and still serving. UDP flows end when it is
    /// not; TCP connections are left alone.
    pub fn is_serving(&self) -> bool {
        self.condition.load(Ordering::Relaxed) & Condition::SERVING != 0
    }

    /// Its condition according to its slice.
    pub fn condition(&self) -> Condition {
        Condition::of_bits(self.condition.load(Ordering::Relaxed))
    }

    pub(crate) fn set_condition(&self, condition: Condition) {
        let bits = condition.bits();
        if self.condition.load(Ordering::Relaxed) != bits {
            self.condition.store(bits, Ordering::Relaxed);
        }
    }

    /// Whether its address is one of this node's, so that traffic to it is delivered locally. Always false in
    /// bind mode.
    pub fn is_in_node_network(&self) -> bool {
        self.in_node_network.load(Ordering::Relaxed)
    }

    pub(crate) fn set_in_node_network(&self, is_it: bool) {
        if self.is_in_node_network() != is_it {
            self.in_node_network.store(is_it, Ordering::Relaxed);
        }
    }

    /// Its id in the BPF programs' maps, as an endpoint of a set. `None` if the programs do not know it.
    pub fn socket_number(&self, set: SetName) -> Option<SocketNumber> {
        self.socket_numbers.get(set)
    }

    /// Sets or clears its id in the BPF programs' maps.
    pub fn set_socket_number(&self, set: SetName, number: Option<SocketNumber>) {
        if self.socket_number(set) != number {
            self.socket_numbers.set(set, number);
        }
    }

    /// Changes when the endpoint leaves both sets: an affinity from an earlier tenure is void even if the
    /// endpoint comes back.
    pub(crate) fn tenure(&self) -> u32 {
        self.tenure.load(Ordering::Relaxed)
    }

    pub(crate) fn end_tenure(&self) {
        self.tenure.fetch_add(1, Ordering::Relaxed);
    }

    /// How long new connections with this source address still avoid the endpoint because it is ejected. They
    /// use it nevertheless if no other endpoint is left.
    pub fn passed_over_for(&self, source: SourceAddress, now: Instant) -> Option<Duration> {
        self.health.remaining(source, now)
    }

    /// Whether it was skipped since its last success, for any source address, and may still be.
    #[inline]
    pub(crate) fn was_passed_over(&self) -> bool {
        self.no_route.may_be() || self.health.was_passed_over()
    }

    /// Records that this node has no route to it, which is not a failure of the endpoint. Returns whether
    /// that was known.
    pub(crate) fn note_no_route(&self, seen: Seen, now: Instant) -> bool {
        self.no_route.found(seen, now)
    }

    /// Records that there is a route to it.
    pub(crate) fn note_route(&self, seen: Seen) {
        self.no_route.is_over(seen);
    }

    /// Whether this node had no route to it a moment ago.
    pub(crate) fn has_no_route(&self, seen: Seen, now: Instant) -> bool {
        self.no_route.is_known(seen, now)
    }

    /// Consecutive failed connects with this source address since the last success.
    pub fn failures_in_a_row(&self, source: SourceAddress) -> u32 {
        self.health.failures(source)
    }

    /// Records a failed connect. `counts` is whether it can lead to an ejection.
    pub(crate) fn note_failure(&self, counts: bool, seen: Seen, heard: Heard, now: Instant) {
        self.stats.connect_failures.fetch_add(1, Ordering::Relaxed);
        if counts && self.health.failed(seen, heard, now) {
            self.stats.passed_over.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long the last connect took, if the endpoint is far away; otherwise 0.
    pub fn connect_time(&self) -> Duration {
        Duration::from_millis(self.connect_time.load(Ordering::Relaxed).into())
    }

    /// Records how long a connect took, or is expected to take.
    pub fn note_connect_time(&self, took: Duration) {
        if took >= SYN_AGAIN {
            return;
        }
        let took = if took < FAR { Duration::ZERO } else { took };
        let millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        if self.connect_time.load(Ordering::Relaxed) != millis {
            self.connect_time.store(millis, Ordering::Relaxed);
        }
    }

    pub(crate) fn note_success(&self, seen: Seen) {
        self.health.succeeded(seen);
    }

    /// Whether a new connection skips the endpoint, given the client that the endpoint would see.
    pub(crate) fn is_passed_over(&self, seen: Seen, now: Instant) -> bool {
        self.passed_over_for(seen.source(), now).is_some() || self.health.is_unheard(seen, now)
    }

    /// The endpoint's counters.
    pub fn stats(&self) -> &UpstreamStats {
        &self.stats
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use sluice_model::{ObjectName, Protocol};

    use super::*;

    /// The service port of endpoints that no writer has created.
    pub(crate) fn test_port() -> Arc<ServicePortName> {
        let service = ObjectName::new("default", "web");
        Arc::new(ServicePortName { service, port: "".into(), protocol: Protocol::Tcp })
    }

    #[test]
    fn the_last_connect_tells_how_far_an_endpoint_is_unless_a_syn_was_lost() {
        let upstream = Upstream::new("10.0.0.1:80".parse().unwrap(), test_port());
        let after = |millis| {
            upstream.note_connect_time(Duration::from_millis(millis));
            upstream.connect_time().as_millis()
        };
        let expected =
            [(3, 0), (300, 300), (650, 650), (1_000, 650), (3_100, 650), (999, 999), (100, 100), (99, 0)];
        for (took, expected) in expected {
            assert_eq!(after(took), expected, "{took}");
        }
    }
}
