//! `sluice agent`: serves the Services of this node until it is told to stop.

mod source;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustix::system::uname;
use sluice_capture::tproxy;
use sluice_dataplane::Config;
use sluice_table::WriterConfig;
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use self::source::{Following, Source};
use crate::admin::{Admin, Inside, Page};
use crate::capture_trouble::CaptureTrouble;
use crate::cleanup::CleanupArgs;
use crate::cli::AgentArgs;
use crate::controller::Controller;
use crate::events::{About, Events, Happening, Kind};
use crate::health::Health;
use crate::health_checks::HealthChecks;
use crate::healthz::{Healthz, Probes};
use crate::heap::Heap;
use crate::listen::{Opening, Place};
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::proxy::{CaptureConfig, Observer, Proxy, ProxyConfig};
use crate::recall::{Predecessor, Recall};
use crate::service_metrics::Detail;
use crate::signals::{Signals, Told};
use crate::{check, cleanup, config, handover, init, logging};

/// How often the agent checks on the tasks that run beside it.
const CHECK: Duration = Duration::from_millis(500);

/// Runs `sluice agent`: serves until SIGTERM or SIGINT, or does what kube-proxy does with `--write-config-to`,
/// `--cleanup` and `--init-only`.
///
/// # Errors
/// It cannot be done, or the data plane broke down.
pub async fn run(args: &AgentArgs, logging: &Logging) -> Result<()> {
    args.said.notes.iter().for_each(|note| warn!("{note}"));
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
    let mut serving = Serving::start(args, logging).await?;
    serving.until_told_to_end().await?;
    serving.stop().await
}

/// A serving agent, and the tasks that run beside it.
struct Serving<'a> {
    logging: &'a Logging,
    signals: Signals,
    file: Option<config::Follower>,
    /// What `/configz` answers.
    configz: Arc<ArcSwap<String>>,
    grace_period: Duration,
    controller: Controller,
    observer: Observer,
    following: Following,
    events: Events,
    trouble: CaptureTrouble,
    heap: Heap,
    health_checks: HealthChecks,
    healthz: Option<Healthz>,
    inside: Arc<Inside>,
    admin: Option<Admin>,
    /// Answers a successor's questions until this agent ends.
    _recall: Option<Recall>,
}

impl<'a> Serving<'a> {
    /// Starts to serve, and to answer questions about it.
    async fn start(args: &AgentArgs, logging: &'a Logging) -> Result<Self> {
        let (started, started_at) = (Instant::now(), Timestamp::now());
        let node = node_name(args.config.hostname_override.as_deref())?;
        let service_times = args.ports.service_metrics != Detail::Off;
        let dataplane = Config { service_times, ..args.dataplane.config() };
        let Config { workers, descriptors, .. } = dataplane;
        info!(version = env!("CARGO_PKG_VERSION"), node, workers, descriptors, "starting");
        // Before anything is changed on the node: a source that cannot be followed ends the agent.
        let source = Source::new(&args.source, &node, args.capture.asks_for_pods())?;

        let file = config::Follower::new(args);
        if let Some(score) = args.oom_score_adj {
            init::adjust_oom_score(score);
        }
        let (healthz_port, metrics_port) = own_ports(args)?;
        let mut signals = Signals::new()?;
        let until_started = EndAtOnce::when_told_to(logging.clone())?;
        let (events, unwritten) = Events::new();
        let mut proxy = proxy_config(args, &node, dataplane, events.clone())?;
        let is_capturing = matches!(proxy.capture, CaptureConfig::Tproxy(_));
        let asked = if is_capturing { Predecessor::ask().await } else { None };
        let (predecessor, recalled) = asked.unzip();
        proxy.recalled = recalled;
        let proxy = Proxy::start(proxy)?;
        drop(until_started);
        let observer = proxy.observer();
        let recall = is_capturing.then(|| Recall::start(&observer, predecessor));
        // Whoever starts an agent may never have run `check`.
        let in_the_way =
            if is_capturing { check::follow(observer.clone()) } else { check::InTheWay::default() };
        let controller = Controller::start(proxy).context("cannot start the controller")?;
        let following = tokio::select! {
            following = source.follow(controller.feed(), observer.clone()) => following?,
            told = told_to_end(&mut signals) => end_at_once(told, logging),
        };
        match following.events() {
            Some(writer) => events.write(unwritten, writer, &node),
            // There is no apiserver to write Events to.
            None => drop(unwritten),
        }
        events.say(starting(args));
        let health =
            Health::new(observer.clone(), controller.programming().clone(), following.health().cloned());
        let health_checks = {
            let health = health.clone();
            let listeners = observer.listeners().clone();
            HealthChecks::start(observer.table().clone(), listeners, events.clone(), move || {
                health.verdict().is_ok()
            })
        };
        let probes = Probes::default();
        let healthz = healthz_port.map(|opening| Healthz::start(opening, health.clone(), probes.clone()));
        let inside = Arc::new(Inside {
            observer: observer.clone(),
            feed: controller.feed().clone(),
            health: health.clone(),
            health_checks: health_checks.stats().clone(),
            node,
            is_capturing,
            in_the_way: in_the_way.clone(),
            pod_addresses: args.capture.pod_addresses(),
            dataplane,
            started,
            started_at,
            is_stopping: AtomicBool::new(false),
        });
        let configz = Arc::new(ArcSwap::from_pointee(config::configz(&args.said.effective)));
        if let Some(opening) = metrics_port {
            Metrics {
                observer: observer.clone(),
                health,
                health_checks: health_checks.stats().clone(),
                detail: args.ports.service_metrics,
                wanted: args.capture.mode().name(),
                configz: Arc::clone(&configz),
                started: started_at,
                events: events.clone(),
                probes,
                in_the_way,
                lines: logging.clone(),
                logging: args.ports.profiling.then(|| logging.clone()),
                page: Page::new(Arc::clone(&inside), args.ports.status_page),
            }
            .serve(opening);
        }
        let admin = args.admin_socket().map(|path| Admin::start(path, Arc::clone(&inside)));
        Ok(Self {
            logging,
            signals,
            file,
            configz,
            grace_period: args.grace_period,
            controller,
            observer,
            following,
            events,
            trouble: CaptureTrouble::default(),
            heap: Heap::new(started),
            health_checks,
            healthz,
            inside,
            admin,
            _recall: recall,
        })
    }

