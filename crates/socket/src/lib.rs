//! The kernel side of socket mode: BPF programs that translate the address of a Service to that of an
//! endpoint when a socket connects or sends. This crate contains the programs, loads and attaches them, keeps
//! their maps and links pinned, and writes the maps. `sluice-socket-maps` decides what belongs into the maps.
//!
//! * `programs/`: the programs in C, and the object file that is built from them and loaded.
//! * `object`: reading and relocating it. `shape`: kinds and sizes of the maps; `layout`: where in their values is
//!   what. `pins`: the directory that
//!   outlives the agent. `attach`: all of that, in order.
//! * `attached`: writing the maps; `sets` and `frontends` write those of sets and frontends. `accounts`: what
//!   the programs count. `health`: the health of endpoints, `clients`: session affinity, `sources`: the
//!   addresses of clients. These three are changed by others too.
//! * `links`: whether the programs are still attached. `removal`: removing everything.
//! * `namespaces`: which network namespaces are pods'.
//! * `census`: which sockets are translated. `ending`: which of these are to be destroyed. `destroy`: in
//!   which namespaces. `diag`: by which requests.
//! * `cgroup`: finding the root of all cgroups. `mounts`: what is mounted where. `others`: which programs of others
//!   are attached. `probe`: what a node lacks, each with its remedy. `rights`: what this thread may do.
//!
//! No threads and no clocks of its own. Most of it is called no more often than endpoints change.

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
mod layout;
mod links;
mod mounts;
mod namespaces;
mod object;
mod others;
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
pub use frontends::{Frontends, forget_frontends};
pub use links::Links;
pub use namespaces::{Fate, Judge, Known, NAMED, Namespaces, is_local};
pub use pins::{PINS, ask_for, ensure_bpffs, is_asked_for, let_go, pinned};
pub use probe::{Finding, State, probe};
pub use removal::{Removed, remove, remove_held};
pub use shape::mapped_bytes;
