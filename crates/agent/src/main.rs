//! `sluice`: the command line.

fn main() {}
