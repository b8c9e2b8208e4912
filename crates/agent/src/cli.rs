//! The command line: what a person can say, and the checks that need nothing else.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sluice_dataplane::{Config, raise_descriptor_limit};

use crate::admin::{AskArgs, DEFAULT_PATH, ExplainArgs, ServicesArgs};
use crate::capture_args::{self, CaptureArgs, CaptureMode};
use crate::check::CheckArgs;
use crate::cleanup::CleanupArgs;
use crate::service_metrics::Detail;
use crate::{kube_proxy_flags, values};

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
    /// Say what a running agent serves: Services, where they lead, and what they carry.
    #[command(display_name = NAME)]
    Services(ServicesArgs),
    /// Say what a running agent would do with a packet, and why.
    #[command(display_name = NAME)]
    Explain(ExplainArgs),
    /// Say how a running agent is.
    #[command(display_name = NAME)]
    Status(AskArgs),
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
    /// Whether endpoints that keep failing are passed over for a while (1 s growing to 30 s), unless all of a
    /// Service would be.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_parser = values::boolean)]
    pub passive_health: bool,
    /// Where metrics are served, as `/metrics`, and `/healthz`. `0` or nothing for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249", value_parser = metrics_address)]
    pub metrics_bind_address: BindAddress,
    /// Of what /metrics tells besides totals: each Service port, or each endpoint, too; 10,000 of each at the most,
    /// those first that have carried something.
    #[arg(long, value_enum, value_name = "DETAIL", default_value_t = Detail::Service)]
    pub service_metrics: Detail,
    /// Where commands such as `sluice services` are answered; only root may ask. Empty or 0 for nowhere
    /// [default: /run/sluice/admin.sock with `--capture tproxy`, nowhere with `--capture bind`].
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// How long connections may take to finish after SIGTERM; a second signal ends at once. With
    /// `--capture bind` new ones are refused from the signal on. With `--capture tproxy` they are served until
    /// another agent on this node takes them, no connection is open, or this time is over.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = values::duration)]
    pub grace_period: Duration,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
}

impl AgentArgs {
    /// Where commands are answered, if anywhere.
    pub(crate) fn admin_socket(&self) -> Option<PathBuf> {
        match &self.admin_socket {
            Some(path) if matches!(path.as_os_str().to_str(), Some("" | "0")) => None,
            Some(path) => Some(path.clone()),
            None if self.capture.capture == CaptureMode::Tproxy => Some(DEFAULT_PATH.into()),
            None => None,
        }
    }
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
    /// What one client address may have, in a hundred: of TCP sessions as many as leave the rest free, of UDP flows as
    /// many before its own make room for new ones first.
    #[arg(long, value_name = "PERCENT", default_value_t = Config::CLIENT_SHARE,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub client_share: u8,
    /// How long a UDP flow may be silent before it ends and the next datagram is balanced anew; four times as long
    /// once it was answered and has lasted for two seconds.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub udp_idle_timeout: Duration,
    /// How long a TCP connection of which one side has closed may stand still before it is cut off.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = values::duration)]
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
            client_share: self.client_share,
            udp_idle: self.udp_idle_timeout,
            half_closed_idle: self.tcp_half_closed_timeout,
            marks: None,
        }
    }
}

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

/// kube-proxy's port for metrics.
const METRICS_PORT: u16 = 10_249;

/// An address and a port, or an address alone, or none.
fn metrics_address(text: &str) -> Result<BindAddress, String> {
    if matches!(text, "" | "0") {
        return Ok(BindAddress(None));
    }
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, METRICS_PORT));
    let address = text.parse().or_else(|_| alone());
    let address = address.map_err(|_| "write ADDRESS:PORT, as 0.0.0.0:10249, or 0 for nowhere")?;
    Ok(BindAddress(Some(address)))
}

/// Reads the command line of this process; ends it where that says something wrong, or asks for help.
pub fn parse() -> Cli {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    try_parse(&arguments).unwrap_or_else(|error| error.exit())
}

/// Reads a command line.
///
/// # Errors
/// It says something wrong, or asks for help.
pub fn try_parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches =
        command.try_get_matches_from_mut(arguments).map_err(|error| {
            match kube_proxy_flags::answers(&error, arguments) {
                Some(answers) => command.error(ErrorKind::UnknownArgument, answers),
                None => error,
            }
        })?;
    if let Some(("agent", agent)) = matches.subcommand()
        && let Some(complaint) = capture_args::out_of_place(agent)
    {
        return Err(command.error(ErrorKind::ArgumentConflict, complaint));
    }
    Cli::from_arg_matches(&matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
        try_parse(&arguments).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn what_only_a_node_needs_is_refused_by_name_where_frontends_are_listened_on() {
        for flag in [
            "--cluster-cidr=10.0.0.0/8",
            "--detect-local-mode NodeCIDR",
            "--pod-bridge-interface cni0",
            "--pod-interface-name-prefix veth",
            "--masquerade-all",
            "--tproxy-port 7000",
            "--track-connections",
            "--disable-bridge-netfilter=false",
        ] {
            let name = flag.split([' ', '=']).next().unwrap();
            let complaint = said(&format!("sluice agent {flag}"));
            assert!(
                complaint.contains(&format!("{name} ")) && complaint.contains("--capture tproxy"),
                "{complaint}"
            );
            assert_eq!(said(&format!("sluice agent --capture tproxy {flag}")), "", "{flag}");
        }
        assert_eq!(said("sluice agent --nodeport-addresses 127.0.0.0/8"), "", "bind mode has nodePorts");
    }

    #[test]
    fn flags_of_kube_proxy_that_are_not_ours_are_answered_all_at_once() {
        let answers = said("sluice agent --proxy-mode=iptables --kubeconfig a --v=4 --conntrack-min 0");
        for part in [
            "--proxy-mode of kube-proxy is had",
            "--v of kube-proxy is had",
            "--conntrack-min of kube-proxy has no",
        ] {
            assert!(answers.contains(part), "{answers}");
        }
        assert!(!answers.contains("tip:") && !answers.contains("--kubeconfig"), "{answers}");
        assert!(said("sluice agent --log-dir /a").contains("--log_dir of kube-proxy is not offered"));
        let ours = said("sluice agent --manifest a");
        assert!(ours.contains("tip:") && ours.contains("--manifests"), "{ours}");
    }

    #[test]
    fn values_are_taken_as_people_write_them() {
        for flags in [
            "--grace-period 25s --udp-idle-timeout 2m --tcp-half-closed-timeout=1h0m0s",
            "--grace-period 25",
            "--passive-health false",
            "--passive-health",
            "--metrics-bind-address=",
            "--metrics-bind-address 0.0.0.0",
            "--metrics-bind-address [::]:10249",
            "--capture tproxy --masquerade-all true --workers 2",
            "--capture tproxy --masquerade-all --track-connections false",
            "--capture tproxy --masquerade-all=false --detect-local-mode= --pod-bridge-interface=",
        ] {
            assert_eq!(said(&format!("sluice agent {flags}")), "", "{flags}");
        }
        assert!(said("sluice agent --grace-period soon").contains("25s"));
        assert!(said("sluice agent --metrics-bind-address here").contains("ADDRESS:PORT"));
        assert!(said("sluice agent --passive-health maybe").contains("true or false"));
    }

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
