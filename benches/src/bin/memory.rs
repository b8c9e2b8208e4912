//! The memory of idle sessions and flows, and whether it is freed.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sluice_benches::memory::{Plan, run, table};
use sluice_benches::{itself, machine, say};

/// Measures the memory of idle TCP sessions and UDP flows, of the agent and the kernel, beyond what client
/// and server use without a relay. Fails if something is not freed when they are closed. Runs in network
/// namespaces that it creates and removes, as root or under `unshare -Urnm`.
#[derive(Debug, Parser)]
struct Arguments {
    /// The number of TCP sessions; fewer if not all fit.
    #[arg(long, value_name = "N", default_value_t = Plan::FULL.sessions)]
    sessions: usize,
    /// The number of UDP flows; fewer if not all fit.
    #[arg(long, value_name = "N", default_value_t = Plan::FULL.flows)]
    flows: usize,
    /// Only check that it works, with a few of both.
    #[arg(long)]
    smoke: bool,
}

fn main() -> ExitCode {
    itself::main(|| measure(&Arguments::parse()))
}

fn measure(arguments: &Arguments) -> Result<()> {
    let Arguments { sessions, flows, smoke } = *arguments;
    let plan = if smoke { Plan::SMOKE } else { Plan { sessions, flows, ..Plan::FULL } };
    let costs = run(plan, say)?;
    writeln!(std::io::stdout(), "{}\n{}", machine::heading(), table(&costs))?;
    Ok(())
}
