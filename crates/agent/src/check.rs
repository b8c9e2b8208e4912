//! `sluice check`: reports what is in the way of `--capture tproxy` on this node, and what `socket` lacks.
//!
//! `gather` first collects facts without changing anything; `judge` draws conclusions from these facts alone.

mod facts;
mod finding;
mod follow;
mod gather;
mod judge;
mod sockets;

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use sluice_kubeapi::apiserver::{self, ConfigError, LookError, Seen};
use tracing::warn;

use facts::NodeObject;
pub use finding::{Finding, Level};
pub(crate) use follow::{InTheWay, follow};

use crate::agent;
use crate::errors;
use crate::socket_args::SocketArgs;
use crate::source_args::ApiserverArgs;

/// How long an apiserver may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `sluice check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// How to say it.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    pub output: Output,
    /// The apiserver that the agent is to have: whether the cluster has this Node, at which addresses, is looked up there.
    #[command(flatten)]
    pub apiserver: ApiserverArgs,
    /// Name of this node that the agent is to use [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Where the agent is to have socket mode's programs.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// How findings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line for each.
    Text,
    /// One object, for programs.
    Json,
}

/// Checks this node and reports the findings. Fails if any of them is a problem.
///
/// # Errors
/// Standard output cannot be written to, or this node has no name.
pub async fn run(args: &CheckArgs) -> Result<ExitCode> {
    let name = agent::node_name(args.hostname_override.as_deref())?;
    let node = look_for_node(args, &name).await;
    let socket = args.socket.clone();
    let look = move || {
        let mut findings = findings(Some((name, node)));
        findings.push(sockets::finding(&socket));
        findings
    };
    let findings = tokio::task::spawn_blocking(look).await?;
    let text = match args.output {
        Output::Text => finding::text(&findings),
        Output::Json => finding::json(&findings),
    };
    errors::print(text.as_bytes())?;
    Ok(if finding::is_ready(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks for the Node at the apiserver that an agent with these arguments would follow.
async fn look_for_node(args: &CheckArgs, name: &str) -> NodeObject {
    let mut config = args.apiserver.config(name);
    config.timing.answer = PATIENCE;
    match apiserver::look(config).await {
        Ok(seen) if seen.has_node => NodeObject::There(addresses_in_ranges(&seen)),
        Ok(_) => NodeObject::Missing,
        Err(LookError::Config(ConfigError::Nothing)) => NodeObject::NobodyToAsk,
        Err(error) => NodeObject::Unknown(error.to_string()),
    }
}

/// The Node's addresses in Service ranges. Addresses of its interfaces do not count: NodeLocal DNSCache has a
/// cluster IP there.
fn addresses_in_ranges(seen: &Seen) -> Vec<(IpAddr, IpNet)> {
    let range_of = |ip: &IpAddr| {
        let range = seen.service_cidrs.iter().find_map(|cidr| cidr.range_of(*ip));
        range.map(|range| (*ip, range))
    };
    seen.node.iter().flat_map(|node| &node.addresses).filter_map(range_of).collect()
}

/// Warns in the log of an address of the Node in a Service range.
pub(crate) fn warn_of_address_in_range(ip: IpAddr, range: IpNet) {
    let Finding { about, what, fix, .. } = judge::address_in_range(ip, range);
    warn!("{about}: {what}. Fix: {fix}");
}

/// All findings about this node. Runs programs, and blocks for a second or two.
fn findings(node: Option<(String, NodeObject)>) -> Vec<Finding> {
    judge::judge(&gather::facts(node))
}
