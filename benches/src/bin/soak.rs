//! An agent under all kinds of load at once, for a long time.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sluice_benches::soak::{Mode, Plan, run};
use sluice_benches::{itself, machine, say};

/// Soaks a node's agent: mixed load, changing and dying endpoints, Services that come and go, floods, and
/// agents that take over from each other. Fails if there is an error that a client need not expect, or if
/// something grows. Runs in network namespaces that it creates and removes, as root or under `unshare -Urnm`.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long, in minutes.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(Plan::MINUTES..))]
    minutes: u64,
    /// The agent's capture mode: socket mode (which takes root), or relaying all connections.
    #[arg(long, value_enum, default_value_t = Mode::Socket)]
    capture: Mode,
    /// Only check that it works, for some seconds.
    #[arg(long)]
    smoke: bool,
}

fn main() -> ExitCode {
    itself::main(|| soak(&Arguments::parse()))
}

fn soak(arguments: &Arguments) -> Result<()> {
    let plan = if arguments.smoke { Plan::SMOKE } else { Plan::of_minutes(arguments.minutes) };
    let report = run(plan, arguments.capture, say)?;
    writeln!(std::io::stdout(), "{}\n{report}", machine::heading())?;
    report.verdict()
}
