//! How load on one Service affects the clients of another one.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use sluice_benches::fairness::{Carrier, Noise, Plan, run};
use sluice_benches::{itself, machine, say};

/// Measures how long small exchanges with a quiet Service take while clients load another one: through
/// Sluice, without a proxy, and through haproxy if it is installed. Runs in network namespaces that it
/// creates and removes, as root or under `unshare -Urnm`.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = Plan::FULL.rounds)]
    rounds: usize,
    /// How long each measurement takes.
    #[arg(long, value_name = "SECONDS", default_value_t = Plan::FULL.time.as_secs())]
    seconds: u64,
    /// Measure only Sluice.
    #[arg(long)]
    alone: bool,
    /// Only check that it works: little of everything, once.
    #[arg(long)]
    smoke: bool,
}

fn main() -> ExitCode {
    itself::main(|| measure(&Arguments::parse()))
}

fn measure(arguments: &Arguments) -> Result<()> {
    let mut plan = if arguments.smoke { Plan::SMOKE } else { Plan::FULL };
    if !arguments.smoke {
        (plan.rounds, plan.time) = (arguments.rounds, Duration::from_secs(arguments.seconds));
    }
    let carriers = if arguments.alone { &[Carrier::Sluice][..] } else { &Carrier::ALL };
    let results = run(plan, &Noise::ALL, carriers, say)?;
    let missed: String = results.missed().iter().map(|line| format!("* {line}\n")).collect();
    writeln!(std::io::stdout(), "{}\n{}\n{missed}", machine::heading(), results.table())?;
    Ok(())
}
