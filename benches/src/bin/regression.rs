//! Whether a change has made a benchmark slower.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use sluice_benches::{itself, regression};

/// Compares criterion's measurements of two trees, and fails if one is much slower. `.ci/benchmarks`
/// measures.
#[derive(Debug, Parser)]
struct Arguments {
    /// The rounds of the old tree: a directory for each.
    base: PathBuf,
    /// The rounds of the new tree.
    head: PathBuf,
    /// How much slower is too much, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 25)]
    limit: u32,
}

fn main() -> ExitCode {
    itself::exit_code(compare(&Arguments::parse()))
}

fn compare(arguments: &Arguments) -> Result<()> {
    let limit = f64::from(arguments.limit) / 100.0;
    let rows = regression::rows(&regression::read(&arguments.base)?, &regression::read(&arguments.head)?);
    write!(std::io::stdout(), "{}", regression::table(&rows, limit))?;
    let lost: Vec<&str> = rows.iter().filter(|row| row.is_lost(limit)).map(|row| row.name.as_str()).collect();
    if !lost.is_empty() {
        bail!("slower by more than {} %: {}", arguments.limit, lost.join(", "));
    }
    Ok(())
}
