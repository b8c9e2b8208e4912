//! The agent on a lab's node: its command line, and its metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_testbed::lab::{Host, PATIENCE, Process};

use crate::itself;
use crate::manifests::Manifests;

/// The address of its metrics, in the node's network namespace.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// Arguments for relay mode on a node.
pub const TPROXY: [&str; 4] = ["--capture", "tproxy", "--cluster-cidr", "10.244.0.0/16"];

/// Arguments for socket mode on a node. Those that select the sockets have to be added.
pub const SOCKET: [&str; 4] = ["--capture", "socket", "--cluster-cidr", "10.244.0.0/16"];

/// How to start an agent.
#[derive(Debug, Clone, Copy)]
pub struct Agent<'a> {
    /// Another build than this program's, if any.
    pub program: Option<&'a Path>,
    /// Arguments besides those that all agents here have.
    pub arguments: &'a [&'a str],
    /// The source of its objects.
    pub source: Source<'a>,
}

/// Where an agent gets Services and endpoints from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Files.
    Manifests(&'a Manifests),
    /// The apiserver of a kubeconfig.
    Kubeconfig(&'a Path),
}

impl Agent<'_> {
    /// Starts an agent, and waits until it is ready.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn start(self, node: &Host) -> Result<Process> {
        let mut command = match self.program {
            Some(path) => Command::new(path),
            None => itself::command()?,
        };
        command.arg("agent").args(["--hostname-override", "node"]);
        match self.source {
            Source::Manifests(manifests) => command.arg("--manifests").arg(manifests.path()),
            Source::Kubeconfig(path) => command.arg("--kubeconfig").arg(path),
        };
        command
            .args(["--metrics-bind-address", &METRICS.to_string(), "--admin-socket", "0"])
            .args(self.arguments)
            .env_remove("RUST_LOG");
        let agent = node.spawn(&command)?;
        agent.wait_for("ready frontends", PATIENCE)?;
        Ok(agent)
    }
}

/// The values of an agent's `/metrics`, by name.
///
/// # Errors
/// It does not answer.
pub fn metrics(node: &Host) -> Result<BTreeMap<String, f64>> {
    let mut stream = node.ns.run(|| TcpStream::connect_timeout(&METRICS, PATIENCE)).context("metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("metrics")?;
    ensure!(text.starts_with("HTTP/1.1 200"), "metrics: {text}");
    Ok(parse(&text))
}

fn parse(text: &str) -> BTreeMap<String, f64> {
    let values = text.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    values.filter(|(name, _)| name.starts_with("sluice_")).collect()
}

/// A value; 0 if there is none.
pub fn value(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    metrics.get(name).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_name() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE sluice_a counter\nsluice_a_total 7\nsluice_b 1.5\nother 3\n# EOF\n";
        let metrics = parse(text);
        assert_eq!((value(&metrics, "sluice_a_total"), value(&metrics, "sluice_b")), (7.0, 1.5));
        assert_eq!(metrics.len(), 2);
    }
}
