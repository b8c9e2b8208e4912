//! The agent: wires sources, table, capture and data plane together, and is what a person starts.
//!
//! ```text
//! source ──changes──► controller thread ─► table ─► capture
//! (a thread of its own)    (owns the Proxy)    └──────────► workers read it
//! ```

pub mod agent;
pub mod cli;
pub mod controller;
pub mod demo;
pub mod logging;
pub mod metrics;
pub mod proxy;
