//! `sluice`: the command line.

use std::process::ExitCode;

use clap::Parser;
use sluice::cli::{Cli, Command};
use sluice::{agent, demo, logging};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Agent(args) => {
            logging::start(cli.verbose, "info");
            agent::run(args).await
        }
        Command::Demo(args) => {
            logging::start(cli.verbose, "warn");
            demo::run(args).await
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
