//! The command line: what a person can say, and the checks that need nothing else.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_dataplane::{Config, raise_descriptor_limit};

/// A Kubernetes node proxy: makes every Service address lead to a healthy endpoint.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more: -v for every change, -vv for everything. RUST_LOG overrides it.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

/// What `sluice` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Services of this node.
    Agent(AgentArgs),
    /// See it work: sample backends, two Services on loopback, traffic, and an endpoint that dies.
    Demo(DemoArgs),
}

/// Arguments of `sluice agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Kubernetes manifests with Services and EndpointSlices: a YAML or JSON file, or a directory of
    /// them. May be given several times. Changes on disk take effect within a second.
    #[arg(long, value_name = "PATH", required = true)]
    pub manifests: Vec<PathBuf>,
    /// How connections to Service addresses get here.
    #[arg(long, value_enum, default_value_t = CaptureMode::Bind)]
    pub capture: CaptureMode,
    /// Name of this node, as nodeName in EndpointSlices spells it [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// How long connections may take to finish after SIGTERM, in seconds. A second signal ends at once.
    #[arg(long, value_name = "SECONDS", default_value = "25", value_parser = parse_seconds)]
    pub grace_period: Duration,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
}

/// Arguments of `sluice demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the figures instead of staying up for you to try.
    #[arg(long)]
    pub once: bool,
    /// How many requests to send in each round.
    #[arg(long, value_name = "N", default_value = "3000")]
    pub requests: NonZeroUsize,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
}

/// Settings of the data plane.
#[derive(Debug, Args)]
pub struct DataplaneArgs {
    /// Worker threads that carry traffic [default: one for each CPU].
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// How long a UDP flow may be silent before it ends and the next datagram is balanced anew, in
    /// seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub udp_idle_timeout: Duration,
    /// How long a TCP connection of which one side has closed may stand still before it is cut off, in
    /// seconds.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_seconds)]
    pub tcp_half_closed_timeout: Duration,
}

/// How connections get to the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CaptureMode {
    /// Listen on the Services' own addresses; they must be this machine's. Needs no privileges.
    Bind,
}

impl DataplaneArgs {
    /// What the data plane is to be like on this machine: one worker for each CPU that this process may
    /// use unless another number was asked for, and all the file descriptors that can be had.
    pub fn config(&self) -> Config {
        let cpus = || std::thread::available_parallelism().ok();
        Config {
            workers: self.workers.or_else(cpus).map_or(1, NonZeroUsize::get),
            descriptors: raise_descriptor_limit(),
            udp_idle: self.udp_idle_timeout,
            half_closed_idle: self.tcp_half_closed_timeout,
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn manifests_may_be_repeated_and_are_required() {
        let cli = Cli::try_parse_from(["sluice", "agent", "--manifests", "a", "--manifests", "b"]).unwrap();
        let Command::Agent(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.manifests, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(Cli::try_parse_from(["sluice", "agent"]).is_err());
        assert!(Cli::try_parse_from(["sluice", "agent", "--manifests", "a", "--workers", "0"]).is_err());
    }
}
