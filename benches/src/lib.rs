//! Benchmarks, each beside a direct-connection baseline: see `benches/`.

pub mod cluster;
