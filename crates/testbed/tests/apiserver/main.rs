//! Tests of the apiserver over real HTTP.

// All of it is test code, including helpers, which clippy does not see by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

mod bulk;
mod client;
mod connections;
mod faults;
mod reads;
mod watches;
mod writes;
