//! The command line's settings of socket mode, and whether this node can have it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Args};
use sluice_socket::{Removed, State};
use tracing::{info, warn};

use crate::at_socket::{AtSocketConfig, Pods, warn_of_left};
use crate::values::{self, Listed};

/// [`sluice_socket::NAMED`], in the flag's form.
const NAMESPACES: &str = "/run/netns,/run/docker/netns";

/// Where socket mode has its programs.
#[derive(Debug, Clone, Args)]
pub struct SocketArgs {
    /// The cgroup below which sockets are decided about, of socket mode [default: the root of all].
    #[arg(long, value_name = "PATH")]
    pub socket_cgroup: Option<PathBuf>,
    /// A directory of a bpffs, where the programs and maps of socket mode outlive the agent.
    #[arg(long, value_name = "PATH", default_value = sluice_socket::PINS)]
    pub socket_pins: PathBuf,
    /// Decide only about sockets of the node's own network; pods' connections are relayed.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean)]
    pub socket_host_only: bool,
    /// Where the node's container runtime has pods' network namespaces by name. Connections of sockets in others, as of
    /// containers within a pod, are relayed. Where none has a name in any of these, those of all are decided about.
    #[arg(long, value_name = "PATHS", value_delimiter = ',', default_value = NAMESPACES)]
    pub socket_namespaces: Vec<Listed<PathBuf>>,
    /// Relay connections of pods in which somebody listens at one of these ports (two at the most): a proxy that what
    /// leaves the pod is redirected to, by rules that go by the Service's address. Empty is none.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', default_value = "15001,4140")]
    pub socket_sidecar_ports: Vec<Listed<u16>>,
    /// Relay connections of pods with the annotation sluice.dev/socket-mode: "false", or in a namespace with it. This
    /// node's pods and all namespaces are watched for that, which takes the right to list and watch them; a pod's
    /// connections are relayed until the apiserver has said what its address is.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean)]
    pub socket_pod_annotations: bool,
    /// How many endpoints can be decided about, counted in each service port; what is beyond is relayed. Each takes 85
    /// bytes of the kernel's memory, used or not. Another number makes new maps: what an earlier agent has decides
    /// until all is known.
    #[arg(long, value_name = "N", default_value_t = AtSocketConfig::ENDPOINTS,
          value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    pub socket_endpoints: u32,
}

impl SocketArgs {
    /// What this node has of what socket mode needs, and what it lacks.
    pub(crate) fn probe(&self) -> Vec<sluice_socket::Finding> {
        sluice_socket::probe(self.socket_cgroup.as_deref(), &self.socket_pins, &self.namespaces())
    }

    /// The directories with names of pods' network namespaces.
    fn namespaces(&self) -> Vec<PathBuf> {
        self.socket_namespaces.iter().filter_map(|path| path.0.clone()).collect()
    }

    /// The configuration of socket mode.
    ///
    /// # Errors
    /// There are too many sidecar ports.
    pub(crate) fn config(&self, flow_idle: Duration) -> Result<AtSocketConfig> {
        let ports: Vec<u16> = self.socket_sidecar_ports.iter().filter_map(|port| port.0).collect();
        let sidecar_ports = match ports[..] {
            [] => [0, 0],
            [one] => [one, 0],
            [one, two] => [one, two],
            _ => bail!("--socket-sidecar-ports: two at the most"),
        };
        let pods = self.socket_pod_annotations.then(Pods::new).transpose();
        Ok(AtSocketConfig {
            pods: pods.context("cannot follow pods")?.map(Arc::new),
            host_only: self.socket_host_only,
            namespaces: self.namespaces(),
            sidecar_ports,
            flow_idle,
            endpoints: self.socket_endpoints,
            ..AtSocketConfig::new(self.socket_cgroup.clone(), self.socket_pins.clone())
        })
    }

