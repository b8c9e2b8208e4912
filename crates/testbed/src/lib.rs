//! Stand-ins for what surrounds Sluice: for the demo, the tests and the benchmarks.

pub mod apiserver;
pub mod lab;
pub mod samples;
