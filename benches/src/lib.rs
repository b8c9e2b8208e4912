//! Benchmarks, each beside a direct-connection baseline: see `benches/`, and `compare` for Sluice beside others.

pub mod agent;
pub mod cluster;
pub mod compare;
pub mod contender;
pub mod hold;
pub mod interrupt;
pub mod itself;
pub mod machine;
pub mod manifests;
pub mod site;
pub mod tool;
pub mod usage;