    /// What this node lacks for socket mode, if the mode was not asked for by name.
    pub(crate) fn lacks(&self) -> Option<String> {
        if self.socket_cgroup.is_none() && !sluice_socket::is_initial_network() {
            return Some(
                "the machine's initial network namespace, and the root of all cgroups has everybody's sockets (name \
                 the node's cgroup: --socket-cgroup)"
                    .to_owned(),
            );
        }
        let findings = self.probe();
        let missing: Vec<String> = findings
            .iter()
            .filter(|finding| finding.state == State::Missing)
            .map(|finding| format!("{}: {} ({})", finding.what, finding.seen, finding.mend))
            .collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Makes sure that there is a place for pins, for an agent without the right to mount. Without such a
    /// place, that agent relays all connections, which is no reason to fail.
    pub(crate) fn prepare(&self) {
        match sluice_socket::ensure_bpffs(&self.socket_pins) {
            Ok(false) => {}
            Ok(true) => info!("a bpffs is mounted for {}", self.socket_pins.display()),
            Err(error) => warn!("there is no place for what socket mode has in the kernel: {error}"),
        }
    }

    /// Removes the programs of an earlier agent with another --capture, which would go on using outdated
    /// endpoints. That agent may still run: it is about to be replaced, and relays meanwhile.
    pub(crate) fn take_away(&self) {
        self.tell(sluice_socket::remove_held(&self.socket_pins));
    }

    fn tell(&self, removed: io::Result<Removed>) {
        match removed {
            Ok(Removed { was_there: false, .. }) => {}
            Ok(removed) => {
                info!("nothing is decided at sockets any more, as --capture is another one now");
                warn_of_left(removed.left.as_deref());
            }
            Err(error) => warn!(
                "an earlier agent's programs may still decide about connections: {error}; stop the agents of this \
                 node and run sluice cleanup"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        socket: SocketArgs,
    }

    fn config(flags: &str) -> Result<AtSocketConfig, String> {
        let words = std::iter::once("sluice").chain(flags.split_whitespace());
        let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
        program.socket.config(Duration::from_secs(7)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_an_endpoint_takes_is_what_help_and_the_documentation_say() {
        use clap::CommandFactory as _;

        let bytes = |endpoints| sluice_socket::mapped_bytes(&AtSocketConfig::capacity_for(endpoints));
        let few = AtSocketConfig::ENDPOINTS;
        let each = (bytes(2 * few) - bytes(few)).div_ceil(few.into());
        let help = Program::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&format!("Each takes {each} bytes")), "{each}: {help}");
        let documented = include_str!("../../../docs/deploy.md");
        assert!(documented.contains(&format!("(110,000, each {each} bytes)")), "{each}");
    }

    #[test]
    fn the_default_list_of_namespaces_can_be_given_as_help_shows_it() {
        assert_eq!(NAMESPACES, sluice_socket::NAMED.join(","));
        assert_eq!(
            config(&format!("--socket-namespaces {NAMESPACES}")).map(|config| config.namespaces),
            config("").map(|config| config.namespaces)
        );
    }

    #[test]
    fn two_ports_of_sidecars_and_two_directories_are_known_by_default_and_there_may_be_none() {
        let ports = |flags: &str| config(flags).map(|config| config.sidecar_ports);
        assert_eq!(ports(""), Ok([15_001, 4_140]));
        assert_eq!(ports("--socket-sidecar-ports 7"), Ok([7, 0]));
        assert_eq!(ports("--socket-sidecar-ports="), Ok([0, 0]));
        assert!(ports("--socket-sidecar-ports 1,2,3").unwrap_err().contains("two at the most"));
        assert!(ports("--socket-sidecar-ports mesh").is_err());
        let namespaces = |flags: &str| config(flags).map(|config| config.namespaces);
        assert_eq!(namespaces(""), Ok(sluice_socket::NAMED.map(PathBuf::from).into()));
        assert_eq!(namespaces("--socket-namespaces=/a,/b"), Ok(vec!["/a".into(), "/b".into()]));
        assert_eq!(namespaces("--socket-namespaces="), Ok(Vec::new()));
        assert!(config("--socket-endpoints 0").is_err());
        assert_eq!(config("").map(|config| config.flow_idle), Ok(Duration::from_secs(7)));
    }
}
