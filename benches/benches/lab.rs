//! With `--test`: runs each program that measures in a lab once, with little load, to check that it works.
//! Otherwise: prints the commands that measure.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use sluice_benches::{fairness, itself, memory, say, soak};
use sluice_testbed::lab::{Lab, LabError};

fn main() -> ExitCode {
    if let Some(status) = itself::run_if_asked() {
        return status;
    }
    if !std::env::args().any(|argument| argument == "--test") {
        say(
            "fairness, memory and soak are programs of their own: cargo run --release -p sluice-benches --bin NAME",
        );
        return ExitCode::SUCCESS;
    }
    match Lab::builder().pods(1).other_pods(0).build() {
        Ok(lab) => drop(lab),
        Err(refusal @ LabError::NotPermitted(_)) => {
            say(&format!("SKIPPED: fairness, memory and soak: {refusal}"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say(&format!("no lab: {error}"));
            return ExitCode::FAILURE;
        }
    }
    itself::exit_code(smoke())
}

fn smoke() -> Result<()> {
    let mut out = io::stdout();
    let results = fairness::run(
        fairness::Plan::SMOKE,
        &fairness::Noise::ALL,
        &[fairness::Carrier::Direct, fairness::Carrier::Sluice],
        say,
    )?;
    writeln!(out, "{}", results.table())?;
    writeln!(out, "{}", memory::table(&memory::run(memory::Plan::SMOKE, say)?))?;
    let report = soak::run(soak::Plan::SMOKE, soak::Mode::Tproxy, say)?;
    writeln!(out, "{report}")?;
    report.verdict()
}
