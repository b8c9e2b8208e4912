//! Benchmarks, each beside a direct-connection baseline: see `benches/`; and programs that measure in a lab: `compare` for
//! Sluice beside others, `fairness`, `memory`, and `soak`. `regression` compares what two trees have measured.

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

/// How a measurement goes on, beside its results.
pub fn say(line: &str) {
    // Whoever has closed it does not want to know.
    let _ = writeln!(std::io::stderr(), "{line}");
}