    /// Checks on the tasks that run beside it until a signal tells the agent to end.
    async fn until_told_to_end(&mut self) -> Result<()> {
        let mut check = tokio::time::interval(CHECK);
        loop {
            tokio::select! {
                told = self.signals.next() => match told {
                    Told::HangUp => info!("SIGHUP means nothing here: whatever changes is followed anyway"),
                    Told::Terminate | Told::Interrupt => return Ok(()),
                },
                _ = check.tick() => self.look_after()?,
                Some(change) = changed(&mut self.file) => self.adopt(&change).await,
            }
        }
    }

    fn look_after(&mut self) -> Result<()> {
        self.logging.flush();
        self.following.check_age();
        self.observer.end_recall_if_due();
        let failures = self.observer.capture_stats().map_or(0, |stats| stats.failures);
        if let Some(trouble) = self.trouble.look(self.observer.capture_failing_for(), failures) {
            self.events.say(trouble);
        }
        self.health_checks.update(self.observer.health_check_addresses().to_vec());
        let (changes, stats) = (self.controller.programming().numbers(), self.observer.stats());
        let changes = changes.services.total + changes.endpoints.total;
        if self.heap.is_due(changes, stats.tcp_active + stats.udp_flows_active, Instant::now()) {
            tokio::task::spawn_blocking(sluice_sys::memory::give_back);
        }
        if !self.controller.is_alive() {
            bail!("the data plane has broken down");
        }
        if let Some(file) = &mut self.file {
            file.look();
        }
        Ok(())
    }

    /// Applies the changed settings that need no restart: all of them, or none if one cannot be applied.
    async fn adopt(&mut self, change: &config::Change) {
        let (Some(now), Some(file)) = (change.args(), &mut self.file) else { return };
        if change.has("nodeport-addresses")
            && let Err(reason) = self.controller.feed().set_node_ports(now.capture.node_ports()).await
        {
            error!(
                "the new configuration is not used, the old one stays in force: --nodeport-addresses: {reason}"
            );
            return;
        }
        self.grace_period = now.grace_period;
        if change.has("v") {
            self.logging.set(logging::level(change.cli.verbose, now.v, "info"));
        }
        file.adopt(change);
        self.configz.store(Arc::new(config::configz(file.running())));
    }

