//! End to end on a node: a proxy that captures, in a cluster made of network namespaces.
//!
//! Needs root, or a kernel that lets users have namespaces; fails where there is neither.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(unreachable_pub, clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod hosts;
mod rules;
mod world;

mod access;
mod at_sockets;
mod between_pods;
mod changes;
mod client_ports;
mod doubt;
mod endpoints;
mod host_network;
mod marks;
mod matrix;
mod odd_endpoints;
mod older_connections;
mod others_marks;
mod others_nat;
mod ranges_and_limits;
mod remembered;
mod routes;
mod settings;
mod shares;
mod sizes;
mod unseen_sockets;
