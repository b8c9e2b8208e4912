//! The agent: wires sources, table, capture and data plane together, and is what a person starts.

pub mod proxy;
