//! TCP through the proxy, from real clients to real servers.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(unreachable_pub)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod bytes;
mod client;
mod endpoints;
mod ends;
mod frontends;
mod limits;
mod outlived;
mod urgent;
