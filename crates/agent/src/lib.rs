//! The agent: connects sources, table, capture and data plane, and has the program's commands.
//!
//! ```text
//! source ──changes──► controller thread ─► table ─► capture
//! (a thread of its own)    (owns the Proxy)    └──────────► workers read it
//! ```

pub mod admin;
pub mod agent;
pub mod at_socket;
pub mod capture_args;
mod capture_listeners;
mod capture_trouble;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod controller;
pub mod dataplane_args;
pub mod demo;
pub mod errors;
pub mod events;
mod handover;
mod health;
pub mod health_checks;
mod healthz;
mod heap;
pub mod listen;
pub mod logging;
mod metrics;
pub mod node_port_args;
pub mod proxy;
mod task_pool;

mod http_server;
mod init;
pub mod port_args;
mod programming;
mod recall;
pub mod reference;
mod running;
pub mod runtime;
pub mod service_metrics;
mod signals;
pub mod socket_args;
pub mod source_args;
mod values;
