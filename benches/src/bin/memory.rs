//! What an idle session and a flow cost in memory, and whether it is given back.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sluice_benches::memory::{Plan, run, table};
use sluice_benches::{itself, machine, say};

/// Measures what TCP sessions and UDP flows that do nothing cost: memory of the agent and of the kernel, beyond what client
/// and server have without a relay. It fails if something is not given back when they are closed. In network namespaces
/// that it makes and takes away, as root or under `unshare -Urnm`.
#[derive(Debug, Parser)]
struct Arguments {
    /// TCP sessions; as many as fit.
    #[arg(long, value_name = "N", default_value_t = Plan::FULL.sessions)]
    sessions: usize,
    /// UDP flows; as many as fit.
    #[arg(long, value_name = "N", default_value_t = Plan::FULL.flows)]
    flows: usize,
    /// Only see that it works: few of both.
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
