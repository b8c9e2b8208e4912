//! `sluice demo`: the whole way from manifests to bytes, on one machine, without privileges.
//!
//! It runs sample backends, an in-memory apiserver with the manifests of two Services on loopback addresses,
//! the agent's parts, which follow it over HTTP, and clients of the Services. Then one endpoint is added and
//! another one stops, under load.
//! them, the agent's parts in this process following it over HTTP, and clients that drive the Services. Then an endpoint is added and another one stops, under load.

mod load;
mod report;
mod scene;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, getrlimit};
use sluice_kubeapi::apiserver::ApiserverSource;
use sluice_table::WriterConfig;
use tokio::sync::watch;

use crate::cli::DemoArgs;
use crate::controller::Controller;
use crate::errors::Output;
use crate::proxy::{Observer, Proxy, ProxyConfig};
use crate::signals::Signals;
use load::Load;
use report::Report;
use scene::Scene;

/// HTTP requests for each UDP exchange.
const HTTP_PER_UDP: usize = 3;

/// The node's name in the demo.
const NODE: &str = "demo";

/// Backends, clients, proxy, apiserver and all of their connections are in this process.
const DESCRIPTORS: u64 = 128;

/// How long the demo waits for something that takes milliseconds before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the demo.
///
/// # Errors
/// The machine cannot run it, or a request failed, which defeats the demo's purpose.
pub async fn run(args: &DemoArgs) -> Result<()> {
    let descriptors = getrlimit(Resource::Nofile).maximum;
    ensure!(
        descriptors.is_none_or(|limit| limit >= DESCRIPTORS),
        "the demo needs {DESCRIPTORS} open files, and may have {}: raise the limit (ulimit -n)",
        descriptors.unwrap_or_default()
    );
    try_loopback()?;
    let mut signals = Signals::new()?;
    let (_scene, controller) = tokio::select! {
        shown = show(args) => shown?,
        told = signals.next() => bail!("{told} has ended the demo before everything was shown"),
    };
    if !args.once {
        let mut out = Output::new();
        writeln!(out, "\nStill serving: the commands above work, and kubectl can create, edit and delete.")?;
        writeln!(out, "Ctrl-C ends it.")?;
        signals.next().await;
    }
    controller.stop(Duration::from_secs(1));
    Ok(())
}

/// Checks that loopback works: in a new network namespace, its device is down.
///
/// # Errors
/// What to do about it.
fn try_loopback() -> Result<()> {
    let connected = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE));
    connected.map(drop).context(
        "the demo cannot connect to 127.0.0.1: it is to be on the loopback device, and that up (ip link set lo up)",
    )
}

/// Runs the demo up to its end; returns what has to be kept if it stays up.
async fn show(args: &DemoArgs) -> Result<(Scene, Controller)> {
    let mut out = Output::new();
    let mut scene = Scene::set_up().await?;
    let dataplane = args.dataplane.config();
    let config = ProxyConfig::bind(WriterConfig::new(NODE), dataplane);
    let proxy = Proxy::start(config).context("cannot start the data plane")?;
    let observer = proxy.observer();
    let mut report = Report::default();
    let controller = Controller::start(proxy).context("cannot start the controller")?;
    let (_source, mut batches) = ApiserverSource::start(scene.source(NODE))?;
    let feed = controller.feed().clone();
    let (applied, batches_applied) = watch::channel(0);
    tokio::spawn(async move {
        while let Some(changes) = batches.recv().await {
            // It fails only when the demo ends.
            let _ = feed.apply(changes).await;
            applied.send_modify(|batches| *batches += 1);
        }
    });
    // The table has a frontend before it is listened on; an applied batch is in effect.
    let is_served = || *batches_applied.borrow() > 0 && observer.frontends() == 2;
    wait_until(is_served, "both Services are served").await?;
    ensure!(observer.unserved() == 0, "a Service cannot be listened on: the warning above says why");

    write!(out, "Sluice is following an apiserver and serving two Services.")?;
    // With --once, everything is gone before anybody could try it.
    if args.once {
        writeln!(out)?;
    } else {
        writeln!(
            out,
            " Their manifests are in\n{}. Try it from another terminal:\n",
            scene.directory().display()
        )?;
        for command in scene.commands() {
            writeln!(out, "    {command}")?;
        }
    }

    let requests = args.requests.get();
    writeln!(out, "\n1. Traffic to both Services")?;
    let http = round(Load::http(scene.http_frontend()), requests, "HTTP requests").await?;
    let udp =
        round(Load::udp(scene.udp_frontend()), requests.div_ceil(HTTP_PER_UDP), "UDP exchanges").await?;
    report.meet(&observer, &scene);
    writeln!(out, "{}", report.table(&[&http, &udp]))?;

    writeln!(out, "2. The same HTTP traffic while an endpoint joins and another one dies")?;
    let retries_before = observer.stats().tcp_retries;
    let live = change_endpoints(&mut scene, &observer, &mut report, requests, &mut out).await?;
    let retried = observer.stats().tcp_retries - retries_before;
    writeln!(out, "{}", report.table(&[&live]))?;

    sum_up(&[&http, &udp, &live], retried, &mut out)?;
    Ok((scene, controller))
}

