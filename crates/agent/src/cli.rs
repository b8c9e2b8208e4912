//! The command line: what a person can say, and the checks that need nothing else.

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sluice_dataplane::{Config, raise_descriptor_limit};
use sluice_kubeapi::apiserver;

use crate::admin::{
    ConnectionsArgs, DEFAULT_PATH, ExplainArgs, ServicesArgs, StatusArgs, StatusPage, TopArgs,
};
use crate::capture_args::{self, CaptureArgs, CaptureMode};
use crate::check::CheckArgs;
use crate::cleanup::CleanupArgs;
use crate::listen::{BindAddress, Place};
use crate::logging::Format;
use crate::reference::{CompletionArgs, ManArgs};
use crate::service_metrics::Detail;
use crate::{config, values};

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
    /// Say what is in the way of `sluice agent` on this node.
    #[command(display_name = NAME)]
    Check(CheckArgs),
    /// Remove what an agent has made in the kernel, or what kube-proxy has left there.
    #[command(display_name = NAME)]
    Cleanup(CleanupArgs),
    /// Say what a running agent serves: Services, where they lead, and what they carry.
    #[command(display_name = NAME)]
    Services(ServicesArgs),
    /// Say which connections and UDP flows are open on a running agent.
    #[command(display_name = NAME)]
    Connections(ConnectionsArgs),
    /// Say what a running agent would do with a packet, and why.
    #[command(display_name = NAME)]
    Explain(ExplainArgs),
    /// Watch which Services of a running agent carry most.
    #[command(display_name = NAME)]
    Top(TopArgs),
    /// Say how a running agent is.
    #[command(display_name = NAME)]
    Status(StatusArgs),
    /// Say which version this is.
    #[command(display_name = NAME)]
    Version,
    /// Write what a shell completes: `source <(sluice completion bash)`.
    #[command(display_name = NAME)]
    Completion(CompletionArgs),
    /// Write a manual page: `sluice man agent | man -l -`.
    #[command(display_name = NAME)]
    Man(ManArgs),
}

/// What `--version` calls it, whatever command it stands behind.
pub(crate) const NAME: &str = "sluice";

/// What `sluice version` says, and `--version`.
pub fn version() -> String {
    format!("{NAME} {}", env!("CARGO_PKG_VERSION"))
}

/// Arguments of `sluice agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// kube-proxy's configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where the Services and endpoints come from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Whose packets are captured, and how.
    #[command(flatten)]
    pub capture: CaptureArgs,
    /// Whether endpoints that keep failing are passed over for a while (1 s growing to 30 s), unless all of a
    /// Service would be.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_parser = values::boolean, help_heading = "Data plane")]
    pub passive_health: bool,
    /// The agent's own ports.
    #[command(flatten)]
    pub ports: PortArgs,
    /// How long connections may take to finish after SIGTERM; a second signal ends at once. With
    /// `--capture bind` new ones are refused from the signal on. Otherwise they are served until another agent on this
    /// node takes them, no connection is open, or this time is over.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = values::duration,
          help_heading = "Data plane")]
    pub grace_period: Duration,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
    /// How much is said, as kube-proxy counts it: 4 is -v, 6 is -vv.
    #[arg(long, value_name = "LEVEL", help_heading = "Process")]
    pub v: Option<u32>,
    /// What a line of the log is: text, or a JSON object as Kubernetes' components write it.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text, help_heading = "Process")]
    pub logging_format: Format,
    /// How ready the kernel is to end the agent when memory is short: -1000 (never) to 1000. Lower than it is needs
    /// CAP_SYS_RESOURCE [default: as it is].
    #[arg(long, value_name = "N", help_heading = "Process", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub oom_score_adj: Option<i16>,
    /// Remove what an agent has made in the kernel, and end: `sluice cleanup`.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
          action = clap::ArgAction::Set, value_parser = values::boolean, help_heading = "Process")]
    pub cleanup: bool,
    /// Change the settings of the kernel that the agent needs (net.ipv4.tcp_migrate_req and the like), and end. Where
    /// /proc/sys may be written only here, the agent itself does not need to. With --capture socket or auto it also
    /// mounts a bpffs for --socket-pins where there is none.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
          action = clap::ArgAction::Set, value_parser = values::boolean, help_heading = "Process")]
    pub init_only: bool,
    /// What all of this comes from.
    #[arg(skip)]
    pub said: Said,
}

/// How the arguments came about.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// The command line, without what a file adds.
    pub arguments: Vec<OsString>,
    /// Everything, as flags.
    pub effective: config::Effective,
    /// What is to be said of settings that have no effect.
    pub named: Option<String>,
}

