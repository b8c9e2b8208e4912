//! The apiserver over real HTTP: what a client of it can rely on.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

mod bulk;
mod client;
mod connections;
mod faults;
mod reads;
mod watches;
mod writes;