/// Sends HTTP requests while an endpoint joins and another one dies.
async fn change_endpoints(
    scene: &mut Scene,
    observer: &Observer,
    report: &mut Report,
    requests: usize,
    out: &mut Output,
) -> Result<load::Outcome> {
    let retries_before = observer.stats().tcp_retries;
    let load = Load::http(scene.http_frontend());
    let bar = progress_bar(requests, "HTTP requests");
    load.start();
    wait_for(&load, &bar, requests / 3).await?;
    let joined = scene.add_http_backend().await?;
    bar.suspend(|| writeln!(out, "   {joined} has joined: the apiserver has its EndpointSlice"))?;
    let served = || load.answers_of(&joined) > 0;
    wait_until(served, "the new endpoint gets connections").await?;
    wait_for(&load, &bar, requests * 2 / 3).await?;
    report.meet(observer, scene);
    let died = scene.stop_http_backend().await;
    let stopped =
        format!("{} has stopped: its EndpointSlice still lists it, connecting to it is refused", died.name);
    bar.suspend(|| writeln!(out, "   {stopped}"))?;
    let retried = || observer.stats().tcp_retries > retries_before;
    wait_until(retried, "a connection is retried on another endpoint").await?;
    scene.forget(&died)?;
    let is_listed = || observer.endpoints().iter().any(|(_, upstream)| upstream.address() == died.address);
    wait_until(|| !is_listed(), "the endpoint is gone from the table").await?;
    bar.suspend(|| writeln!(out, "   {} is gone from its EndpointSlice too", died.name))?;
    wait_for(&load, &bar, requests).await?;
    let live = load.finish().await;
    bar.finish_and_clear();
    Ok(live)
}

/// Prints a summary.
///
/// # Errors
/// A request has failed.
fn sum_up(outcomes: &[&load::Outcome], retried: u64, out: &mut impl Write) -> Result<()> {
    let failures = || outcomes.iter().flat_map(|outcome| &outcome.failures);
    let failed = failures().count();
    let total: usize = outcomes.iter().map(|outcome| outcome.total()).sum();
    writeln!(
        out,
        "{failed} of {total} requests failed; {retried} connects were retried on another endpoint."
    )?;
    for failure in failures().take(5) {
        writeln!(out, "   {failure}")?;
    }
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

/// Sends a number of requests and prints the results.
async fn round(load: Load, requests: usize, what: &'static str) -> Result<load::Outcome> {
    let bar = progress_bar(requests, what);
    load.start();
    wait_for(&load, &bar, requests).await?;
    let outcome = load.finish().await;
    bar.finish_and_clear();
    Ok(outcome)
}

fn progress_bar(requests: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("   {msg} [{bar:40}] {pos}/{len} {per_sec}");
    let bar = ProgressBar::new(requests as u64).with_message(what);
    // The template is a constant; without it, the bar only looks plainer.
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// Waits until a number of requests was answered.
async fn wait_for(load: &Load, bar: &ProgressBar, requests: usize) -> Result<()> {
    let mut last = (0, Instant::now());
    loop {
        let done = load.done.load(Ordering::Relaxed);
        bar.set_position(done as u64);
        if done >= requests {
            return Ok(());
        }
        if done > last.0 {
            last = (done, Instant::now());
        }
        ensure!(last.1.elapsed() < PATIENCE, "no request has been answered for {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_until(condition: impl Fn() -> bool, what: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain until {what}: -v says what went on meanwhile"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
