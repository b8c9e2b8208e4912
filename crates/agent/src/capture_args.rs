//! What the command line says about capturing, with kube-proxy's flags under kube-proxy's names, and what
//! follows from it for the table and the capture.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, ValueEnum};
use ipnet::IpNet;
use rustix::thread::CapabilitySet;
use sluice_capture::tproxy;
use sluice_dataplane::EPHEMERAL_PORTS;
use sluice_model::Family;
use sluice_table::{LocalPods, NodePortAddresses};

use crate::at_socket::{AtSocketConfig, AtSocketWish, Detector};
use crate::node_port_args::{self, NodePortAddress};
use crate::proxy::CaptureConfig;
use crate::socket_args::SocketArgs;
use crate::values::{self, Listed};

/// Arguments of `sluice agent` about whose packets are captured, and what endpoints see of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Capturing")]
pub struct CaptureArgs {
    /// How connections to Service addresses get here [default: auto where Services come from an apiserver and this
    /// process may have the node's network (CAP_NET_ADMIN), or where a configuration of kube-proxy's says so; else bind].
    #[arg(long, value_enum)]
    pub capture: Option<CaptureMode>,
    /// The default.
    #[arg(skip = CaptureMode::Bind)]
    default_mode: CaptureMode,
    /// How pods of this node are told from other clients: they keep their address at cluster IPs, and
    /// externalTrafficPolicy Local does not bind them.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = DetectLocalMode::ClusterCidr)]
    pub detect_local_mode: DetectLocalMode,
    /// Where pods have their addresses, for one or both families: 10.244.0.0/16,fd00:244::/48. Without one no
    /// client's address is rewritten at cluster IPs.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = values::listed_cidr)]
    pub cluster_cidr: Vec<Listed<IpNet>>,
    /// The bridge that pods of this node are on, for BridgeInterface.
    #[arg(long, value_name = "NAME", value_parser = interface_name)]
    pub pod_bridge_interface: Option<String>,
    /// What the names of interfaces to pods of this node begin with, for InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX", value_parser = interface_name)]
    pub pod_interface_name_prefix: Option<String>,
    /// Let endpoints see the node's address on every connection to a cluster IP.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean)]
    pub masquerade_all: bool,
    /// Addresses of the node that nodePorts are served on: those that are in these CIDRs; `primary` for the first ones of its
    /// Node object, `all`, `localhost`, which is not served, or any of these together. Of a family that there is none of,
    /// all. Empty is `primary`, too.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', default_value = "primary")]
    pub nodeport_addresses: Vec<Listed<NodePortAddress>>,
    /// The first of three ports on loopback addresses that captured packets are handed over at.
    #[arg(long, value_name = "PORT", default_value_t = 10_265, value_parser = clap::value_parser!(u16).range(1..=65_533))]
    pub tproxy_port: u16,
    /// Let the kernel's connection tracking see captured traffic, for firewalls and network policies that
    /// go by the state of connections.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean)]
    pub track_connections: bool,
    /// Keep net.bridge.bridge-nf-call-iptables and -ip6tables at 0: otherwise pods on a Linux bridge have no
    /// Services.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true,
          default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean)]
    pub disable_bridge_netfilter: bool,
    /// What decides at sockets.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// How connections get to the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CaptureMode {
    /// Listen on the Services' own addresses; they must be this machine's. Needs no privileges.
    Bind,
    /// Take the place of kube-proxy: packets of pods, of this node and from outside, to all Service
    /// addresses, by nftables. Needs CAP_NET_ADMIN.
    Tproxy,
    /// The same, and connections of this node's pods and processes get their endpoint when they are made, by programs
    /// in the kernel, as far as those can decide: no byte of them passes the agent. Needs CAP_BPF and CAP_PERFMON,
    /// too, and CAP_SYS_ADMIN to enter pods' network namespaces: without it pods' connected UDP sockets are relayed,
    /// and all namespaces count as pods'. Where it cannot be had: tproxy, and a warning says why.
    Socket,
    /// `socket` where this node has what it needs, else `tproxy`, and the log says why.
    Auto,
}

impl CaptureMode {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Tproxy => "tproxy",
            Self::Socket => "socket",
            Self::Auto => "auto",
        }
    }
}

