//! The command line, and the checks that need nothing else.

mod command;

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, FromArgMatches, Parser, Subcommand};
pub(crate) use command::command;
use command::command_with;

use crate::admin::{ConnectionsArgs, DEFAULT_PATH, ExplainArgs, ServicesArgs, StatusArgs, TopArgs};
use crate::capture_args::{self, CaptureArgs, CaptureMode};
use crate::check::CheckArgs;
use crate::cleanup::CleanupArgs;
use crate::dataplane_args::DataplaneArgs;
use crate::logging::Format;
use crate::port_args::PortArgs;
use crate::reference::{CompletionArgs, ManArgs};
use crate::source_args::SourceArgs;
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
    // If a flag is given twice, the last one counts, as in kube-proxy: so flags can be appended to a
    // manifest's. Lists are joined, as kube-proxy's --nodeport-addresses is, except those in `ONE_LIST`.
    #[command(display_name = NAME, args_override_self = true)]
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

/// The name in `--version`, for every subcommand.
pub(crate) const NAME: &str = "sluice";

/// The text of `sluice version` and `--version`.
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
    /// node takes them, no connection is open, or this time is over. Seconds, or with a unit, as 1m30s.
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

/// Where the arguments came from.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// The command line, without the settings of a file.
    pub arguments: Vec<OsString>,
    /// All settings, as flags.
    pub effective: config::Effective,
    /// Remarks on settings without effect, or with another one than in kube-proxy, one line each.
    pub notes: Vec<String>,
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

impl AgentArgs {
    /// The path of the admin socket, if there is one.
    pub(crate) fn admin_socket(&self) -> Option<PathBuf> {
        match &self.ports.admin_socket {
            Some(path) if matches!(path.as_os_str().to_str(), Some("" | "0")) => None,
            Some(path) => Some(path.clone()),
            None if self.capture.mode() != CaptureMode::Bind => Some(DEFAULT_PATH.into()),
            None => None,
        }
    }
}

/// Arguments of `sluice demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the figures instead of staying up for you to try.
    #[arg(long)]
    pub once: bool,
    /// How many HTTP requests to send in each round, at least: the second one lasts until its endpoints have come and gone.
    /// UDP gets a third of that.
    #[arg(long, value_name = "N", default_value = "3000", value_parser = values::at_least_one)]
    pub requests: NonZeroUsize,
    /// Settings of the data plane.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
}

