//! Stand-ins for Sluice's surroundings, for the demo, the tests and the benchmarks.

pub mod apiserver;
pub mod lab;
pub mod samples;
