//! Socket mode's programs in a kernel: namespaces, a cgroup and a bpffs of each test's own, and real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail tests"
)]

mod affinity;
mod balance;
mod bound;
mod census;
mod connected_udp;
mod device;
mod edges;
mod flows;
mod forgotten;
mod health;
mod life;
mod node;
mod others;
mod probe;
mod reused;
mod strangers;
mod swap;
mod tcp;
mod udp;
