//! The cost of an idle session or flow: memory of the agent and the kernel beyond that of client and server,
//! descriptors, deadlines; and whether all of it is freed.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use sluice_model::Protocol;
use sluice_testbed::lab::{Host, Lab, PATIENCE, Process};

use crate::agent::{Agent, Source, TPROXY, metrics, value};
use crate::hold::Hold;
use crate::interrupt;
use crate::manifests::{Manifests, service_with, slice};
use crate::table::figure;
use crate::usage::{Held, slabs};

const PORT: u16 = 8080;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The kernel frees some objects late, and rarely updates its per-CPU counters.
const SETTLING: Duration = Duration::from_secs(1);

/// Descriptors that may remain, because an agent reads files and talks to the kernel meanwhile.
const LEEWAY: u64 = 4;

/// The amount of everything.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Number of TCP sessions, if that many fit.
    pub sessions: usize,
    /// Number of UDP flows, if that many fit.
    pub flows: usize,
    /// The idle timeout of flows: longer than opening all of them takes.
    pub udp_idle: Duration,
}

impl Plan {
    /// For results.
    pub const FULL: Self = Self { sessions: 10_000, flows: 5_000, udp_idle: Duration::from_secs(30) };
    /// To check that it works.
    pub const SMOKE: Self = Self { sessions: 50, flows: 50, udp_idle: Duration::from_secs(3) };
}

/// The cost of many sessions or flows.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    protocol: Protocol,
    wanted: usize,
    /// How many there were, with the relay and without.
    count: usize,
    direct_count: usize,
    /// Bytes of the kernel's objects, with the relay and without.
    kernel: u64,
    direct_kernel: u64,
    before: State,
    with: State,
    after: State,
}

/// The resources of an agent.
#[derive(Debug, Clone, Copy)]
struct State {
    held: Held,
    active: f64,
    deadlines: f64,
}

impl State {
    fn of(agent: &Process, node: &Host, protocol: Protocol) -> Result<Self> {
        let metrics = metrics(node)?;
        let active = match protocol {
            Protocol::Udp => "sluice_udp_flows_active",
            _ => "sluice_tcp_active",
        };
        Ok(Self {
            held: Held::by(agent)?,
            active: value(&metrics, active),
            deadlines: value(&metrics, "sluice_deadlines"),
        })
    }

    /// Whether all resources are back at their earlier level, except for memory, which the allocator keeps.
    fn is_back_at(&self, before: &Self) -> bool {
        self.active <= before.active
            && self.held.descriptors <= before.held.descriptors + LEEWAY
            && self.deadlines <= before.deadlines
    }
}

/// Measures both protocols. Calls `say` to report progress.
///
/// # Errors
/// A lab or an agent does not start, resources are not freed, or the run was interrupted.
pub fn run(plan: Plan, mut say: impl FnMut(&str)) -> Result<[Cost; 2]> {
    let mut cost = |protocol, wanted| {
        say(&format!("{protocol}: without a relay"));
        let (direct_count, direct_kernel) = without_relay(protocol, wanted)?;
        say(&format!("{protocol}: through an agent"));
        with_relay(protocol, wanted, plan.udp_idle, (direct_count, direct_kernel))
    };
    Ok([cost(Protocol::Tcp, plan.sessions)?, cost(Protocol::Udp, plan.flows)?])
}

fn lab() -> Result<Lab> {
    Ok(Lab::builder().pods(2).other_pods(0).build()?)
}

/// Opens many. Returns the holder, and the growth of the kernel's memory.
fn hold(from: &Host, protocol: Protocol, to: SocketAddr, wanted: usize) -> Result<(Hold, u64)> {
    interrupt::rest(SETTLING)?;
    let before = slabs()?;
    let hold = Hold::start(from, protocol, to, wanted)?;
    ensure!(hold.count > 0, "nobody answers at {to}: {}", hold.process.lines().join("\n"));
    interrupt::rest(SETTLING)?;
    let kernel = slabs()?.saturating_sub(before);
    Ok((hold, kernel))
}

fn without_relay(protocol: Protocol, wanted: usize) -> Result<(usize, u64)> {
    let lab = lab()?;
    let server = lab.pod(1).serve(PORT)?;
    let (hold, kernel) = hold(lab.pod(0), protocol, (lab.pod(1).v4, server.port).into(), wanted)?;
    Ok((hold.count, kernel))
}

