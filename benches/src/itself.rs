//! Other programs within a benchmark. With `sluice` as its first argument, it is the agent, built like the
//! benchmark and in a process of its own; with `hold`, a client that holds connections.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use sluice::cli::{self, Cli};
use sluice::{agent, logging};

use crate::{hold, interrupt, say};

/// The first argument of the agent.
const AGENT: &str = "sluice";

/// Runs another program if the arguments ask for one. To be called first in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (word, rest) = arguments.split_first()?;
    match word.as_str() {
        AGENT => Some(run_agent(&arguments)),
        hold::WORD => Some(hold::run(rest)),
        _ => None,
    }
}

/// The `main` of a program that measures: handles interrupts, and reports errors.
pub fn main(measure: impl FnOnce() -> Result<()>) -> ExitCode {
    run_if_asked().unwrap_or_else(|| exit_code(interrupt::watch().and_then(|()| measure())))
}

/// Reports an error, if any.
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_agent(arguments: &[String]) -> ExitCode {
    let cli = Cli::parse_from(arguments);
    let logging = logging::start(cli.verbose, "info");
    let run = || -> Result<()> {
        let cli::Command::Agent(args) = &cli.command else { bail!("only the agent is in here") };
        let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
        runtime.block_on(agent::run(args, &logging))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line of this program, without arguments.
pub(crate) fn program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program")?))
}

/// The command line of the built-in agent, without its arguments.
///
/// # Errors
/// The path of this program is unknown.
pub fn command() -> Result<Command> {
    let mut command = program()?;
    command.arg(AGENT);
    Ok(command)
}
