//! `sluice agent`: serves the Services of this node until it is told to stop.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::system::uname;
use sluice_dataplane::Config;
use sluice_kubeapi::manifests::ManifestSource;
use sluice_table::WriterConfig;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::cli::{AgentArgs, CaptureMode};
use crate::controller::Controller;
use crate::proxy::{Proxy, ProxyConfig};

/// How often the agent looks whether its threads are alive.
const CHECK: Duration = Duration::from_millis(500);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or its data plane broke down.
pub async fn run(args: &AgentArgs) -> Result<()> {
    let CaptureMode::Bind = args.capture;
    let source = ManifestSource::new(args.manifests.clone())?;
    let node = node_name(args.hostname_override.as_deref())?;
    let dataplane = args.dataplane.config();
    let Config { workers, descriptors, .. } = dataplane;
    info!(version = env!("CARGO_PKG_VERSION"), node, workers, descriptors, "starting");

    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let config = ProxyConfig { table: WriterConfig::new(node), dataplane };
    let proxy = Proxy::start(config).context("cannot start the data plane")?;
    let observer = proxy.observer();
    let controller = Controller::start(proxy, source).context("cannot start the controller")?;
    let frontends = observer.frontends();
    if frontends == 0 {
        warn!("no manifest names a Service with an address: nothing to serve so far");
    }
    info!(frontends, "ready");

    let mut check = tokio::time::interval(CHECK);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = check.tick() => if !controller.is_alive() { bail!("the data plane has broken down") },
        }
    }
    info!(connections = observer.stats().tcp_active, grace = ?args.grace_period, "stopping");
    let grace = args.grace_period;
    let stopping = tokio::task::spawn_blocking(move || controller.stop(grace));
    tokio::select! {
        cut_off = stopping => info!(cut_off = cut_off.unwrap_or(0), "stopped"),
        _ = terminate.recv() => std::process::exit(1),
        _ = interrupt.recv() => std::process::exit(1),
    }
    Ok(())
}

/// The name of this node: as given, or the host's, in the form that kube-proxy and kubelet use
/// (`GetHostname`: trimmed and in lower case).
fn node_name(given: Option<&str>) -> Result<String> {
    let host = uname();
    let name = match given {
        Some(name) => name.to_owned(),
        None => host.nodename().to_string_lossy().into_owned(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("this node has no name; give it one with --hostname-override");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_name_is_trimmed_and_in_lower_case() {
        assert_eq!(node_name(Some(" Node-1 ")).unwrap(), "node-1");
        assert!(node_name(Some(" ")).is_err());
        assert!(!node_name(None).unwrap().is_empty());
    }
}
