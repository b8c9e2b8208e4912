//! What the maps of socket mode hold, and which operations the kernel offers for changing them. Pure data and
//! decisions: no system calls.
//!
//! * `layout`: the maps, byte by byte. `kernel`: the interface that writes them. `address`, `affinity`,
//!   `desc`, `failures`: conversions from and to our own types.
//! * `ids`, `ranges`: what is free. `maps`: the contents, and the order in which they change. `adopt`: takes
//!   over what an earlier agent has left. `memory`: maps in plain memory.

mod address;
mod adopt;
mod affinity;
mod desc;
mod failures;
mod ids;
mod kernel;
mod layout;
mod maps;
mod memory;
mod ranges;

pub use adopt::{Contents, Living};
pub use affinity::{Kept, KeptClients, KeptPart, SetAffinity, SetClients, SharedClients};
pub use desc::Desc;
pub use failures::Failures;
pub use kernel::{Capacity, Counters, Kernel};
pub use layout::{
    Account, AffinityKey, AffinityValue, Endpoint, FrontendKey, FrontendValue, MOST_SETS, Meta, Outcome,
    STRIPES, Set, Totals,
};
pub use layout::{endpoint_flags, meta_flags, protocol, set_flags, verdict};
pub use maps::{IdChange, Maps, Port, PortKey, Stats};
pub use memory::{Memory, Picked, Writes};
