//! The commands that ask a running agent.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use form_urlencoded::Serializer;

use super::api::{ConnectionList, Explanation, Origin, ServiceList, Status};
use super::connections::{MOST, Peer, Sort, note_ended};
use super::output::{self, Output};
use super::socket::DEFAULT_PATH;
use super::watch::{Show, WatchArgs, show};
use super::{client, text};

/// What all of them can be told.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Where the agent answers: its --admin-socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub admin_socket: PathBuf,
    /// Write this instead of a few columns.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
}

/// Arguments of `sluice status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only say, by the exit status, whether it is so: for probes.
    #[arg(long, value_enum, value_name = "STATE", conflicts_with_all = ["output", "watch"])]
    pub expect: Option<Expected>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
    /// How often to ask.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// What a probe asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Expected {
    /// A restart would mend nothing.
    Live,
    /// It serves: everything is known, and has taken effect.
    Ready,
}

/// Arguments of `sluice services`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// Only this Service, with its frontends and endpoints: NAME in any namespace, or NAMESPACE/NAME.
    pub name: Option<ServiceName>,
    /// Only Services of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
    /// How often to ask.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// A Service, as NAME or NAMESPACE/NAME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    namespace: Option<String>,
    name: String,
}

impl FromStr for ServiceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "write NAME or NAMESPACE/NAME";
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        // The characters in names of Kubernetes.
        let is_name = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        };
        if is_name(name) && namespace.is_none_or(is_name) {
            Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
        } else {
            Err(WANTED)
        }
    }
}

/// Arguments of `sluice connections`.
#[derive(Debug, Args)]
pub struct ConnectionsArgs {
    /// Only those to this Service: NAME in any namespace, or NAMESPACE/NAME.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<ServiceName>,
    /// Only those of this client: ADDRESS or ADDRESS:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<Peer>,
    /// Only those to this endpoint: ADDRESS or ADDRESS:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub endpoint: Option<Peer>,
    /// Only those of this protocol.
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp"], ignore_case = true)]
    pub protocol: Option<String>,
    /// In which order.
    #[arg(long, value_enum, value_name = "KEY", default_value_t)]
    pub sort: Sort,
    /// So many of them at the most, the first in that order.
    #[arg(long, value_name = "N", default_value_t = 1_000,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST as u64))]
    pub limit: usize,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
    /// How often to ask.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// Arguments of `sluice explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The address that the packet comes from.
    #[arg(value_name = "CLIENT", value_parser = client_address)]
    pub client: IpAddr,
    /// Where it goes: ADDRESS:PORT, an IPv6 address in brackets; with /udp for UDP.
    #[arg(value_name = "ADDRESS:PORT[/udp]")]
    pub destination: Destination,
    /// Where the client is [default: what its address tells].
    #[arg(long, value_enum, value_name = "WHERE")]
    pub from: Option<Origin>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

fn client_address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "write the client's address alone, without a port, as 10.244.1.9 or fd00::9")
}

/// An address, a port and a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    address: SocketAddr,
    protocol: &'static str,
}

impl FromStr for Destination {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, protocol) = match text.split_once('/') {
            None => (text, "TCP"),
            Some((address, protocol)) if protocol.eq_ignore_ascii_case("tcp") => (address, "TCP"),
            Some((address, protocol)) if protocol.eq_ignore_ascii_case("udp") => (address, "UDP"),
            Some((_, protocol)) if protocol.eq_ignore_ascii_case("sctp") => {
                return Err("Sluice carries TCP and UDP, and leaves SCTP alone");
            }
            Some(_) => return Err("the protocol is /tcp or /udp"),
        };
        let address =
            address.parse().map_err(|_| "write ADDRESS:PORT, as 10.96.0.10:53/udp or [fd00::10]:80")?;
        Ok(Self { address, protocol })
    }
}

/// `sluice status`: the agent's state.
///
/// # Errors
/// There is no answer.
pub async fn status(StatusArgs { expect, ask, watch }: &StatusArgs) -> Result<()> {
    if let Some(expected) = expect {
        let status: Status = client::ask(&ask.admin_socket, "/v1/status").await?;
        return expected.found(&status);
    }
    let still = |status: &mut Status| {
        status.uptime_seconds = 0;
        status.age_seconds = status.age_seconds.map(|_| 0.0);
    };
    let question = || client::ask(&ask.admin_socket, "/v1/status");
    let ways = Show { text: text::status, still, since: |_, _| {}, is_list: false };
    show(async || question().await, watch, ask.output, ways).await
}

impl Expected {
    fn found(self, status: &Status) -> Result<()> {
        let (is_so, name) = match self {
            Self::Live => (status.is_live, "live"),
            Self::Ready => (status.is_ready, "ready"),
        };
        match status.problems.as_slice() {
            _ if is_so => Ok(()),
            [] => bail!("the agent is not {name}: it has begun just now"),
            problems => bail!("the agent is not {name}: {}", problems.join("; ")),
        }
    }
}

