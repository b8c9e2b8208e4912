//! Benchmarks with a direct connection as baseline (see `benches/`), and programs that measure in a lab:
//! `compare` for Sluice and others, `fairness`, `memory`, and `soak`. `regression` compares the measurements
//! of two trees.

use std::io::Write;

pub mod agent;
pub mod cluster;
pub mod compare;
pub mod contender;
pub mod fairness;
pub mod flood;
pub mod hold;
pub mod interrupt;
pub mod itself;
pub mod machine;
pub mod manifests;
pub mod memory;
pub mod regression;
pub mod site;
pub mod soak;
mod sockets;
pub mod table;
pub mod tool;
pub mod usage;

/// Reports progress, apart from the results.
pub fn say(line: &str) {
    // It fails if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
