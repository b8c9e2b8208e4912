//! `sluice`: the command line.

use std::process::ExitCode;

use sluice::cli::{Cli, Command};
use sluice::{admin, agent, check, cleanup, cli, demo, errors, logging, reference, runtime};

fn main() -> ExitCode {
    let cli = cli::parse();
    match runtime::start() {
        Ok(runtime) => runtime::finish(runtime, run(cli)),
        Err(error) => {
            logging::start(cli.verbose, "warn");
            tracing::error!("cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> ExitCode {
    let mut logs = None;
    let result = match &cli.command {
        Command::Agent(args) => {
            let logging = logging::start_at(logging::level(cli.verbose, args.v, "info"), args.logging_format);
            agent::run(args, logs.insert(logging)).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Demo(args) => {
            logging::start(cli.verbose, "warn");
            demo::run(args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Check(args) => {
            logging::start(cli.verbose, "warn");
            check::run(args).await
        }
        Command::Cleanup(args) => {
            logging::start(cli.verbose, "warn");
            cleanup::run(args).map(|()| ExitCode::SUCCESS)
        }
        Command::Services(args) => {
            logging::start(cli.verbose, "warn");
            admin::services(args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Connections(args) => {
            logging::start(cli.verbose, "warn");
            admin::connections(args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Explain(args) => {
            logging::start(cli.verbose, "warn");
            admin::explain(args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Top(args) => {
            logging::start(cli.verbose, "warn");
            admin::top(args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Status(args) => {
            logging::start(cli.verbose, "warn");
            admin::status(args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Completion(args) => {
            logging::start(cli.verbose, "warn");
            reference::completion(args).map(|()| ExitCode::SUCCESS)
        }
        Command::Man(args) => {
            logging::start(cli.verbose, "warn");
            reference::man(args).map(|()| ExitCode::SUCCESS)
        }
        Command::Version => {
            logging::start(cli.verbose, "warn");
            let version = format!("{}\n", cli::version());
            errors::print(version.as_bytes()).map(|_| ExitCode::SUCCESS).map_err(Into::into)
        }
    };
    let status = result.unwrap_or_else(|error| {
        tracing::error!("{}", errors::reasons(&error));
        ExitCode::FAILURE
    });
    if let Some(logs) = logs {
        logs.finish();
    }
    status
}
