//! `sluice agent`: serves the Services of this node until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use rustix::system::uname;
use sluice_capture::tproxy;
use sluice_dataplane::Config;
use sluice_kubeapi::apiserver::{ApiserverSource, EventWriter, Health};
use sluice_kubeapi::manifests::{ManifestSource, Watch};
use sluice_model::Change;
use sluice_table::WriterConfig;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::admin::{Admin, Inside, Page};
use crate::at_socket::AtSocketWish;
use crate::capture_trouble::CaptureTrouble;
use crate::cleanup::CleanupArgs;
use crate::cli::AgentArgs;
use crate::controller::{Controller, Feed};
use crate::events::{About, Events, Happening, Kind};
use crate::health::Health as ProxyHealth;
use crate::health_checks::HealthChecks;
use crate::healthz::Healthz;
use crate::listen::{Opening, Place};
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::proxy::{CaptureConfig, Observer, Proxy, ProxyConfig};
use crate::service_metrics::Detail;
use crate::signals::{Signals, Told};
use crate::source_args::SourceArgs;
use crate::{check, cleanup, config, handover, init, logging};

/// How often the agent looks after what runs beside it.
const CHECK: Duration = Duration::from_millis(500);

/// How old the served state may be before it is said: that an apiserver is gone shows within 45 s, and the next
/// one has its chance.
const STALE: Duration = Duration::from_secs(180);

/// Does what is asked for: serves until SIGTERM or SIGINT, or what kube-proxy does with `--write-config-to`, `--cleanup`
/// and `--init-only`.
///
/// # Errors
/// It cannot be done, or not any more: the data plane broke down.
pub async fn run(args: &AgentArgs, logging: &Logging) -> Result<()> {
    if let Some(named) = &args.said.named {
        warn!("{named}");
    }
    if let Some(path) = &args.config.write_config_to {
        config::write(&args.said.effective, path)
    } else if args.cleanup {
        cleanup::run(&CleanupArgs { kube_proxy: false, socket_pins: None, force: false })
    } else if args.init_only {
        init::run(&args.capture)
    } else {
        serve(args, logging).await
    }
}

