//! Who gets which connection: turns Services, EndpointSlices and the Node into a table that any number of
//! threads read without a lock.
//!
//! ```text
//!  Change ──► Writer ──┬─ inner swap: the endpoints of one service port ──► ServicePort ◄── Route ◄── Reader
//!            (one)     └─ outer swap: which frontends exist ─────────────────► Table ─────────────►  (one a worker)
//! ```
//!
//! * The **writer** ([`Writer`]) owns the objects and all rules that look at several of them.
//! * A **reader** ([`Reader`]) looks up a frontend (one atomic load, one hash) and gets a [`Route`].
//!   [`Route::select`] decides what happens to a client's connection, and [`Selection::next`] returns the
//!   endpoints to try, in order. [`Route::answer`] explains the same decision to people.
//!
//! Each rule has a file, with its test cases beside it:
//!
//! | Rule | File |
//! |---|---|
//! | which frontends a Service has, in which families | `writer/frontends.rs` |
//! | where nodePorts are served | `node_ports.rs` |
//! | two Services, one frontend | `claims.rs` |
//! | frontends at the apiserver's address | `writer/apiservers.rs` |
//! | ports and addresses that no frontend matches | `cluster_addresses.rs` |
//! | slices to endpoints | `slices.rs` |
//! | readiness, draining, node and zone hints | `topology.rs` |
//! | traffic policies, short circuit, verdicts | `policy.rs`, `verdict.rs` |
//! | `loadBalancerSourceRanges` | `source_ranges.rs` |
//! | the source address that endpoints see | `source_address.rs` |
//! | session affinity | `affinity.rs` |
//! | which endpoint is next | `balance.rs` and `balance/` |
//! | endpoints that keep failing | `passive_health.rs` |
//! | `sluice.dev/max-connections` | `connection_limit.rs` |
//! | `healthCheckNodePort` | `health_check.rs` |
//! | what is decided before there is a packet | `at_socket.rs` |
//! | what is known of endpoints there | `socket_health.rs`, `doubt_search.rs` |
//! | who follows session affinity there | `follower.rs` |
//! | when a UDP flow ends | [`Route::keeps_flow`] |
//!
//! Pure: no sockets, no async. Time is an argument, except in `no_route.rs`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod claims;
pub mod passive_health;
pub mod slices;
pub mod topology;

mod affinity;
mod answer;
mod at_socket;
mod backends;
mod balance;
mod cluster_addresses;
mod connection_limit;
mod datagrams;
mod doubt_search;
mod endpoint_set;
mod follower;
mod health_check;
mod histogram;
mod key;
mod lease;
mod lookup;
mod no_route;
mod node_ports;
mod notice;
mod policy;
mod roster;
mod selection;
mod service_port;
mod socket_health;
mod source_address;
mod source_ranges;
mod upstream;
mod verdict;
mod without_local;
mod writer;

pub use affinity::{Affinity, Kept};
pub use answer::{Answer, Why};
pub use at_socket::{AtSocket, SocketOutcomes, WhyRelayed};
pub use backends::Backends;
pub use balance::Balance;
pub use balance::rotation::continue_from;
pub use cluster_addresses::ClusterAddressChange;
pub use datagrams::{DatagramCounts, Datagrams, Loss};
pub use endpoint_set::EndpointSet;
pub use follower::{Adopted, Follower, Led, SharedFollower};
pub use health_check::HealthCheck;
pub use histogram::{BUCKETS, Histogram, ServiceTimes, Times};
pub use key::FrontendKey;
pub use lease::Lease;
pub use lookup::{Reader, Route, Table};
pub use node_ports::NodePortAddresses;
pub use notice::Notice;
pub use passive_health::Heard;
pub use policy::SetName;
pub use selection::{Client, Origin, Rejection, Selection};
pub use service_port::ServicePort;
pub use socket_health::{SharedHealth, SocketHealth, SocketNumber};
pub use source_address::SourceAddress;
pub use upstream::{Condition, Traffic, Translated, Upstream, UpstreamStats};
pub use verdict::{Reason, Verdict};
pub use without_local::WithoutLocal;
pub use writer::{FrontendState, LocalPods, Plan, Work, Writer, WriterConfig};
