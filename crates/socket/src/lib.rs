//! Socket mode's side of the kernel: BPF programs that translate the address of a Service to that of an endpoint when
//! a socket connects or sends. This crate has the programs, loads and attaches them, keeps their maps and links
//! pinned, and writes the maps; what belongs into them is decided in `sluice-socket-maps`.
//!
//! * `programs/`: the programs in C, and the object that is made of them and loaded.
//! * `object`: reading and relocating it. `shape`: the maps as they are to be. `pins`: the directory that
//!   outlives the agent. `attach`: all of it, in order. `attached`: writing the maps; `sets` and
//!   `frontends`: those of these. `accounts`: what the programs count. `health`: what is known of endpoints, `clients`: which of them clients keep,
//!   `sources`: what addresses clients have; changed by others too.
//! * `links`: whether it is still attached. `removal`: taking all of it away.
//! * `namespaces`: which of the network's are pods'.
//! * `census`: which sockets are translated. `ending`: which of these are ended. `destroy`: where. `diag`: how.
//! * `cgroup`: finding the root of all cgroups. `mounts`: what is mounted where. `probe`: what a node lacks, each with its mend.
//!   `rights`: what this thread may do.
//!
//! No threads and no clocks of its own; little of it is called more often than endpoints change.

mod accounts;
mod attach;
mod attached;
mod census;
mod cgroup;
mod clients;
mod destroy;
mod diag;
mod ending;
mod error;
mod frontends;
mod health;
mod links;
mod mounts;
mod namespaces;
mod object;
mod pins;
mod probe;
mod removal;
mod rights;
mod sets;
mod shape;
mod sources;

pub use accounts::Accounts;
pub use attach::{Config, Programs};
pub use attached::Attached;
pub use census::{Census, Translated};
pub use cgroup::{cgroup_root, is_initial_network};
pub use destroy::{Endable, EndedSockets};
pub use error::{Error, passes};
pub use frontends::Frontends;
pub use links::Links;
pub use namespaces::{Fate, Judge, Known, NAMED, Namespaces, is_local};
pub use pins::{PINS, ask_for, ensure_bpffs, is_asked_for, let_go, pinned};
pub use probe::{Finding, State, probe};
pub use removal::{Removed, remove, remove_held};
pub use shape::mapped_bytes;
