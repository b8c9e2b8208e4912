//! What the maps of socket mode hold, and what the kernel offers for changing them. Pure data and decisions:
//! no system calls.

mod kernel;
mod layout;

pub use kernel::{Capacity, Kernel};
pub use layout::{Account, Endpoint, FrontendKey, FrontendValue, Meta, Outcome, Set, verdict};
pub use layout::{endpoint_flags, protocol};