/// kube-proxy's configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// A KubeProxyConfiguration, as kubeadm writes it, with the agent's own settings below `sluice`. Flags win; a field
    /// that there is not is an error. It implies --capture auto. Changes are followed: of the log level, of node
    /// port addresses and of the grace period at once, others are named.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write what the flags and the file say to this file, as such a configuration, and end.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Name of this node, as nodeName in EndpointSlices spells it [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
}

/// Where the agent answers to others than clients of Services, as kube-proxy does.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct PortArgs {
    /// Where load balancers and kubelets ask for the health of this node: `/healthz`, which is 503 also while the
    /// Node is about to be deleted, and `/livez`. `0` or nothing for nowhere [default: port 10256 of all addresses,
    /// IPv4 and IPv6; nowhere with --capture bind].
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<BindAddress>,
    /// The port of --healthz-bind-address, if that has none. 0 for nowhere.
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Where metrics are served, as `/metrics`, the status page, `/healthz`, `/proxyMode` and `/configz`. `0` or nothing for
    /// nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: BindAddress,
    /// The port of --metrics-bind-address, if that has none. 0 for nowhere.
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// Of what /metrics tells besides totals: each Service port, or each endpoint, too; 10,000 of each at the most,
    /// those first that have carried something.
    #[arg(long, value_enum, value_name = "DETAIL", default_value_t = Detail::Service)]
    pub service_metrics: Detail,
    /// Who is shown the status page, `/` of --metrics-bind-address, which names all Services and endpoints: nobody, clients
    /// of this node that ask a loopback address, or all who reach the port.
    #[arg(long, value_enum, value_name = "WHO", default_value_t = StatusPage::Loopback)]
    pub status_page: StatusPage,
    /// Where commands such as `sluice services` are answered; only root may ask. Empty or 0 for nowhere
    /// [default: /run/sluice/admin.sock, and nowhere with `--capture bind`].
    #[arg(long, value_name = "PATH", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub admin_socket: Option<PathBuf>,
    /// Let the log level be changed at run time: PUT a number, as --v has it, to `/debug/flags/v` of
    /// --metrics-bind-address.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
          action = clap::ArgAction::Set, value_parser = values::boolean)]
    pub profiling: bool,
    /// End where one of these addresses cannot be had, instead of waiting for it. An agent that is to take over
    /// from another one must wait.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
          action = clap::ArgAction::Set, value_parser = values::boolean)]
    pub bind_address_hard_fail: bool,
}

/// kube-proxy's port for health checks.
const HEALTHZ_PORT: u16 = 10_256;

/// kube-proxy's port for metrics.
const METRICS_PORT: u16 = 10_249;

impl PortArgs {
    /// Where health checks of the node are answered, if anywhere.
    pub fn healthz(&self, capture: CaptureMode) -> Option<Place> {
        match (self.healthz_bind_address, self.healthz_port) {
            (_, Some(0)) => None,
            (Some(address), port) => address.place(port.unwrap_or(HEALTHZ_PORT)),
            (None, Some(port)) => Some(Place::Everywhere(port)),
            (None, None) if capture != CaptureMode::Bind => Some(Place::Everywhere(HEALTHZ_PORT)),
            (None, None) => None,
        }
    }

    /// Where metrics are served, if anywhere.
    pub fn metrics(&self) -> Option<Place> {
        match self.metrics_port {
            Some(0) => None,
            port => self.metrics_bind_address.place(port.unwrap_or(METRICS_PORT)),
        }
    }
}

impl AgentArgs {
    /// Where commands are answered, if anywhere.
    pub(crate) fn admin_socket(&self) -> Option<PathBuf> {
        match &self.ports.admin_socket {
            Some(path) if matches!(path.as_os_str().to_str(), Some("" | "0")) => None,
            Some(path) => Some(path.clone()),
            None if self.capture.mode() != CaptureMode::Bind => Some(DEFAULT_PATH.into()),
            None => None,
        }
    }
}

/// Where Services and endpoints come from: an apiserver, found as kubectl finds it, or files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Source")]
pub struct SourceArgs {
    /// Kubernetes manifests with Services and EndpointSlices instead of an apiserver: a YAML or JSON
    /// file, or a directory of them. May be given several times. Changes on disk take effect within a
    /// second.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "master"])]
    pub manifests: Vec<PathBuf>,
    /// The apiserver.
    #[command(flatten)]
    pub apiserver: ApiserverArgs,
}

