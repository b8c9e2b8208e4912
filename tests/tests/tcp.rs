//! TCP through the proxy, from real clients to real servers.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(unreachable_pub)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "tcp/bytes.rs"]
mod bytes;
#[path = "tcp/client.rs"]
mod client;
#[path = "tcp/endpoints.rs"]
mod endpoints;
#[path = "tcp/ends.rs"]
mod ends;
#[path = "tcp/frontends.rs"]
mod frontends;
#[path = "tcp/limits.rs"]
mod limits;
