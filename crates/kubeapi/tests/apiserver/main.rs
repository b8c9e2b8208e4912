//! The source against an apiserver in memory, over real HTTP and TLS.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

mod access;
mod addresses;
mod canned;
mod cluster;
mod compression;
mod exec_plugins;
mod faults;
mod health;
mod liveness;
mod odd_servers;
mod pods;
mod sequences;
mod still;
mod watching;