/// kube-proxy's `--detect-local-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// By address: inside --cluster-cidr.
    #[value(name = "ClusterCIDR", alias = "")]
    ClusterCidr,
    /// By address: inside spec.podCIDRs of this Node.
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By interface: --pod-bridge-interface.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By interface: names that begin with --pod-interface-name-prefix.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// The kernel's IFNAMSIZ without the final zero.
const INTERFACE_NAME_MAX: usize = 15;

/// Parses an interface name or its prefix; an empty one counts as not given.
fn interface_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '"' | '*' | '\\');
    if text.len() <= INTERFACE_NAME_MAX && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("not a name of an interface: 1 to {INTERFACE_NAME_MAX} letters, digits and signs"))
    }
}

fn given(name: &Option<String>) -> Option<&str> {
    name.as_deref().filter(|name| !name.is_empty())
}

/// Flags that concern captured packets.
const ABOUT_CAPTURED: [&str; 15] = [
    "detect_local_mode",
    "cluster_cidr",
    "pod_bridge_interface",
    "pod_interface_name_prefix",
    "masquerade_all",
    "tproxy_port",
    "track_connections",
    "disable_bridge_netfilter",
    "socket_cgroup",
    "socket_endpoints",
    "socket_host_only",
    "socket_namespaces",
    "socket_pins",
    "socket_pod_annotations",
    "socket_sidecar_ports",
];

/// An error for flags that were given on the command line although no packets are captured. A file that
/// describes nodes in general may have them.
pub(crate) fn out_of_place(agent: &ArgMatches, capture: CaptureMode) -> Option<String> {
    if capture != CaptureMode::Bind {
        return None;
    }
    let is_given = |id: &&str| agent.value_source(id) == Some(ValueSource::CommandLine);
    let given = ABOUT_CAPTURED.iter().copied().filter(is_given);
    let names: Vec<String> = given.map(|id| format!("--{}", id.replace('_', "-"))).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} only for an agent that captures, and this one listens on the Services' own addresses (--capture bind): \
             add --capture auto to serve a node, or leave it out",
            names.join(", ") + if names.len() == 1 { " is" } else { " are" }
        )
    })
}

/// Addresses that tell pods of this node from other clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodAddresses {
    /// Those of --cluster-cidr; empty if pods are recognised in another way.
    Given(Vec<IpNet>),
    /// The Node's podCIDRs, as they change.
    OfNode,
}

impl CaptureArgs {
    /// How connections get to the agent.
    pub fn mode(&self) -> CaptureMode {
        self.capture.unwrap_or(self.default_mode)
    }

    /// Whether pods' annotations count.
    pub(crate) fn asks_for_pods(&self) -> bool {
        self.socket.socket_pod_annotations && matches!(self.mode(), CaptureMode::Auto | CaptureMode::Socket)
    }

    /// Sets the default mode: auto if there is an apiserver and this process has CAP_NET_ADMIN, else bind.
    pub(crate) fn set_default(&mut self, has_apiserver: bool) {
        let is_node = has_apiserver
            && rustix::thread::capabilities(None)
                .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
        self.default_mode = if is_node { CaptureMode::Auto } else { CaptureMode::Bind };
    }

