//! Other programs inside of a benchmark: started with `sluice` as its first word it is the agent, in a process of its
//! own, built as the benchmark was; with `hold`, a client that holds connections.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use sluice::cli::{self, Cli};
use sluice::{agent, logging};

use crate::{hold, interrupt, say};

/// The first word of the agent.
const AGENT: &str = "sluice";

/// Is another program if this process was started as one: to be called first in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (word, rest) = arguments.split_first()?;
    match word.as_str() {
        AGENT => Some(run_agent(&arguments)),
        hold::WORD => Some(hold::run(rest)),
        _ => None,
    }
}

/// The `main` of a program that measures: it may be interrupted, and says why it has failed.
pub fn main(measure: impl FnOnce() -> Result<()>) -> ExitCode {
    run_if_asked().unwrap_or_else(|| exit_code(interrupt::watch().and_then(|()| measure())))
}

/// Says what has gone wrong, if anything has.
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

/// The command line of the agent inside, to which its arguments are to be added.
///
/// # Errors
/// The system does not say which program this is.
pub fn command() -> Result<Command> {
    let mut command = program()?;
    command.arg(AGENT);
    Ok(command)
}
