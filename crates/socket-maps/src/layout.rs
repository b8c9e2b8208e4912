//! How the maps that the programs in the kernel read are laid out, byte by byte. The C side has the same in
//! `layout.h`; a test of the crate that loads the programs compares both by BTF.

use sluice_table::BUCKETS;

/// Values of [`FrontendKey::protocol`]: those of IP.
pub mod protocol {
    /// TCP, and MPTCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// Values of [`Outcome::verdict`].
pub mod verdict {
    /// Not translated: rules and relay decide.
    pub const RELAY: u8 = 0;
    /// Translated to the endpoint of the set whose turn it is.
    pub const BALANCE: u8 = 1;
    /// `ECONNREFUSED`.
    pub const REFUSE: u8 = 2;
}

/// Bits of [`Set::flags`].
pub mod set_flags {
    /// Any endpoint, with equal chances, instead of turns.
    pub const RANDOM: u32 = 1;
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Its address is an IPv4 one, mapped into IPv6.
    pub const V4: u16 = 1;
    /// Nobody has had a connection to it yet. Never of a set for datagrams, which prove nothing.
    pub const UNPROVEN: u16 = 2;
    /// Flows may keep to it: it is of UDP. For whoever takes the maps over.
    pub const FLOWS: u16 = 4;
    /// Of one of TCP: no set has it any more, so no client keeps it.
    pub const LEFT: u16 = 8;
    /// What is above says whose it is, where [`FLOWS`] is set: see `Endpoint::with_flows`.
    pub(crate) const OWNER_SHIFT: u32 = 3;
}

/// Bits of [`Meta::flags`]: whose UDP sockets are decided about when they connect, and whose sockets at all.
pub mod meta_flags {
    /// Those of the node's own network.
    pub const NODE_UDP: u32 = 1;
    /// All others.
    pub const PODS_UDP: u32 = 2;
    /// Sockets in network namespaces that are neither the node's nor known are left alone, while an agent lives.
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

/// What becomes of a connection or a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Outcome {
    /// The set, for [`verdict::BALANCE`]; below [`MOST_SETS`].
    pub set: u32,
    /// One of [`verdict`].
    pub verdict: u8,
}

/// How many sets an outcome can tell apart.
pub const MOST_SETS: u32 = 1 << 24;

/// What becomes of those to a frontend, by whose socket it is. Not as it is laid out: the programs have it in less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FrontendValue {
    /// For sockets in the network namespace of the host.
    pub node: Outcome,
    /// For all others.
    pub pod: Outcome,
    /// The service port, for whoever takes the maps over.
    pub service: u32,
}

/// Endpoints that take turns. Not as it is laid out: the programs have it in less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Set {
    /// The range of slots: base in the upper 32 bits, then count and rotation with 16 bits each. The turn is that of
    /// `slots[base + (cursor + rotation) % count]`.
    pub desc: u64,
    /// How many turns there have been; begins again.
    pub cursor: u32,
    /// Bits of [`set_flags`].
    pub flags: u32,
    /// Where clients keep their endpoints, as [`SetAffinity::pack`](crate::SetAffinity::pack) has it; else 0.
    pub affinity: u64,
}

/// A client of a set whose clients keep their endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct AffinityKey {
    /// Its address; an IPv4 one is mapped into IPv6.
    pub addr: [u8; 16],
    /// The set's number for that: see [`SetAffinity`](crate::SetAffinity).
    pub number: u32,
}

/// The endpoint of such a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct AffinityValue {
    /// The endpoint.
    pub id: u32,
    /// The endpoint's incarnation, and a hash of the key, by exclusive or.
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
    /// Another one whenever the id stops meaning what it did: sockets that remember it choose anew.
    pub incarnation: u32,
    /// Failures since the last success, as [`Failures::pack`](crate::Failures::pack) has them.
    pub failures: u64,
}

/// What the sockets translated to an endpoint have done. All of it only grows; numbers of 32 bits begin again at 0,
/// or are 0 until there is something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Account {
    /// Connections that were established, and datagram sockets and flows translated.
    pub connections: u32,
    /// Of the connections, those that are over.
    pub closed: u32,
    /// Connections that were refused or came to nothing by another error of the endpoint's or the network's.
    pub failed: u32,
    /// When a connection was last established, in units of 2^20 ns of `CLOCK_MONOTONIC`.
    pub served: u32,
    /// Bytes to the endpoint that it acknowledged, of connections that are over.
    pub bytes_to: u64,
    /// Bytes from the endpoint, of connections that are over.
    pub bytes_from: u64,
    /// How long those connections lasted, in microseconds, all together.
    pub duration_us: u64,
}

/// Elements of the array of [`Totals`]: a CPU counts in one of them.
pub const STRIPES: u32 = 64;

/// What is counted of all endpoints together. All of it only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Totals {
    /// Connections that the client gave up before they were made.
    pub aborted: u64,
    /// Connections whose first packet had to be sent again.
    pub timeouts: u64,
    /// Connections that are over, by how long they lasted: up to each bound of
    /// [`Times::of_lives`](sluice_table::Times::of_lives), and longer.
    pub lives: [u64; BUCKETS + 1],
    /// Zero.
    pub pad: [u64; 5],
}

/// What all programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Meta {
    /// Which layout this is.
    pub layout: u64,
    /// The host's network namespace (`SO_NETNS_COOKIE`).
    pub host_cookie: u64,
    /// When an agent was last alive, in nanoseconds of `CLOCK_MONOTONIC`.
    pub heartbeat_ns: u64,
    /// Bits of a socket's mark by which the relay's own are known; 0 is none.
    pub relay_mark: u32,
    /// Ports of proxies in pods that packets there are redirected to, in network order; 0 is none.
    pub sidecar_ports: [[u8; 2]; 2],
    /// How long a flow of an unconnected socket keeps its endpoint while nothing is said; 0 is for ever.
    pub flow_idle_ns: u64,
    /// Bits of [`meta_flags`].
    pub flags: u32,
    #[doc(hidden)]
    pub pad: u32,
}
