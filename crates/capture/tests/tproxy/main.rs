//! TPROXY mode against the kernel: each test in a network namespace of its own, on a thread of its own.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

mod addresses;
mod elements;
mod leftovers;
mod mark_rules;
mod namespace;
mod owners;
mod repair;
mod restart;
mod services;
