//! `sluice check`: says what is in the way of `--capture tproxy` on this node.
//!
//! What is so is gathered first, without changing anything (`gather`); what it means is judged from that
//! alone (`judge`).

mod facts;
mod finding;
mod gather;
mod judge;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tracing::warn;

pub use finding::{Finding, Level};

/// Arguments of `sluice check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// How to say it.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How findings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line for each.
    Text,
    /// One object, for programs.
    Json,
}

/// Looks at this node and says what it finds. Fails if anything of it is a problem.
///
/// # Errors
/// Standard output is closed.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let findings = findings();
    let text = match args.output {
        Output::Text => finding::text(&findings),
        Output::Json => finding::json(&findings),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if finding::is_ready(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Warns of problems in the log, from a thread of its own: whoever starts an agent may never have run `check`.
pub(crate) fn warn_of_problems() {
    let warn = || {
        for Finding { about, what, mend, .. } in findings().iter().filter(|f| f.level == Level::Problem) {
            warn!("{about}: {what}. To mend it: {mend}");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("check".to_owned()).spawn(warn) {
        warn!("this node was not checked: {error}");
    }
}

/// What there is to say about this node. Runs programs, and blocks for a second or two.
pub fn findings() -> Vec<Finding> {
    judge::judge(&gather::facts())
}