    fn cluster_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.cluster_cidr.iter().filter_map(|listed| listed.0)
    }

    /// Where pods of this node have their addresses, if they are recognised by these.
    pub(crate) fn pod_addresses(&self) -> PodAddresses {
        match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => PodAddresses::Given(self.cluster_cidrs().collect()),
            DetectLocalMode::NodeCidr => PodAddresses::OfNode,
            DetectLocalMode::BridgeInterface | DetectLocalMode::InterfaceNamePrefix => {
                PodAddresses::Given(Vec::new())
            }
        }
    }

    /// How the table recognises pods of this node.
    pub fn local_pods(&self) -> LocalPods {
        match (self.mode(), self.detect_local_mode) {
            // Only the clients' addresses are known in this mode, and endpoints see the node's address anyway.
            (CaptureMode::Bind, _) => LocalPods::DetectedIn(Vec::new()),
            (_, DetectLocalMode::ClusterCidr) => {
                let families = self.cluster_cidrs().map(|cidr| Family::of(cidr.addr()));
                LocalPods::DetectedIn(families.collect())
            }
            (_, DetectLocalMode::NodeCidr) => LocalPods::DetectedByNodeCidrs,
            (_, DetectLocalMode::BridgeInterface | DetectLocalMode::InterfaceNamePrefix) => {
                LocalPods::Detected
            }
        }
    }

    /// The addresses on which nodePorts are served.
    pub fn node_ports(&self) -> NodePortAddresses {
        node_port_args::addresses(&self.nodeport_addresses)
    }

    /// A remark on nodePorts that are not served where they were asked for.
    pub(crate) fn node_ports_note(&self) -> Option<String> {
        node_port_args::note(&self.nodeport_addresses)
    }

    /// Checks that the flags go together.
    ///
    /// # Errors
    /// A flag needs another one, or a value is too large.
    pub(crate) fn check(&self) -> Result<()> {
        self.capture(tproxy::FlowIdle { any: Duration::ZERO, conversation: Duration::ZERO })?;
        self.socket.config(Duration::ZERO).map(drop)
    }

    /// The configuration of socket mode. `flow_idle` is the idle time after which a UDP flow ends; socket mode
    /// does not tell answered flows apart.
    ///
    /// # Errors
    /// A flag makes no sense.
    pub(crate) fn at_socket(&self, flow_idle: Duration) -> Result<AtSocketWish> {
        let detector = self.detector().context("cannot tell pods by their addresses")?;
        let config = AtSocketConfig { detector: detector.map(Arc::new), ..self.socket.config(flow_idle)? };
        Ok(match self.mode() {
            CaptureMode::Bind | CaptureMode::Tproxy => AtSocketWish::None,
            CaptureMode::Socket => AtSocketWish::Wanted(config),
            CaptureMode::Auto => match self.socket.lacks() {
                None => AtSocketWish::Wanted(config),
                Some(lacks) => AtSocketWish::Lacking(format!("this node lacks {lacks}")),
            },
        })
    }

    /// The detector of pods by their addresses, if they are recognised by these.
    fn detector(&self) -> io::Result<Option<Detector>> {
        match self.pod_addresses() {
            PodAddresses::OfNode => Detector::of_node().map(Some),
            PodAddresses::Given(cidrs) if cidrs.is_empty() => Ok(None),
            PodAddresses::Given(cidrs) => Detector::of_cluster(cidrs).map(Some),
        }
    }

    /// Where an earlier agent with another `--capture` may have left programs, which would go on using outdated
    /// endpoints.
    pub(crate) fn leftovers(&self) -> Option<PathBuf> {
        (self.mode() != CaptureMode::Bind).then(|| self.socket.socket_pins.clone())
    }

    /// The configuration of the capture.
    ///
    /// # Errors
    /// The way to detect local pods needs another flag.
    pub fn capture(&self, flow_idle: tproxy::FlowIdle) -> Result<CaptureConfig> {
        if self.mode() == CaptureMode::Bind {
            return Ok(CaptureConfig::Bind);
        }
        let local_pods = match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => tproxy::LocalPods::Cidrs(self.cluster_cidrs().collect()),
            DetectLocalMode::NodeCidr => tproxy::LocalPods::NodeCidrs,
            DetectLocalMode::BridgeInterface => match given(&self.pod_bridge_interface) {
                Some(name) => tproxy::LocalPods::Interface { pattern: name.to_owned() },
                None => bail!("--detect-local-mode=BridgeInterface needs --pod-bridge-interface"),
            },
            DetectLocalMode::InterfaceNamePrefix => match given(&self.pod_interface_name_prefix) {
                Some(prefix) => tproxy::LocalPods::Interface { pattern: format!("{prefix}*") },
                None => bail!("--detect-local-mode=InterfaceNamePrefix needs --pod-interface-name-prefix"),
            },
        };
        Ok(CaptureConfig::Tproxy(tproxy::Config {
            ports: tproxy::Ports::from_first(self.tproxy_port),
            local_pods,
            cluster_cidrs: self.cluster_cidrs().collect(),
            track: self.track_connections,
            asks_conntrack: false,
            bridge_netfilter_off: self.disable_bridge_netfilter,
            pod_ports: EPHEMERAL_PORTS,
            flow_idle,
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        capture: CaptureArgs,
    }

    const FLOW_IDLE: tproxy::FlowIdle =
        tproxy::FlowIdle { any: Duration::from_secs(30), conversation: Duration::from_secs(120) };

    fn parse(arguments: &str) -> Result<CaptureArgs, clap::Error> {
        let words = std::iter::once("sluice").chain(arguments.split_whitespace());
        Program::try_parse_from(words).map(|program| program.capture)
    }

    #[test]
    fn flags_are_spelled_as_kube_proxy_spells_them() {
        let args = parse(
            "--capture tproxy --cluster-cidr=10.244.0.0/16,fd00:244::/48 --masquerade-all=true \
             --nodeport-addresses=192.0.2.0/24,2001:db8::/32 --detect-local-mode=ClusterCIDR",
        )
        .unwrap();
        assert_eq!(args.local_pods(), LocalPods::DetectedIn(vec![Family::V4, Family::V6]));
        assert!(args.masquerade_all);
        assert!(matches!(args.node_ports(), NodePortAddresses::Inside(cidrs) if cidrs.len() == 2));
        assert!(parse("--masquerade-all").unwrap().masquerade_all);
        assert!(matches!(parse("").unwrap().node_ports(), NodePortAddresses::Primary));
    }

    /// Each flag either has no effect in bind mode, and the agent reports that, or has one.
    #[test]
    fn of_each_flag_it_is_known_whether_an_agent_that_binds_has_a_use_for_it() {
        const USED: [&str; 2] = ["capture", "nodeport_addresses"];
        let command = Program::command();
        let mut flags: Vec<&str> = command.get_arguments().map(|flag| flag.get_id().as_str()).collect();
        let mut known = [&ABOUT_CAPTURED[..], &USED].concat();
        flags.sort_unstable();
        known.sort_unstable();
        assert_eq!(flags, known);
        for flag in command.get_arguments() {
            let spelled = flag.get_id().as_str().replace('_', "-");
            assert_eq!(flag.get_long(), Some(spelled.as_str()), "as it is told");
        }
    }

    #[test]
    fn empty_lists_are_as_good_as_none() {
        for arguments in
            ["--cluster-cidr= --nodeport-addresses=", "--cluster-cidr=  --nodeport-addresses=primary", ""]
        {
            let args = parse(&format!("--capture tproxy {arguments}")).unwrap();
            assert_eq!(args.local_pods(), LocalPods::DetectedIn(Vec::new()), "{arguments}");
            let CaptureConfig::Tproxy(config) = args.capture(FLOW_IDLE).unwrap() else {
                panic!("not bind mode")
            };
            assert_eq!(config.cluster_cidrs, [], "{arguments}");
            assert_eq!(config.local_pods, tproxy::LocalPods::Cidrs(Vec::new()), "{arguments}");
            assert!(matches!(args.node_ports(), NodePortAddresses::Primary), "{arguments}");
        }
    }

    #[test]
    fn modes_by_interface_need_its_name() {
        let capture =
            |arguments: &str| parse(&format!("--capture tproxy {arguments}")).unwrap().capture(FLOW_IDLE);
        assert!(capture("--detect-local-mode BridgeInterface").is_err());
        assert!(capture("--detect-local-mode BridgeInterface --pod-bridge-interface cni0").is_ok());
        assert!(capture("--detect-local-mode InterfaceNamePrefix").is_err());
        let by_prefix = capture("--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix veth");
        let CaptureConfig::Tproxy(config) = by_prefix.unwrap() else { panic!("not bind mode") };
        assert!(matches!(config.local_pods, tproxy::LocalPods::Interface { pattern } if pattern == "veth*"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for arguments in [
            "--cluster-cidr 10.244.0.0",
            "--cluster-cidr pods",
            "--nodeport-addresses everywhere",
            "--detect-local-mode clustercidr-ish",
            "--tproxy-port 65535",
            "--tproxy-port 0",
            "--pod-bridge-interface a/b",
            "--pod-interface-name-prefix a-name-that-is-too-long",
        ] {
            assert!(parse(arguments).is_err(), "{arguments}");
        }
    }
}
