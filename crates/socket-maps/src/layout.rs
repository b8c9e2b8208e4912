//! The layout of the maps that the BPF programs read, byte by byte. `layout.h` has the same in C; a test of
//! the crate that loads the programs compares both by BTF.

use sluice_table::BUCKETS;

/// Values of [`FrontendKey::protocol`]: IP protocol numbers.
pub mod protocol {
    /// TCP, and MPTCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// Values of [`Outcome::verdict`].
pub mod verdict {
    /// Not translated: the capture's rules and the relay handle it.
    pub const RELAY: u8 = 0;
    /// Translated to the set's next endpoint.
    pub const BALANCE: u8 = 1;
    /// `ECONNREFUSED`.
    pub const REFUSE: u8 = 2;
}

/// Bits of [`Set::flags`].
pub mod set_flags {
    /// At random, with equal probability, instead of round robin.
    pub const RANDOM: u32 = 1;
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Its address is an IPv4 one, mapped into IPv6.
    pub const V4: u16 = 1;
    /// Unverified: no connection to it has succeeded yet. Never set for datagrams, which prove nothing.
    pub const UNPROVEN: u16 = 2;
    /// A UDP endpoint, so flows may stay with it. For a successor.
    pub const FLOWS: u16 = 4;
    /// A TCP endpoint that no set contains any more, so no client keeps it.
    pub const LEFT: u16 = 8;
    /// The bits above name the owner, if [`FLOWS`] is set: see `Endpoint::with_flows`.
    pub(crate) const OWNER_SHIFT: u32 = 3;
}

/// Bits of [`Meta::flags`]: whose UDP sockets are translated when they connect, and whose sockets are
/// translated at all.
pub mod meta_flags {
    /// UDP sockets in the node's network namespace.
    pub const NODE_UDP: u32 = 1;
    /// All other UDP sockets.
    pub const PODS_UDP: u32 = 2;
    /// While an agent is alive, sockets in network namespaces that are neither the node's nor known are not
    /// translated.
    pub const KNOWN_ONLY: u32 = 4;
}

/// A frontend: where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct FrontendKey {
    /// The address; an IPv4 one is mapped into IPv6.
    pub addr: [u8; 16],
    /// The port, in network order.
    pub port: [u8; 2],
    /// One of [`protocol`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// What happens to a connection or a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Outcome {
    /// The set, for [`verdict::BALANCE`]; below [`MOST_SETS`].
    pub set: u32,
    /// One of [`verdict`].
    pub verdict: u8,
}

/// The number of sets that an outcome can distinguish.
pub const MOST_SETS: u32 = 1 << 24;

/// The outcomes for a frontend, by the kind of client. This is not the layout in the map, which is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FrontendValue {
    /// For sockets in the host's network namespace.
    pub node: Outcome,
    /// For all other sockets.
    pub pod: Outcome,
    /// The service port, for a successor.
    pub service: u32,
}

/// A set of endpoints. This is not the layout in the map, which is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Set {
    /// The range of slots: the base in the upper 32 bits, then count and rotation with 16 bits each. The next
    /// endpoint is `slots[base + (cursor + rotation) % count]`.
    pub desc: u64,
    /// The number of turns so far; it wraps around.
    pub cursor: u32,
    /// Bits of [`set_flags`].
    pub flags: u32,
    /// Session affinity, as packed by [`SetAffinity::pack`](crate::SetAffinity::pack); 0 without.
    pub affinity: u64,
}

/// A client of a set with session affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct AffinityKey {
    /// Its address; an IPv4 one is mapped into IPv6.
    pub addr: [u8; 16],
    /// The set's [`SetAffinity::number`](crate::SetAffinity::number).
    pub number: u32,
}

/// The endpoint of such a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct AffinityValue {
    /// The endpoint.
    pub id: u32,
    /// The endpoint's incarnation XOR a hash of the key.
    pub check: u32,
    /// When the client last connected, in nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ns: u64,
}

/// An endpoint of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Endpoint {
    /// The address; an IPv4 one is mapped into IPv6.
    pub addr: [u8; 16],
    /// The port, in network order.
    pub port: [u8; 2],
    /// Bits of [`endpoint_flags`].
    pub flags: u16,
    /// Changes whenever the id stops meaning what it did: sockets that remember it choose a new endpoint.
    pub incarnation: u32,
    /// Failures since the last success, as packed by [`Failures::pack`](crate::Failures::pack).
    pub failures: u64,
}

/// Counters of the sockets translated to an endpoint. They never decrease, except that 32-bit ones wrap
/// around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Account {
    /// Connections established, and datagram sockets and flows translated.
    pub connections: u32,
    /// The connections that have ended.
    pub closed: u32,
    /// Connections that were refused or failed by another error of the endpoint or the network.
    pub failed: u32,
    /// When a connection was last established, in units of 2^20 ns of `CLOCK_MONOTONIC`; 0 if none was.
    pub served: u32,
    /// Bytes to the endpoint that it acknowledged, of ended connections.
    pub bytes_to: u64,
    /// Bytes from the endpoint, of ended connections.
    pub bytes_from: u64,
    /// How long these connections lasted in total, in microseconds.
    pub duration_us: u64,
}

/// The number of elements in the array of [`Totals`]. Each CPU counts in one of them.
pub const STRIPES: u32 = 64;

/// Counters of all endpoints together. They never decrease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Totals {
    /// Connections that the client gave up before they were established.
    pub aborted: u64,
    /// Connections whose SYN had to be retransmitted.
    pub timeouts: u64,
    /// Ended connections by how long they lasted: up to each bound of
    /// [`Times::of_lives`](sluice_table::Times::of_lives), and longer.
    pub lives: [u64; BUCKETS + 1],
    /// Zero.
    pub pad: [u64; 5],
}

/// The settings that all programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Meta {
    /// The version of this layout.
    pub layout: u64,
    /// The host's network namespace (`SO_NETNS_COOKIE`).
    pub host_cookie: u64,
    /// When an agent was last alive, in nanoseconds of `CLOCK_MONOTONIC`.
    pub heartbeat_ns: u64,
    /// Bits of a socket's mark that identify the relay's own sockets; 0 means none.
    pub relay_mark: u32,
    /// Ports of proxies in pods to which packets are redirected there, in network order; 0 means none.
    pub sidecar_ports: [[u8; 2]; 2],
    /// How long a flow of an unconnected socket may be idle and still keep its endpoint; 0 means for ever.
    pub flow_idle_ns: u64,
    /// Bits of [`meta_flags`].
    pub flags: u32,
    #[doc(hidden)]
    pub pad: u32,
}