fn with_relay(protocol: Protocol, wanted: usize, udp_idle: Duration, direct: (usize, u64)) -> Result<Cost> {
    let lab = lab()?;
    let server = lab.pod(1).serve(PORT)?;
    let directory = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
    let manifests = Manifests::new(directory.path(), &lab)?;
    let ports = [("TCP", PORT, server.port), ("UDP", PORT, server.port)];
    manifests.put(
        "service",
        &[service_with("held", SERVICE, &ports), slice("held", "held", &ports, &[lab.pod(1).v4])],
    )?;
    let idle = format!("{}s", udp_idle.as_secs());
    // Here, one client has all of them.
    let arguments = [&TPROXY[..], &["--client-share", "100", "--udp-idle-timeout", &idle]].concat();
    let source = Source::Manifests(&manifests);
    let agent = Agent { program: None, arguments: &arguments, source }.start(lab.node())?;
    let to = SocketAddr::from((SERVICE, PORT));
    // Some resources are allocated with the first one and kept.
    let first = lab.pod(0).ask(Protocol::Tcp, to, PATIENCE);
    ensure!(first.by().is_some(), "nobody answers at {to}: {first:?}");
    let state = || State::of(&agent, lab.node(), protocol);
    let before = settled(&state)?;
    let (hold, kernel) = hold(lab.pod(0), protocol, to, wanted)?;
    let with = state()?;
    let count = hold.count;
    ensure!(with.active >= count as f64, "it holds {count}, the agent has {} of them", with.active);
    drop(hold);
    let patience = PATIENCE + 2 * udp_idle;
    let deadline = Instant::now() + patience;
    let after = loop {
        let after = state()?;
        if after.is_back_at(&before) {
            break after;
        }
        if Instant::now() > deadline {
            bail!("{protocol}: not given back within {patience:?}: {after:?}, before: {before:?}");
        }
        interrupt::rest(Duration::from_millis(100))?;
    };
    let (direct_count, direct_kernel) = direct;
    Ok(Cost { protocol, wanted, count, direct_count, kernel, direct_kernel, before, with, after })
}

/// Waits until an agent is idle, and returns its state.
fn settled(state: &impl Fn() -> Result<State>) -> Result<State> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = state()?;
        if now.active == 0.0 {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "it is not idle: {now:?}");
        interrupt::rest(Duration::from_millis(100))?;
    }
}

/// The results as Markdown.
pub fn table(costs: &[Cost]) -> String {
    let mut text = String::from(
        "Bytes for each, beyond what client and server have without a relay:\n\n\
         | | how many | kernel | agent | agent's descriptors | deadlines | in sum for 10,000 |\n|---|---|---|---|---|---|---|\n",
    );
    for cost in costs {
        let each = |bytes: u64, count: usize| bytes as f64 / count.max(1) as f64;
        let kernel = (each(cost.kernel, cost.count) - each(cost.direct_kernel, cost.direct_count)).max(0.0);
        let grown = |of: fn(&State) -> f64| (of(&cost.with) - of(&cost.before)) / cost.count.max(1) as f64;
        let agent = grown(|state| state.held.anonymous as f64);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.2} | {:.2} | {:.1} MB |",
            if cost.protocol == Protocol::Udp { "UDP flow" } else { "idle TCP session" },
            cost.count,
            figure(kernel),
            figure(agent),
            grown(|state| state.held.descriptors as f64),
            grown(|state| state.deadlines),
            (kernel + agent) * 10_000.0 / 1e6,
        );
    }
    text.push_str("\nBefore, with all of them, and after they were closed:\n\n| | resident | descriptors | deadlines |\n|---|---|---|---|\n");
    for cost in costs {
        let of =
            |of: fn(&State) -> String| [cost.before, cost.with, cost.after].each_ref().map(of).join(", ");
        let _ = writeln!(
            text,
            "| {} | {} MB | {} | {} |",
            cost.protocol,
            of(|state| format!("{:.1}", state.held.resident as f64 / 1e6)),
            of(|state| state.held.descriptors.to_string()),
            of(|state| state.deadlines.to_string()),
        );
    }
    for cost in costs.iter().filter(|cost| cost.count < cost.wanted) {
        let _ = writeln!(
            text,
            "\nOf {} {} only {} fit into the descriptors that there are; the sum is extrapolated.",
            cost.wanted,
            if cost.protocol == Protocol::Udp { "flows" } else { "sessions" },
            cost.count
        );
    }
    text
}