/// Serves until SIGTERM or SIGINT.
async fn serve(args: &AgentArgs, logging: &Logging) -> Result<()> {
    let (started, started_at) = (Instant::now(), Timestamp::now());
    let node = node_name(args.config.hostname_override.as_deref())?;
    let service_times = args.ports.service_metrics != Detail::Off;
    let dataplane = Config { service_times, ..args.dataplane.config() };
    let Config { workers, descriptors, .. } = dataplane;
    info!(version = env!("CARGO_PKG_VERSION"), node, workers, descriptors, "starting");
    // Before anything is changed on the node: what cannot be followed ends the agent.
    let source = Source::new(&args.source, &node)?;

    let mut file = config::Follower::new(args).await;
    if let Some(score) = args.oom_score_adj {
        init::adjust_oom_score(score);
    }
    let (healthz_port, metrics_port) = own_ports(args)?;
    let mut signals = Signals::new()?;
    let table = WriterConfig {
        passive_health: args.passive_health,
        masquerade_all: args.capture.masquerade_all,
        local_pods: args.capture.local_pods(),
        ..WriterConfig::new(node.as_str())
    };
    let flow_idle =
        tproxy::FlowIdle { any: dataplane.udp_idle, conversation: dataplane.udp_conversation_idle() };
    let (capture, node_ports) = (args.capture.capture(flow_idle)?, args.capture.node_ports()?);
    let is_capturing = matches!(capture, CaptureConfig::Tproxy(_));
    let at_socket = args.capture.at_socket(flow_idle.conversation)?;
    if is_capturing && !matches!(at_socket, AtSocketWish::Wanted(_)) {
        args.capture.socket.remove_leftovers();
    }
    let (events, unwritten) = Events::new();
    let proxy = Proxy::start(ProxyConfig {
        table,
        dataplane,
        capture,
        node_ports,
        at_socket,
        events: events.clone(),
    })?;
    if is_capturing {
        check::warn_of_problems();
    }
    let observer = proxy.observer();
    let controller = Controller::start(proxy).context("cannot start the controller")?;
    let mut following = source.follow(controller.feed(), observer.clone()).await?;
    match following.events() {
        Some(writer) => events.write(unwritten, writer, &node),
        // Nobody is there to be told.
        None => drop(unwritten),
    }
    events.say(starting(args));
    let health =
        ProxyHealth::new(observer.clone(), controller.programming().clone(), following.health().cloned());
    let health_checks = {
        let health = health.clone();
        let listeners = observer.listeners().clone();
        HealthChecks::start(observer.table().clone(), listeners, events.clone(), move || {
            health.verdict().is_ok()
        })
    };
    let healthz = healthz_port.map(|opening| Healthz::start(opening, health.clone()));
    let inside = Arc::new(Inside {
        observer: observer.clone(),
        feed: controller.feed().clone(),
        health: health.clone(),
        health_checks: health_checks.stats().clone(),
        node,
        is_capturing,
        pod_cidrs: args.capture.pod_cidrs(),
        dataplane,
        started,
        started_at,
        is_stopping: AtomicBool::new(false),
    });
    if let Some(opening) = metrics_port {
        let (observer, health_checks) = (observer.clone(), health_checks.stats().clone());
        let configz = config::configz(&args.said.effective).into();
        Metrics {
            observer,
            health,
            health_checks,
            detail: args.ports.service_metrics,
            wanted: args.capture.mode().name(),
            configz,
            started: started_at,
            events: events.clone(),
            logging: args.ports.profiling.then(|| logging.clone()),
            page: Page::new(Arc::clone(&inside), args.ports.status_page),
        }
        .serve(opening);
    }

    let admin = args.admin_socket().map(|path| Admin::start(path, Arc::clone(&inside)));

    let mut grace_period = args.grace_period;
    let mut trouble = CaptureTrouble::default();
    let mut check = tokio::time::interval(CHECK);
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::HangUp => info!("SIGHUP means nothing here: whatever changes is followed anyway"),
                Told::Terminate | Told::Interrupt => break,
            },
            _ = check.tick() => {
                logging.flush();
                following.check_age();
                let failures = observer.capture_stats().map_or(0, |stats| stats.failures);
                if let Some(trouble) = trouble.look(observer.capture_failing_for(), failures) {
                    events.say(trouble);
                }
                health_checks.update(observer.node_port_addresses().to_vec());
                if !controller.is_alive() {
                    bail!("the data plane has broken down");
                }
                let change = match &mut file {
                    Some(file) => file.look().await,
                    None => None,
                };
                if let Some(change) = change
                    && let Some(now) = change.args()
                {
                    grace_period = now.grace_period;
                    logging.set(logging::level(change.cli.verbose, now.v, "info"));
                    if change.flags.iter().any(|flag| flag == "nodeport-addresses") {
                        match now.capture.node_ports() {
                            Ok(node_ports) => controller.feed().set_node_ports(node_ports),
                            Err(reason) => error!("nodePorts stay where they are: {reason}"),
                        }
                    }
                }
            }
        }
    }
    info!(connections = observer.stats().tcp_active, grace = ?grace_period, "stopping");
    inside.set_stopping();
    // Load balancers are to look elsewhere, or to find a successor there.
    drop((healthz, health_checks));
    let deadline = Instant::now() + grace_period;
    let end = async move {
        let mut grace = grace_period;
        if is_capturing {
            let end = handover::wait(&observer, deadline).await;
            grace = end.grace(deadline.saturating_duration_since(Instant::now()));
            let connections = observer.stats().tcp_active;
            info!(connections, ?grace, "no new connections from now on: {end}");
        }
        tokio::task::spawn_blocking(move || controller.stop(grace)).await
    };
    tokio::select! {
        cut_off = end => info!(cut_off = cut_off.unwrap_or(0), "stopped"),
        () = told_to_end(&mut signals) => std::process::exit(1),
    }
    // Changes have been followed until here, and questions answered.
    drop((following, admin));
    Ok(())
}

