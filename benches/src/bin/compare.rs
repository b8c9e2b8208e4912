//! Compares Sluice with a direct connection, the kernel's DNAT and other relays, in one run on this machine.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sluice_benches::compare::{Column, Plan, plot, run, tables};
use sluice_benches::contender::{Contender, NAMES};
use sluice_benches::{itself, say};

/// Compares Sluice with a direct connection, the kernel's DNAT, and other relays. Runs in network namespaces
/// that it creates and removes, as root or under `unshare -Urnm`. `benches/compare/run` installs what it
/// needs first.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// How long each measurement takes.
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    seconds: u64,
    /// The columns to measure [default: all]: bulk, bulk4, request, exchange, connections, requests, dns,
    /// datagram.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', value_parser = column)]
    only: Vec<Column>,
    /// The contenders to measure [default: all but realm and other builds]: direct, sluice-socket,
    /// sluice-tproxy, sluice-bind, dnat, haproxy, nginx; realm=PATH; another build of Sluice, for example
    /// sluice-tproxy=LABEL:PATH.
    #[arg(long, value_name = "WHO", value_delimiter = ',', value_parser = Contender::parse)]
    contenders: Vec<Contender>,
    /// Where results.md and results.svg are written. Without it, only the tables are printed.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

fn column(name: &str) -> Result<Column> {
    let found = Column::ALL.into_iter().find(|column| column.name() == name);
    found.with_context(|| {
        let names: Vec<_> = Column::ALL.iter().map(|column| column.name()).collect();
        format!("no column {name:?}: there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    itself::main(|| measure(Arguments::parse()))
}

fn measure(arguments: Arguments) -> Result<()> {
    let Arguments { rounds, seconds, only, contenders, output } = arguments;
    let columns = if only.is_empty() { Column::ALL.into() } else { only };
    let contenders = if contenders.is_empty() {
        NAMES.into_iter().map(Contender::parse).collect::<Result<_>>()?
    } else {
        contenders
    };
    let results = run(Plan { contenders, columns, rounds, seconds }, say)?;
    let text = format!("{}\n{}", sluice_benches::machine::heading(), tables(&results));
    writeln!(std::io::stdout(), "{text}")?;
    if let Some(directory) = output {
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("results.md"), text)?;
        fs::write(directory.join("results.svg"), plot(&results))?;
    }
    Ok(())
}
