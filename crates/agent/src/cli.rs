//! The command line: what a person can say, and the checks that need nothing else.

use std::net::{AddrParseError, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use sluice_dataplane::{Config, raise_descriptor_limit};

use crate::capture_args::CaptureArgs;
use crate::check::CheckArgs;
use crate::cleanup::CleanupArgs;

/// A Kubernetes node proxy: makes every Service address lead to a healthy endpoint.
#[derive(Debug, Parser)]
#[command(name = NAME, version, about, propagate_version = true)]
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
    #[command(display_name = NAME)]
    Agent(Box<AgentArgs>),
    /// See it work: sample backends, two Services on loopback, traffic, and an endpoint that dies.
    #[command(display_name = NAME)]
    Demo(DemoArgs),
    /// Say what is in the way of `sluice agent --capture tproxy` on this node.
    #[command(display_name = NAME)]
    Check(CheckArgs),
    /// Remove what an agent has made in the kernel, or what kube-proxy has left there.
    #[command(display_name = NAME)]
    Cleanup(CleanupArgs),
    /// Say which version this is.
    #[command(display_name = NAME)]
    Version,
}

/// What `--version` calls it, whatever command it stands behind.
const NAME: &str = "sluice";

/// What `sluice version` says, and `--version`.
pub fn version() -> String {
    format!("{NAME} {}", env!("CARGO_PKG_VERSION"))
}

/// Arguments of `sluice agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Where the Services and endpoints come from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Whose packets are captured, and how.
    #[command(flatten)]
    pub capture: CaptureArgs,
    /// Name of this node, as nodeName in EndpointSlices spells it [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Whether endpoints that failed several connects in a row are passed over for a while (1 s growing to
    /// 30 s), unless all of a Service would be.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub passive_health: bool,
    /// Where metrics are served, as `/metrics`, and `/healthz`. `0` for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249", value_parser = parse_address)]
    pub metrics_bind_address: BindAddress,
    /// How long connections may take to finish after SIGTERM, in seconds; a second signal ends at once. With
    /// `--capture bind` new ones are refused from the signal on. With `--capture tproxy` they are served until
    /// another agent on this node takes them, no connection is open, or this time is over.
    #[arg(long, value_name = "SECONDS", default_value = "25", value_parser = parse_seconds)]
    pub grace_period: Duration,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
}

/// Where Services and endpoints come from: an apiserver, found as kubectl finds it, or files.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Kubernetes manifests with Services and EndpointSlices instead of an apiserver: a YAML or JSON
    /// file, or a directory of them. May be given several times. Changes on disk take effect within a
    /// second.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "master"])]
    pub manifests: Vec<PathBuf>,
    /// The kubeconfig to reach the apiserver with [default: the files of KUBECONFIG; without them, the
    /// pod's service account].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context to use instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// An apiserver's own address, such as https://10.0.0.2:6443: instead of the kubeconfig's or the
    /// `kubernetes` Service's, which this agent is to provide and must not need. May be given several
    /// times: the next one is used while one does not answer.
    #[arg(long, value_name = "URL")]
    pub master: Vec<String>,
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

impl DataplaneArgs {
    /// What the data plane is to be like on this machine: one worker for each CPU that this process may
    /// use unless another number was asked for, and all the file descriptors that can be had.
    pub fn config(&self) -> Config {
        let cpus = || std::thread::available_parallelism().ok();
        let workers = self.workers.or_else(cpus).map_or(1, NonZeroUsize::get);
        Config {
            workers,
            descriptors: raise_descriptor_limit(workers),
            udp_idle: self.udp_idle_timeout,
            half_closed_idle: self.tcp_half_closed_timeout,
            marks: None,
        }
    }
}

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

fn parse_address(text: &str) -> Result<BindAddress, AddrParseError> {
    if text == "0" { Ok(BindAddress(None)) } else { text.parse().map(|address| BindAddress(Some(address))) }
}

fn parse_seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    // More than an `Instant` can be put off by makes no sense; these are 136 years.
    text.parse::<u32>().map(|seconds| Duration::from_secs(seconds.into()))
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
    fn there_is_one_version_under_one_name() {
        for arguments in ["sluice --version", "sluice -V", "sluice agent --version", "sluice demo -V"] {
            let said = Cli::try_parse_from(arguments.split(' ')).unwrap_err().to_string();
            assert_eq!(said.trim(), version(), "{arguments}");
        }
        let cli = Cli::try_parse_from(["sluice", "version"]).unwrap();
        assert!(matches!(cli.command, Command::Version));
    }

    #[test]
    fn manifests_may_be_repeated_and_exclude_an_apiserver() {
        let parse = |arguments: &str| Cli::try_parse_from(arguments.split(' '));
        let cli = parse("sluice agent --manifests a --manifests b").unwrap();
        let Command::Agent(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.source.manifests, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(parse("sluice agent --manifests a --kubeconfig b").is_err());
        assert!(parse("sluice agent --manifests a --master http://127.0.0.1:8080").is_err());
        assert!(parse("sluice agent --manifests a --workers 0").is_err());
        assert!(parse("sluice agent --master http://a --master http://b").is_ok());
    }
}