/// How the apiserver is reached.
#[derive(Debug, Args)]
pub struct ApiserverArgs {
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

impl ApiserverArgs {
    /// What a node of this name is to be told by it, or asks it.
    pub(crate) fn config(&self, node: &str) -> apiserver::Config {
        let mut config = apiserver::Config::new(node, apiserver::Environment::of_process());
        config.kubeconfig.clone_from(&self.kubeconfig);
        config.context.clone_from(&self.context);
        config.masters = self.master.iter().filter(|master| !master.is_empty()).cloned().collect();
        config
    }
}

/// Arguments of `sluice demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the figures instead of staying up for you to try.
    #[arg(long)]
    pub once: bool,
    /// How many requests to send in each round.
    #[arg(long, value_name = "N", default_value = "3000", value_parser = values::at_least_one)]
    pub requests: NonZeroUsize,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
}

/// Settings of the data plane.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data plane")]
pub struct DataplaneArgs {
    /// Worker threads that carry traffic [default: one for each CPU].
    #[arg(long, value_name = "N", value_parser = values::at_least_one)]
    pub workers: Option<NonZeroUsize>,
    /// What one client may have, in a hundred: of TCP sessions, and of the node's ports that they have towards an
    /// endpoint, as many as leave the rest free; of UDP flows, and of the node's ports that those have, as many before
    /// its own make room for new ones first. A client is an address; from outside, all IPv6 addresses of a /64 network,
    /// where pods are told from others (--detect-local-mode).
    #[arg(long, value_name = "PERCENT", default_value_t = Config::CLIENT_SHARE,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub client_share: u8,
    /// How long a UDP flow may be silent before it ends and the next datagram is balanced anew; four times as long
    /// once it was answered and has lasted for two seconds, and where it is decided at the client's socket.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::some_duration)]
    pub udp_idle_timeout: Duration,
    /// Which connections and flows are told of in the log when they end, with client, endpoint, bytes and duration:
    /// `off`, `all`, or one in so many, as `1/100`.
    #[arg(long, value_name = "SAMPLE", default_value = "off", value_parser = values::sample)]
    pub connection_log: values::Sample,
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
            connection_log: self.connection_log.0,
            service_times: false,
        }
    }
}

/// What is wrong with a command line, or what it asks to be told.
#[derive(Debug)]
pub enum Complaint {
    /// The command line itself says something wrong, or asks for help.
    Usage(clap::Error),
    /// kube-proxy's settings do, on one line each.
    Config(String),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => error.fmt(f),
            Self::Config(said) => f.write_str(said),
        }
    }
}

impl From<clap::Error> for Complaint {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

/// Reads the command line of this process, and the configuration that it names; ends it where one of them says
/// something wrong (with 2 and 1), or asks for help.
pub fn parse() -> Cli {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    try_parse(&arguments).unwrap_or_else(|complaint| match complaint {
        Complaint::Usage(error) => error.exit(),
        Complaint::Config(said) => {
            for line in said.lines() {
                // With nobody to read it there is nothing to be done.
                let _ = writeln!(std::io::stderr(), "error: {line}");
            }
            std::process::exit(1)
        }
    })
}

/// The program's command, taking kube-proxy's flags as well.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command().mut_subcommand("agent", config::with_foreign_flags);
    command.build();
    command
}

