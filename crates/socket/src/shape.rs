//! The shapes of the maps: kinds and sizes, as in the object, and the number of elements, which the caller
//! configures.

use sluice_socket_maps::{
    Account, AffinityKey, AffinityValue, Capacity, Endpoint, FrontendKey, Meta, STRIPES, Totals,
};

use crate::layout::{Conn, Keeping, Outcomes, Set, SlotLine, Sources};

/// Slots per element of their map: `SLOTS_PER_LINE` of layout.h.
pub(crate) const SLOTS_PER_LINE: u32 = 16;

/// Values of `enum bpf_map_type`.
pub(crate) mod kind {
    pub(crate) const HASH: u32 = 1;
    pub(crate) const ARRAY: u32 = 2;
    pub(crate) const SOCKET_STORAGE: u32 = 24;
}

/// `BPF_F_NO_PREALLOC` and `BPF_F_MMAPABLE`.
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// A map of the object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) flags: u32,
    /// The number of elements for a capacity.
    pub(crate) elements: fn(&Capacity) -> u32,
}

const fn array(name: &'static str, value_size: u32, elements: fn(&Capacity) -> u32) -> Shape {
    Shape { name, kind: kind::ARRAY, key_size: 4, value_size, flags: MMAPABLE, elements }
}

const fn storage(name: &'static str, value_size: u32) -> Shape {
    Shape { name, kind: kind::SOCKET_STORAGE, key_size: 4, value_size, flags: NO_PREALLOC, elements: |_| 0 }
}

/// The size of a key or a value, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "some hundred bytes at most")]
const fn bytes<T>() -> u32 {
    size_of::<T>() as u32
}

/// The map of frontends.
pub(crate) const FRONTENDS: &str = "frontends";

/// The map of connected sockets: what they were translated to.
pub(crate) const CONNS: &str = "conns";

/// The map that tells programs about the node and the agent.
pub(crate) const META: &str = "meta";

/// The socket storage of unconnected UDP sockets: the endpoints that they talk to.
pub(crate) const FLOWS: &str = "flows";

/// The map of pods' network namespaces.
pub(crate) const NAMESPACES: &str = "namespaces";

/// The most network namespaces: a node has some hundred pods.
pub(crate) const MOST_NAMESPACES: u32 = 8192;

/// The map of clients with session affinity.
pub(crate) const AFFINITIES: &str = "affinities";

/// The most clients with session affinity; more are left to the relay. The kernel takes 16 bytes for each of
/// the buckets alone.
pub(crate) const MOST_CLIENTS: u32 = 1 << 14;

fn clients(capacity: &Capacity) -> u32 {
    (capacity.sets / 4).clamp(1, MOST_CLIENTS)
}

/// The array of source addresses that sockets have when they connect to an address.
pub(crate) const SOURCES: &str = "sources";

/// How many sources share a place, and how many places there are: of layout.h.
pub(crate) const SOURCES_TOGETHER: u32 = 4;
pub(crate) const SOURCE_PLACES: u32 = 512;

/// The memory of the maps that are allocated as a whole at the start, in bytes.
pub fn mapped_bytes(capacity: &Capacity) -> u64 {
    let arrays = SHAPES.iter().filter(|shape| shape.kind == kind::ARRAY);
    // The kernel aligns each element to 8 bytes.
    arrays
        .map(|shape| u64::from(shape.value_size.next_multiple_of(8)) * u64::from((shape.elements)(capacity)))
        .sum()
}

/// All maps.
pub(crate) const SHAPES: [Shape; 13] = [
    Shape {
        name: FRONTENDS,
        kind: kind::HASH,
        key_size: bytes::<FrontendKey>(),
        value_size: bytes::<Outcomes>(),
        flags: NO_PREALLOC,
        elements: |capacity| capacity.frontends,
    },
    Shape {
        name: NAMESPACES,
        kind: kind::HASH,
        key_size: 8,
        value_size: 1,
        flags: NO_PREALLOC,
        elements: |_| MOST_NAMESPACES,
    },
    Shape {
        name: AFFINITIES,
        kind: kind::HASH,
        key_size: bytes::<AffinityKey>(),
        value_size: bytes::<AffinityValue>(),
        flags: NO_PREALLOC,
        elements: clients,
    },
    array(SOURCES, bytes::<Sources>(), |_| SOURCE_PLACES),
    array("sets", bytes::<Set>(), |capacity| capacity.sets),
    // With more sets than clients, there would be sets without room for any client.
    array("keeping", bytes::<Keeping>(), clients),
    array("slots", bytes::<SlotLine>(), |capacity| capacity.slots.div_ceil(SLOTS_PER_LINE)),
    array("endpoints", bytes::<Endpoint>(), |capacity| capacity.endpoints),
    array("accounts", bytes::<Account>(), |capacity| capacity.endpoints),
    array("totals", bytes::<Totals>(), |_| STRIPES),
    storage(CONNS, bytes::<Conn>()),
    // Only programs read it: `struct flows` of layout.h.
    storage(FLOWS, 408),
    // Pinned last: without it, the directory is incomplete.
    array(META, bytes::<Meta>(), |_| 1),
];