/// `sluice services`: Services, their endpoints, and what they carry.
///
/// # Errors
/// There is no answer, or no such Service.
pub async fn services(args: &ServicesArgs) -> Result<()> {
    let mut query = Serializer::new(String::new());
    let asked = args.name.as_ref();
    let namespace = match (asked.and_then(|asked| asked.namespace.as_deref()), args.namespace.as_deref()) {
        (Some(one), Some(other)) if one != other => {
            bail!("{one} and {other} are two namespaces: leave --namespace out")
        }
        (one, other) => one.or(other),
    };
    query.extend_pairs(namespace.map(|namespace| ("namespace", namespace)));
    query.extend_pairs(asked.map(|asked| ("name", asked.name.as_str())));
    let path = format!("/v1/services?{}", query.finish());
    let still = |list: &mut ServiceList| {
        let ports = list.items.iter_mut().flat_map(|service| &mut service.ports);
        for endpoint in ports.flat_map(|port| &mut port.endpoints) {
            endpoint.passed_over_seconds = endpoint.passed_over_seconds.map(|_| 0.0);
        }
    };
    let (text, is_list): (fn(&_, _) -> _, _) = match asked {
        Some(_) => (text::services_in_full, false),
        None => (text::services, true),
    };
    let ask = async || client::ask(&args.ask.admin_socket, &path).await;
    show(ask, &args.watch, args.ask.output, Show { text, still, since: |_, _| {}, is_list }).await
}

/// `sluice connections`: live TCP sessions and UDP flows.
///
/// # Errors
/// There is no answer.
pub async fn connections(args: &ConnectionsArgs) -> Result<()> {
    let ConnectionsArgs { service, client, endpoint, protocol, sort, limit, ask, watch } = args;
    let mut query = Serializer::new(String::new());
    let namespace = service.as_ref().and_then(|service| service.namespace.as_deref());
    query.extend_pairs(namespace.map(|namespace| ("namespace", namespace)));
    query.extend_pairs(service.as_ref().map(|service| ("service", service.name.as_str())));
    query.extend_pairs(client.map(|peer| ("client", peer.said())));
    query.extend_pairs(endpoint.map(|peer| ("endpoint", peer.said())));
    query.extend_pairs(protocol.as_ref().map(|protocol| ("protocol", protocol.to_uppercase())));
    query.extend_pairs(sort.to_possible_value().map(|sort| ("sort", sort.get_name().to_owned())));
    query.append_pair("limit", &limit.to_string());
    let path = format!("/v1/connections?{}", query.finish());
    let still = |list: &mut ConnectionList| {
        for connection in list.items.iter_mut().chain(&mut list.ended) {
            (connection.age_seconds, connection.idle_seconds) = (0.0, None);
        }
    };
    let question = async || client::ask(&ask.admin_socket, &path).await;
    let ways = Show { text: text::connections, still, since: note_ended, is_list: true };
    show(question, watch, ask.output, ways).await
}

/// `sluice explain`: what would happen to a packet.
///
/// # Errors
/// There is no answer.
pub async fn explain(args: &ExplainArgs) -> Result<()> {
    let ExplainArgs { client, destination, from, ask } = args;
    let mut query = Serializer::new(String::new());
    query.append_pair("client", &client.to_string());
    query.append_pair("destination", &destination.address.to_string());
    query.append_pair("protocol", destination.protocol);
    query.extend_pairs(from.map(|origin| {
        let origin = match origin {
            Origin::LocalPod => "localPod",
            Origin::Node => "node",
            Origin::Outside => "outside",
        };
        ("origin", origin)
    }));
    let path = format!("/v1/explain?{}", query.finish());
    let explanation: Explanation = client::ask(&ask.admin_socket, &path).await?;
    output::write(&explanation, ask.output, |is_wide| text::explanation(&explanation, is_wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients() {
        assert_eq!(client_address("fd00::9"), Ok("fd00::9".parse().unwrap()));
        for wrong in ["foo", "1.2.3.4:80", "[fd00::9]", ""] {
            assert!(client_address(wrong).unwrap_err().contains("as 10.244.1.9"), "{wrong}");
        }
    }

    #[test]
    fn destinations() {
        let read = |text: &str| text.parse::<Destination>();
        assert_eq!(read("10.96.0.10:53/udp").unwrap().protocol, "UDP");
        assert_eq!(read("10.96.0.10:53/TCP"), read("10.96.0.10:53"));
        assert_eq!(read("[fd00::10]:80").unwrap().address, "[fd00::10]:80".parse().unwrap());
        for (wrong, complaint) in [
            ("10.96.0.10", "ADDRESS:PORT"),
            ("web:80", "ADDRESS:PORT"),
            ("fd00::10:80", "ADDRESS:PORT"),
            ("10.96.0.10:53/sctp", "SCTP"),
            ("10.96.0.10:53/", "/tcp or /udp"),
        ] {
            assert!(read(wrong).unwrap_err().contains(complaint), "{wrong}");
        }
    }

    #[test]
    fn names_of_services() {
        let read = |text: &str| text.parse::<ServiceName>();
        assert_eq!(read("web").unwrap(), ServiceName { namespace: None, name: "web".into() });
        assert_eq!(read("a/web").unwrap(), ServiceName { namespace: Some("a".into()), name: "web".into() });
        for wrong in ["", "/", "a/", "/web", "a/b/c", "we b", "web?x=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
