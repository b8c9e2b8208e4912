//! End to end on a node: a proxy that captures, in a cluster made of network namespaces.
//!
//! Needs root, or a kernel that lets users have namespaces; fails where there is neither.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(unreachable_pub, clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "node/hosts.rs"]
mod hosts;
#[path = "node/rules.rs"]
mod rules;
#[path = "node/world.rs"]
mod world;

#[path = "node/access.rs"]
mod access;
#[path = "node/at_sockets.rs"]
mod at_sockets;
#[path = "node/between_pods.rs"]
mod between_pods;
#[path = "node/changes.rs"]
mod changes;
#[path = "node/client_ports.rs"]
mod client_ports;
#[path = "node/doubt.rs"]
mod doubt;
#[path = "node/endpoints.rs"]
mod endpoints;
#[path = "node/host_network.rs"]
mod host_network;
#[path = "node/marks.rs"]
mod marks;
#[path = "node/matrix.rs"]
mod matrix;
#[path = "node/odd_endpoints.rs"]
mod odd_endpoints;
#[path = "node/others_marks.rs"]
mod others_marks;
#[path = "node/ranges_and_limits.rs"]
mod ranges_and_limits;
#[path = "node/remembered.rs"]
mod remembered;
#[path = "node/routes.rs"]
mod routes;
#[path = "node/settings.rs"]
mod settings;
#[path = "node/shares.rs"]
mod shares;
#[path = "node/sizes.rs"]
mod sizes;