/// Reads a command line, and the configuration that it names.
///
/// # Errors
/// One of them says something wrong, or asks for help.
pub fn try_parse(arguments: &[OsString]) -> Result<Cli, Complaint> {
    let arguments = config::spelled(arguments);
    let mut command = command();
    let given = command.try_get_matches_from_mut(&arguments)?;
    let Some(("agent", given_agent)) = given.subcommand() else { return Ok(Cli::from_arg_matches(&given)?) };
    let merged = config::merge(&command, given_agent, &arguments).map_err(Complaint::Config)?;
    let matches = command.try_get_matches_from_mut(merged.arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Agent(args), Some(("agent", agent))) = (&mut cli.command, matches.subcommand()) {
        args.capture.set_default(args.source.manifests.is_empty());
        if let Some(complaint) = capture_args::out_of_place(given_agent, args.capture.mode()) {
            return Err(command.error(ErrorKind::ArgumentConflict, complaint).into());
        }
        let effective = command.find_subcommand("agent").map(|command| config::Effective::of(command, agent));
        args.said = Said { arguments, effective: effective.unwrap_or_default(), named: merged.named };
    }
    Ok(cli)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
        try_parse(&arguments).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn commands_are_answered_nowhere_where_that_is_said() {
        for (flag, wanted) in [("=", None), ("=0", None), ("=/a", Some("/a")), (" /a", Some("/a"))] {
            let line = format!("sluice agent --capture tproxy --admin-socket{flag}");
            let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
            let Command::Agent(args) = try_parse(&arguments).unwrap().command else { panic!("{line}") };
            assert_eq!(args.admin_socket(), wanted.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn what_only_a_node_needs_is_refused_by_name_where_frontends_are_listened_on() {
        assert!(said("sluice agent --manifest a").contains("--manifests"), "what is misspelled has a tip");
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
            let complaint = said(&format!("sluice agent --manifests a {flag}"));
            assert!(
                complaint.contains(&format!("{name} ")) && complaint.contains("--capture auto"),
                "{complaint}"
            );
            assert_eq!(said(&format!("sluice agent --capture tproxy {flag}")), "", "{flag}");
        }
        assert_eq!(
            said("sluice agent --capture bind --nodeport-addresses 127.0.0.0/8"),
            "",
            "it has nodePorts"
        );
    }

    #[test]
    fn a_node_is_captured_by_default_where_an_apiserver_says_what_and_a_privilege_is_there() {
        let mode = |flags: &str| {
            let arguments: Vec<OsString> =
                ["sluice", "agent"].into_iter().chain(flags.split_whitespace()).map(Into::into).collect();
            let Command::Agent(args) = try_parse(&arguments).unwrap().command else { panic!("{flags}") };
            args.capture.mode()
        };
        let privileged = rustix::thread::capabilities(None).unwrap().effective;
        let is_privileged = privileged.contains(rustix::thread::CapabilitySet::NET_ADMIN);
        let node = if is_privileged { CaptureMode::Auto } else { CaptureMode::Bind };
        assert_eq!(mode(""), node);
        assert_eq!(mode("--master https://192.0.2.1:6443"), node);
        assert_eq!(mode("--manifests a"), CaptureMode::Bind);
        assert_eq!(mode("--manifests a --capture tproxy"), CaptureMode::Tproxy);
        assert_eq!(mode("--capture bind"), CaptureMode::Bind);
        assert_eq!(mode("--proxy-mode nftables --manifests a"), CaptureMode::Auto);
    }

    #[test]
    fn values_are_taken_as_people_write_them() {
        for flags in [
            "--grace-period 25s --udp-idle-timeout 2m --tcp-half-closed-timeout=1h0m0s",
            "--grace-period 25",
            "--passive-health false",
            "--passive-health",
            "--metrics-bind-address=",
            "--metrics-bind-address 0.0.0.0 --bind-address-hard-fail",
            "--metrics-bind-address [::]:10249",
            "--capture tproxy --masquerade-all true --workers 2",
            "--capture tproxy --masquerade-all --track-connections false",
            "--capture tproxy --masquerade-all=false --detect-local-mode= --pod-bridge-interface=",
        ] {
            assert_eq!(said(&format!("sluice agent {flags}")), "", "{flags}");
        }
        assert!(said("sluice agent --grace-period soon").contains("25s"));
        assert!(said("sluice agent --metrics-bind-address here").contains("ADDRESS:PORT"));
        assert!(said("sluice agent --workers 0").contains("a number from 1 on"));
        assert!(said("sluice agent --passive-health maybe").contains("true or false"));
    }

    #[test]
    fn the_agents_ports_are_kube_proxys() {
        #[rustfmt::skip]
        let cases = [
            ("",                                                      None,                  Some("127.0.0.1:10249")),
            ("--capture tproxy",                                      Some("port 10256"),    Some("127.0.0.1:10249")),
            ("--healthz-port 7",                                      Some("port 7"),        Some("127.0.0.1:10249")),
            ("--capture tproxy --healthz-port 0 --metrics-port 0",    None,                  None),
            ("--healthz-bind-address 0.0.0.0 --healthz-port 7",       Some("0.0.0.0:7"),     Some("127.0.0.1:10249")),
            ("--healthz-bind-address [::]:8 --healthz-port 7",        Some("[::]:8"),        Some("127.0.0.1:10249")),
            ("--capture tproxy --healthz-bind-address= --metrics-bind-address=", None,       None),
            ("--healthz-bind-address :: --metrics-bind-address ::1",  Some("[::]:10256"),    Some("[::1]:10249")),
        ];
        for (flags, healthz, metrics) in cases {
            let line = format!("sluice agent {flags}");
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let Command::Agent(args) = cli.command else { panic!("{flags}") };
            let said = |place: Option<Place>| place.map(|place| place.to_string());
            assert_eq!(said(args.ports.healthz(args.capture.mode())).as_deref(), healthz, "{flags}");
            assert_eq!(said(args.ports.metrics()).as_deref(), metrics, "{flags}");
        }
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