/// An error in the command line, or a request for help.
#[derive(Debug)]
pub enum Complaint {
    /// The command line itself has an error, or asks for help.
    Usage(clap::Error),
    /// kube-proxy's settings have errors, one per line.
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

/// Parses the command line of this process and the configuration that it names. Ends the process on an error
/// (with 2 and 1), or on a request for help.
pub fn parse() -> Cli {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    try_parse(&arguments).unwrap_or_else(|complaint| match complaint {
        Complaint::Usage(error) => error.exit(),
        Complaint::Config(said) => {
            for line in said.lines() {
                // If nobody reads it, nothing can be done.
                let _ = writeln!(std::io::stderr(), "error: {line}");
            }
            std::process::exit(1)
        }
    })
}

/// Parses a command line and the configuration that it names.
///
/// # Errors
/// One of them has an error, or asks for help.
pub fn try_parse(arguments: &[OsString]) -> Result<Cli, Complaint> {
    let arguments = config::spelled(arguments);
    let mut command = command();
    let given = command.try_get_matches_from_mut(&arguments)?;
    let Some(("agent", given_agent)) = given.subcommand() else {
        let cli = Cli::from_arg_matches(&given)?;
        if let Command::Check(args) = &cli.command {
            args.socket.config(Duration::ZERO).map_err(|reason| complaint(&mut command, None, &reason))?;
        }
        return Ok(cli);
    };
    let merged = config::merge(&command, given_agent, &arguments).map_err(Complaint::Config)?;
    // A list on the command line replaces the file's; otherwise, the file gives the flag once for each element.
    let is_given = |id: &&str| given_agent.value_source(id) == Some(ValueSource::CommandLine);
    let mut command = command_with(command::ONE_LIST.into_iter().filter(is_given));
    let matches = command.try_get_matches_from_mut(merged.arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Agent(args), Some(("agent", agent))) = (&mut cli.command, matches.subcommand()) {
        args.capture.set_default(args.source.manifests.is_empty());
        if let Some(complaint) = capture_args::out_of_place(given_agent, args.capture.mode()) {
            return Err(command.error(ErrorKind::ArgumentConflict, complaint).into());
        }
        let of_agent = command.find_subcommand("agent");
        let effective = of_agent.map(|command| config::Effective::of(command, agent, args));
        let mut notes: Vec<String> = merged.named.into_iter().chain(merged.ignored).collect();
        let serves_node = args.capture.mode() != CaptureMode::Bind && !args.cleanup && !args.init_only;
        notes.extend(merged.node_ports.filter(|_| serves_node));
        notes.extend(args.capture.node_ports_note());
        args.said = Said { arguments, effective: effective.unwrap_or_default(), notes };
        args.capture
            .check()
            .map_err(|reason| complaint(&mut command, args.config.config.as_deref(), &reason))?;
    }
    Ok(cli)
}

/// The error for flags, or fields of a file, that do not go together.
fn complaint(command: &mut clap::Command, file: Option<&Path>, reason: &anyhow::Error) -> Complaint {
    match file {
        Some(file) => Complaint::Config(format!("{}: {reason}", file.display())),
        None => command.error(ErrorKind::ValueValidation, reason).into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::values::Listed;

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
    fn of_a_list_that_is_one_setting_the_last_one_counts_and_others_grow() {
        let parse = |flags: &str| {
            let arguments: Vec<OsString> =
                ["sluice", "agent"].into_iter().chain(flags.split_whitespace()).map(Into::into).collect();
            let Command::Agent(args) = try_parse(&arguments).unwrap().command else { panic!("{flags}") };
            args
        };
        let args = parse(
            "--capture tproxy --cluster-cidr=10.0.0.0/8 --socket-sidecar-ports=1,2 --socket-namespaces /a \
             --cluster-cidr 10.1.0.0/16,fd00::/48 --socket-sidecar-ports=3 --socket-namespaces=/b,/c",
        );
        let listed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(args.capture.cluster_cidr, listed(&["10.1.0.0/16", "fd00::/48"]));
        let socket = &args.capture.socket;
        assert_eq!(socket.socket_sidecar_ports, [Listed(Some(3))]);
        assert_eq!(socket.socket_namespaces, [Listed(Some("/b".into())), Listed(Some("/c".into()))]);
        let args = parse(
            "--capture tproxy --master http://a --nodeport-addresses 192.0.2.0/24 --master http://b \
             --nodeport-addresses 2001:db8::/32",
        );
        assert_eq!((args.source.apiserver.master.len(), args.capture.nodeport_addresses.len()), (2, 2));
    }

    #[test]
    fn a_list_of_a_file_counts_whole_and_one_of_the_command_line_in_its_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    sluice: {socketNamespaces: [/a, /b]}\n";
        std::fs::write(file.path(), text).unwrap();
        let namespaces = |flags: &[&str]| {
            let config = ["sluice", "agent", "--config", file.path().to_str().unwrap()];
            let arguments: Vec<OsString> = config.iter().chain(flags).map(Into::into).collect();
            let Command::Agent(args) = try_parse(&arguments).unwrap().command else { panic!("{flags:?}") };
            args.capture.socket.socket_namespaces.into_iter().filter_map(|path| path.0).collect::<Vec<_>>()
        };
        assert_eq!(namespaces(&[]), [PathBuf::from("/a"), PathBuf::from("/b")]);
        let flags = ["--socket-namespaces=/c", "--socket-namespaces=/d"];
        assert_eq!(namespaces(&flags), [PathBuf::from("/d")]);
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
            "--workers 2 --workers 3 --passive-health --passive-health=false",
        ] {
            assert_eq!(said(&format!("sluice agent {flags}")), "", "{flags}");
        }
        assert!(said("sluice agent --grace-period soon").contains("25s"));
        for line in [
            "sluice agent --grace-period -5s",
            "sluice agent --workers -1",
            "sluice agent --tproxy-port -1",
            "sluice connections --limit -1",
        ] {
            let flag = line.split(' ').find(|word| word.starts_with("--")).unwrap();
            let complaint = said(line);
            assert!(
                complaint.contains("invalid value '-") && complaint.contains(flag),
                "{line}: {complaint}"
            );
        }
        assert!(said("sluice agent --grace-period -5s").contains("cannot be negative"));
        assert!(said("sluice agent --metrics-bind-address here").contains("ADDRESS:PORT"));
        assert!(said("sluice agent --workers 0").contains("a number from 1 on"));
        assert!(said("sluice agent --passive-health maybe").contains("true or false"));
    }

    #[test]
    fn kube_proxys_level_is_taken_however_it_is_written() {
        for (flags, wanted) in
            [("-v 2", 2), ("-v2", 2), ("-v=2", 2), ("--v 10", 10), ("-v10 --workers 1", 10)]
        {
            let line = format!("sluice agent {flags}");
            let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
            let cli = try_parse(&arguments).unwrap_or_else(|complaint| panic!("{flags}: {complaint}"));
            let Command::Agent(args) = cli.command else { panic!("{flags}") };
            assert_eq!((args.v, cli.verbose), (Some(wanted), 0), "{flags}");
        }
    }

    #[test]
    fn what_cannot_go_together_is_refused_before_anything_is_done() {
        for (flags, wanted) in [
            ("agent --capture tproxy --socket-sidecar-ports 1,2,3", "two at the most"),
            ("agent --capture tproxy --detect-local-mode BridgeInterface", "--pod-bridge-interface"),
            ("check --socket-sidecar-ports 1,2,3", "two at the most"),
        ] {
            assert!(said(&format!("sluice {flags}")).contains(wanted), "{flags}");
        }
    }

    #[test]
    fn the_last_of_several_counts() {
        let line = "sluice agent --grace-period=25s --passive-health -v --capture=auto --grace-period 5m -v --capture bind \
                    --passive-health=false";
        let arguments: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        let cli = try_parse(&arguments).unwrap();
        let Command::Agent(args) = cli.command else { panic!("{line}") };
        assert_eq!((args.grace_period.as_secs(), args.passive_health, cli.verbose), (300, false, 2));
        assert_eq!(args.capture.mode(), CaptureMode::Bind);
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