/// The ports for health and metrics, as far as they can be had so far.
fn own_ports(args: &AgentArgs) -> Result<(Option<Opening>, Option<Opening>)> {
    let open = |place: Option<Place>, what, flag| {
        place.map(|place| Opening::new(place, what, flag, args.ports.bind_address_hard_fail)).transpose()
    };
    let healthz = args.ports.healthz(args.capture.mode());
    let healthz = open(healthz, "health checks of the node", "--healthz-bind-address")?;
    Ok((healthz, open(args.ports.metrics(), "metrics", "--metrics-bind-address")?))
}

/// Returns when a signal asks for the end.
async fn told_to_end(signals: &mut Signals) {
    while signals.next().await == Told::HangUp {}
}

/// Where objects come from. An apiserver is asked already.
enum Source {
    Manifests(ManifestSource),
    Apiserver(ApiserverSource, mpsc::Receiver<Vec<Change>>),
}

/// A source that is being followed.
enum Following {
    Manifests { _watch: Watch },
    Apiserver { source: ApiserverSource, _task: JoinHandle<()>, is_stale: bool },
}

impl Source {
    fn new(args: &SourceArgs, node: &str) -> Result<Self> {
        if !args.manifests.is_empty() {
            return Ok(Self::Manifests(ManifestSource::new(args.manifests.clone())?));
        }
        let (source, batches) = ApiserverSource::start(args.apiserver.config(node))
            .context("cannot follow an apiserver (to serve files, give --manifests PATH)")?;
        Ok(Self::Apiserver(source, batches))
    }

    /// Starts to follow. Manifests are served when it returns, an apiserver once it has told everything.
    async fn follow(self, feed: &Feed, observer: Observer) -> Result<Following> {
        match self {
            Self::Manifests(source) => {
                let watch = feed.follow(source).await.context("cannot follow the manifests")?;
                if observer.frontends() == 0 {
                    warn!("no manifest names a Service with an address: nothing to serve so far");
                }
                say_ready(&observer);
                Ok(Following::Manifests { _watch: watch })
            }
            Self::Apiserver(source, mut batches) => {
                let feed = feed.clone();
                let task = tokio::spawn(async move {
                    let mut is_ready = false;
                    while let Some(changes) = batches.recv().await {
                        // Endpoints do not wait for what the kernel does about frontends.
                        let taken =
                            if is_ready { feed.take(changes).await } else { feed.apply(changes).await };
                        if taken.is_err() {
                            return;
                        }
                        if !std::mem::replace(&mut is_ready, true) {
                            say_ready(&observer);
                        }
                    }
                });
                Ok(Following::Apiserver { source, _task: task, is_stale: false })
            }
        }
    }
}

impl Following {
    fn events(&self) -> Option<EventWriter> {
        match self {
            Self::Manifests { .. } => None,
            Self::Apiserver { source, .. } => Some(source.events()),
        }
    }

    fn health(&self) -> Option<&Arc<Health>> {
        match self {
            Self::Manifests { .. } => None,
            Self::Apiserver { source, .. } => Some(source.health()),
        }
    }

    /// Says, once, that what is served has become old, and that it is not any more.
    fn check_age(&mut self) {
        let Self::Apiserver { source, is_stale, .. } = self else { return };
        let Some(age) = source.health().last_contact() else { return };
        match (age > STALE, *is_stale) {
            (true, false) => {
                warn!(?age, "nothing heard of the apiserver: what is served may have changed since")
            }
            (false, true) => info!("heard of the apiserver again"),
            _ => {}
        }
        *is_stale = age > STALE;
    }
}

/// What kube-proxy says of its start.
fn starting(args: &AgentArgs) -> Happening {
    let mode = args.capture.mode().name();
    let note = format!("Sluice {} serves this node (--capture {mode})", env!("CARGO_PKG_VERSION"));
    Happening { about: About::Node, kind: Kind::Normal, reason: "Starting", action: "StartSluice", note }
}

fn say_ready(observer: &Observer) {
    info!(frontends = observer.frontends(), unserved = observer.unserved(), "ready");
}

/// The name of this node: as given, or the host's, in the form that kube-proxy and kubelet use
/// (`GetHostname`: trimmed and in lower case).
pub(crate) fn node_name(given: Option<&str>) -> Result<String> {
    let host = uname();
    // As with kube-proxy, an empty one is as good as none.
    let name = match given.filter(|name| !name.is_empty()) {
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
