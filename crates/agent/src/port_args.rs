//! The command line's settings of the ports and the socket on which the agent itself answers.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::admin::StatusPage;
use crate::capture_args::CaptureMode;
use crate::listen::{BindAddress, Place};
use crate::service_metrics::Detail;
use crate::values;

/// Where the agent answers to others than clients of Services, as kube-proxy does.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct PortArgs {
    /// Where load balancers and kubelets ask for the health of this node: `/healthz`, which is 503 also while the
    /// Node is about to be deleted, and `/livez`. 0.0.0.0 is all addresses of both families, `0` or nothing nowhere [default: port 10256 of all addresses,
    /// IPv4 and IPv6; nowhere with --capture bind].
    #[arg(long, value_name = "ADDRESS", value_parser = bind_address::<HEALTHZ_PORT>)]
    pub healthz_bind_address: Option<BindAddress>,
    /// The port of --healthz-bind-address, if that has none. 0 for nowhere.
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Where metrics are served, as `/metrics`, the status page, `/healthz`, `/proxyMode` and `/configz`. 0.0.0.0 is all
    /// addresses of both families, `0` or nothing nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249",
          value_parser = bind_address::<METRICS_PORT>)]
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
    /// Where commands such as `sluice services` are answered. Only root, and the user that the agent runs as, may ask. Empty or 0 for nowhere
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

/// Parses an address; the error shows an example with the usual port.
fn bind_address<const PORT: u16>(text: &str) -> Result<BindAddress, String> {
    text.parse()
        .map_err(|_| format!("write ADDRESS:PORT, as 0.0.0.0:{PORT} or [::]:{PORT}, or 0 for nowhere"))
}

impl PortArgs {
    /// Where the node's health is served, if anywhere.
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn an_address_that_is_none_is_answered_with_the_port_of_that_flag() {
        for (flag, port) in [("--healthz-bind-address", 10256), ("--metrics-bind-address", 10249)] {
            let said = Cli::try_parse_from(["sluice", "agent", flag, "here"]).unwrap_err().to_string();
            let wanted = format!("write ADDRESS:PORT, as 0.0.0.0:{port} or [::]:{port}, or 0 for nowhere");
            assert!(said.contains(flag) && said.contains(&wanted), "{said}");
        }
    }

    #[test]
    fn the_agents_ports_are_kube_proxys() {
        #[rustfmt::skip]
        let cases = [
            ("",                                                      None,                  Some("127.0.0.1:10249")),
            ("--capture tproxy",                                      Some("port 10256"),    Some("127.0.0.1:10249")),
            ("--healthz-port 7",                                      Some("port 7"),        Some("127.0.0.1:10249")),
            ("--capture tproxy --healthz-port 0 --metrics-port 0",    None,                  None),
            ("--healthz-bind-address 0.0.0.0 --healthz-port 7",       Some("port 7"),        Some("127.0.0.1:10249")),
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
}