    /// Goes on serving until another agent takes new connections, no connection is open or the grace period is
    /// over. Open connections get the rest of the grace period. Another signal ends the agent at once.
    async fn stop(self) -> Result<()> {
        let Self { mut signals, grace_period, controller, observer, following, inside, admin, .. } = self;
        info!(connections = observer.stats().tcp_active, grace = ?grace_period, "stopping");
        inside.set_stopping();
        // Load balancers are to use another node, or this one once a successor answers there.
        drop((self.healthz, self.health_checks));
        let deadline = Instant::now() + grace_period;
        let end = async move {
            let mut grace = grace_period;
            if inside.is_capturing {
                let end = handover::wait(&observer, deadline).await;
                grace = end.grace(deadline.saturating_duration_since(Instant::now()));
                let connections = observer.stats().tcp_active;
                info!(connections, within = ?grace, "no new connections from now on: {end}");
            }
            tokio::task::spawn_blocking(move || controller.stop(grace)).await
        };
        tokio::select! {
            cut_off = end => info!(cut_off = cut_off.unwrap_or(0), "stopped"),
            _ = told_to_end(&mut signals) => std::process::exit(1),
        }
        // Until here, changes were followed and questions answered.
        drop((following, admin));
        Ok(())
    }
}

/// Ends the process on a signal, until it is dropped. Used while an agent starts, which may have to wait for
/// other programs.
struct EndAtOnce(AbortHandle);

impl EndAtOnce {
    fn when_told_to(logging: Logging) -> Result<Self> {
        let mut signals = Signals::new()?;
        // Not on the thread that waits for programs.
        let task = tokio::spawn(async move {
            let told = told_to_end(&mut signals).await;
            end_at_once(told, &logging)
        });
        Ok(Self(task.abort_handle()))
    }
}

impl Drop for EndAtOnce {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends a process that is still starting. Nothing relies on it yet. The next agent takes over what it has half
/// written to the kernel, as after a kill.
fn end_at_once(told: Told, logging: &Logging) -> ! {
    warn!("{told} while it starts: it ends at once");
    logging.finish();
    std::process::exit(0)
}

/// The proxy's configuration.
fn proxy_config(args: &AgentArgs, node: &str, dataplane: Config, events: Events) -> Result<ProxyConfig> {
    let table = WriterConfig {
        passive_health: args.passive_health,
        masquerade_all: args.capture.masquerade_all,
        local_pods: args.capture.local_pods(),
        ..WriterConfig::new(node)
    };
    let flow_idle =
        tproxy::FlowIdle { any: dataplane.udp_idle, conversation: dataplane.udp_conversation_idle() };
    Ok(ProxyConfig {
        table,
        capture: args.capture.capture(flow_idle)?,
        node_ports: args.capture.node_ports(),
        at_socket: args.capture.at_socket(flow_idle.conversation)?,
        leftovers: args.capture.leftovers(),
        recalled: None,
        dataplane,
        events,
    })
}

/// Opens the ports for health and metrics, as far as they are free now.
fn own_ports(args: &AgentArgs) -> Result<(Option<Opening>, Option<Opening>)> {
    let open = |place: Option<Place>, what, flag| {
        place.map(|place| Opening::new(place, what, flag, args.ports.bind_address_hard_fail)).transpose()
    };
    let healthz = args.ports.healthz(args.capture.mode());
    let healthz = open(healthz, "health checks of the node", "--healthz-bind-address")?;
    Ok((healthz, open(args.ports.metrics(), "metrics", "--metrics-bind-address")?))
}

/// Waits for the next change of the configuration file. Never returns if no file is followed.
async fn changed(file: &mut Option<config::Follower>) -> Option<config::Change> {
    match file {
        Some(file) => file.seen().await,
        None => pending().await,
    }
}

/// Waits for a signal that tells the agent to end, and returns it.
async fn told_to_end(signals: &mut Signals) -> Told {
    loop {
        match signals.next().await {
            Told::HangUp => {}
            told => return told,
        }
    }
}

/// The Event that kube-proxy writes when it starts.
fn starting(args: &AgentArgs) -> Happening {
    let mode = args.capture.mode().name();
    let note = format!("Sluice {} serves this node (--capture {mode})", env!("CARGO_PKG_VERSION"));
    Happening { about: About::Node, kind: Kind::Normal, reason: "Starting", action: "StartSluice", note }
}

/// The name of this node: the given one or the host's, in the form that kube-proxy and kubelet use
/// (`GetHostname`: trimmed and in lower case).
pub(crate) fn node_name(given: Option<&str>) -> Result<String> {
    let host = uname();
    // As in kube-proxy, an empty name counts as none.
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
