//! Who gets what connection: from Services, EndpointSlices and the Node to a table that any number
//! of threads read without a lock.
//!
//! ```text
//!  Change ──► Writer ──┬─ inner swap: the endpoints of one service port ──► ServicePort ◄── Route ◄── Reader
//!            (one)     └─ outer swap: which frontends exist ─────────────────► Table ─────────────►  (one a worker)
//! ```
//!
//! * The **writer** ([`Writer`]) owns the objects and all rules that look at several of them: slice
//!   merging ([`slices`]), topology ([`topology`]), conflicts between Services ([`claims`]).
//! * A **reader** ([`Reader`]) looks a frontend up (one atomic load, one hash) and gets a [`Route`];
//!   [`Route::select`] answers what happens to this client's connection and [`Selection::next`]
//!   names the endpoints to try, in order.
//!
//! Pure: no sockets, no async, no clock.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod claims;
pub mod slices;
pub mod topology;

mod key;
mod lease;
mod lookup;
mod notice;
mod rotation;
mod selection;
mod service_port;
mod upstream;
mod writer;

pub use key::FrontendKey;
pub use lease::Lease;
pub use lookup::{Reader, Route, Table};
pub use notice::Notice;
pub use selection::{Client, Origin, Rejection, Selection};
pub use service_port::{Backends, EndpointSet, Reason, ServicePort, Verdict};
pub use upstream::{Upstream, UpstreamStats};
pub use writer::{FrontendState, NodePortAddresses, Plan, Writer, WriterConfig};
