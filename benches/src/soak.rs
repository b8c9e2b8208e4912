//! An agent under all kinds of load at once, for a long time: mixed load, changing and dying endpoints,
//! Services that come and go, floods, and agents that take over from each other. All errors are counted, and
//! classified by whether a client has to expect them. The agent's resources are sampled repeatedly while
//! there is no flood.
//!
//! The time has five parts. In the first one, agents take over from each other; the last agent lives through
//! the other four. Each part has its floods at the beginning, then some time to recover, then samples.
//! Resources must be the same in the last part as in the second one, and when all load has ended, everything
//! must be freed.

mod agents;
mod cluster;
mod ledger;
mod load;
mod samples;
mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use load::Kind;

use agents::Agents;
use cluster::Cluster;
use ledger::{Account, Cause, Ledger, Service};
use load::Load;
use samples::{Course, Sample, Series, sample};
use trouble::Trouble;

use crate::agent::{SOCKET, TPROXY};
use crate::flood::Flood;
use crate::interrupt;
use crate::sockets::Sockets;
use crate::table::figure;

const FIFTHS: u32 = 5;

/// Number of clients in the flood of connections.
const CLIENTS: usize = 4;

/// How long freeing resources may take after the end of the load, besides the timeout of flows.
const WIND_DOWN: Duration = Duration::from_secs(30);

/// Number of descriptors that an idle agent may have open in excess of those at its start.
const LEEWAY: f64 = 8.0;

/// The durations.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Each of the five parts.
    pub fifth: Duration,
    /// Each flood.
    pub flood: Duration,
    /// From the end of the floods to the first sample.
    pub settling: Duration,
    /// The interval of samples.
    pub look: Duration,
    /// The minimum number of hand-overs.
    pub hand_overs: usize,
    /// The idle timeout of UDP flows; four times that for conversations.
    pub udp_idle: Duration,
    /// Number of endpoints that refuse.
    pub refusing: usize,
    /// Whether there is enough time to judge growth.
    pub judges: bool,
}

impl Plan {
    /// The minimum duration in minutes for meaningful results.
    pub const MINUTES: u64 = 2;

    /// A plan for this many minutes.
    pub fn of_minutes(minutes: u64) -> Self {
        let fifth = Duration::from_secs(minutes * 60) / FIFTHS;
        Self {
            fifth,
            flood: (fifth / 6).min(Duration::from_secs(15)),
            // Flows that are not conversations have ended by then.
            settling: Duration::from_secs(8),
            look: Duration::from_millis(500),
            hand_overs: 3,
            udp_idle: Duration::from_secs(4),
            refusing: 200,
            judges: true,
        }
    }

    /// To check that it works.
    pub const SMOKE: Self = Self {
        fifth: Duration::from_millis(500),
        flood: Duration::from_millis(100),
        settling: Duration::from_millis(100),
        look: Duration::from_millis(100),
        hand_overs: 1,
        udp_idle: Duration::from_secs(1),
        refusing: 10,
        judges: false,
    };
}

/// The agents' capture mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Socket mode.
    Socket,
    /// All connections are relayed.
    Tproxy,
}

/// The results.
#[derive(Debug)]
pub struct Report {
    account: Account,
    courses: Vec<Course>,
    /// How often each thing was done to the cluster.
    events: Vec<(Cause, usize)>,
    floods: [u64; 2],
    said: BTreeMap<String, usize>,
    /// Resources that were not freed.
    kept: Vec<String>,
    judges: bool,
}

/// Soaks. Calls `say` to report progress.
///
/// # Errors
/// No lab can be created, an agent does not start or has ended, or the run was interrupted.
pub fn run(plan: Plan, mode: Mode, say: impl FnMut(&str)) -> Result<Report> {
    match mode {
        Mode::Tproxy => run_with(plan, &TPROXY.map(str::to_owned), say),
        Mode::Socket => {
            let directory = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
            let sockets = Sockets::new(directory.path())?;
            let mut arguments: Vec<String> = SOCKET.map(str::to_owned).into();
            arguments.extend(sockets.arguments());
            // All threads and processes but the agents are started in the cgroup.
            sockets.within(|| run_with(plan, &arguments, say))
        }
    }
}

fn run_with(plan: Plan, arguments: &[String], mut say: impl FnMut(&str)) -> Result<Report> {
    let cluster = Cluster::new(plan.refusing)?;
    let mut agents = Agents::start(cluster.lab.node(), cluster.kubeconfig(), plan.udp_idle, arguments)?;
    let idle = sample(agents.current(), cluster.lab.node())?;
    let ledger = Arc::new(Ledger::new());
    let (is_over, failed) = (AtomicBool::new(false), Mutex::new(None));
    let mut floods = [0; 2];
    let trouble = Trouble { cluster: &cluster, ledger: &ledger, is_over: &is_over, failed: &failed };
    let fifths = std::thread::scope(|scope| {
        scope.spawn(|| trouble.kill_endpoints());
        let soaked = trouble::await_mortals(&cluster).and_then(|()| {
            scope.spawn(|| trouble.change_endpoints());
            scope.spawn(|| trouble.change_services());
            let _loads = loads(&cluster, &ledger)?;
            let check = || match failed.lock().ok().and_then(|mut failed| failed.take()) {
                Some(error) => Err(error),
                None => interrupt::check(),
            };
            soak(&plan, &cluster, &mut agents, &ledger, &mut floods, &check, &mut say)
        });
        is_over.store(true, Ordering::Relaxed);
        soaked
    })?;
    say("the load has ended");
    let kept = wind_down(&plan, &cluster, &agents, &idle)?;
    let causes = [Cause::HandOver, Cause::Death, Cause::Change];
    Ok(Report {
        account: ledger.account(),
        courses: Series::ALL.map(|series| Course::of(series, &fifths)).into(),
        events: causes.map(|cause| (cause, ledger.count(cause))).into(),
        floods,
        said: agents.said(),
        kept,
        judges: plan.judges,
    })
}

/// All clients.
fn loads(cluster: &Cluster, ledger: &Arc<Ledger>) -> Result<Vec<Load>> {
    let (pod, node, outside) = (cluster.lab.pod(0), cluster.lab.node(), cluster.lab.outside());
    let services = [
        (Service::Steady, cluster.steady()),
        (Service::Mortal, cluster.mortal()),
        (Service::Changing, cluster.changing()),
    ];
    let node_port = vec![(Service::Steady, cluster.steady_node_port())];
    let mut loads = Vec::new();
    for kind in Kind::ALL {
        loads.push(Load::start(pod, kind, services.to_vec(), ledger)?);
    }
    for kind in [Kind::Short, Kind::KeepAlive, Kind::Question] {
        loads.push(Load::start(node, kind, services.to_vec(), ledger)?);
        loads.push(Load::start(outside, kind, node_port.clone(), ledger)?);
    }
    // These are always open, so each has one Service; the others use one Service after the other.
    for service in services {
        loads.push(Load::start(pod, Kind::KeepAlive, vec![service], ledger)?);
        loads.push(Load::start(pod, Kind::Conversation, vec![service], ledger)?);
    }
    Ok(loads)
}

/// The five parts. Returns the samples of each.
fn soak(
    plan: &Plan,
    cluster: &Cluster,
    agents: &mut Agents,
    ledger: &Ledger,
    floods: &mut [u64; 2],
    check: &dyn Fn() -> Result<()>,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Vec<Sample>>> {
    let began = Instant::now();
    let mut fifths = Vec::new();
    for fifth in 1..=FIFTHS {
        let end = began + plan.fifth * fifth;
        if fifth == 1 {
            let until = end.checked_sub(plan.flood * 2 + plan.settling).unwrap_or(began);
            let mut count = 0;
            while count < plan.hand_overs || Instant::now() < until {
                agents.hand_over(ledger)?;
                count += 1;
                check()?;
                say(&format!("{:>4} s  an agent has taken over", began.elapsed().as_secs()));
                interrupt::rest(plan.look)?;
            }
        }
        let flooded = [
            flood(Cause::Connects, ledger, plan.flood, || {
                Flood::connects(cluster.noisy_client(), cluster.refusing(), CLIENTS)
            })?,
            flood(Cause::Datagrams, ledger, plan.flood, || {
                Flood::datagrams(cluster.noisy_client(), cluster.noisy())
            })?,
        ];
        floods.iter_mut().zip(flooded).for_each(|(sum, more)| *sum += more);
        interrupt::rest(plan.settling)?;
        let mut samples = Vec::new();
        while samples.is_empty() || Instant::now() < end {
            check()?;
            samples.push(sample(agents.current(), cluster.lab.node())?);
            interrupt::rest(plan.look)?;
        }
        let unexplained = ledger.account().unexplained.len();
        say(&format!(
            "{:>4} s  part {fifth} is over: floods of {} connections and {} datagrams, {unexplained} unexplained errors so far",
            began.elapsed().as_secs(),
            figure(flooded[0] as f64),
            figure(flooded[1] as f64),
        ));
        fifths.push(samples);
    }
    Ok(fifths)
}

fn flood(
    cause: Cause,
    ledger: &Ledger,
    time: Duration,
    start: impl FnOnce() -> Result<Flood>,
) -> Result<u64> {
    let _ongoing = ledger.begin(cause);
    let flood = start()?;
    interrupt::rest(time)?;
    Ok(flood.done())
}

/// Waits until an agent without load has no more resources than one had before. Returns those that it keeps.
fn wind_down(plan: &Plan, cluster: &Cluster, agents: &Agents, idle: &Sample) -> Result<Vec<String>> {
    let deadline = Instant::now() + WIND_DOWN + 4 * plan.udp_idle;
    let wanted = [
        (Series::Sessions, 0.0),
        (Series::Flows, 0.0),
        (Series::Deadlines, 0.0),
        (Series::Descriptors, LEEWAY),
        (Series::Threads, 0.0),
        (Series::Elements, 0.0),
    ];
    loop {
        let now = sample(agents.current(), cluster.lab.node())?;
        let of = |sample: &Sample, series| sample.get(&series).copied().unwrap_or(0.0);
        let kept: Vec<String> = wanted
            .iter()
            .filter(|(series, leeway)| of(&now, *series) > of(idle, *series) + leeway)
            .map(|(series, _)| {
                format!("{series:?}: {} without load, {} before", of(&now, *series), of(idle, *series))
            })
            .collect();
        if kept.is_empty() || Instant::now() > deadline {
            return Ok(kept);
        }
        interrupt::rest(plan.look)?;
    }
}

impl Report {
    /// Whether all is well.
    ///
    /// # Errors
    /// What is not.
    pub fn verdict(&self) -> Result<()> {
        let mut wrong = Vec::new();
        let unexplained = self.account.unexplained.len() as u64 + self.account.more;
        if unexplained > 0 {
            wrong.push(format!("{unexplained} unexplained errors"));
        }
        let growing = self.courses.iter().filter(|course| course.grows).count();
        if self.judges && growing > 0 {
            wrong.push(format!("{growing} things grow"));
        }
        if !self.kept.is_empty() {
            wrong.push(format!("not given back: {}", self.kept.join("; ")));
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join(", "));
        }
        Ok(())
    }
}

/// Number of unexplained errors and warnings that are shown.
const SHOWN: usize = 30;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes = Cause::EXPLAINING.map(Cause::name).join(" | ");
        writeln!(f, "| | answered | {causes} | unexplained |\n|---|---|---|---|---|---|")?;
        for row in &self.account.rows {
            let explained = row.explained.map(|count| count.to_string()).join(" | ");
            let (done, unexplained) = (figure(row.done as f64), row.unexplained);
            writeln!(f, "| {} | {done} | {explained} | {unexplained} |", row.kind.name())?;
        }
        writeln!(f, "\nDone meanwhile:\n")?;
        for (cause, count) in &self.events {
            writeln!(f, "* {}: {count} times", cause.name())?;
        }
        let [connects, datagrams] = self.floods.map(|count| figure(count as f64));
        writeln!(f, "* floods: {connects} refused connections, {datagrams} datagrams from a new port each")?;
        writeln!(f, "\nMedians of what the agent had in each fifth of the time, while no flood was on:\n")?;
        writeln!(f, "| | 1 | 2 | 3 | 4 | 5 | from 2 to 5 |\n|---|---|---|---|---|---|---|")?;
        for course in &self.courses {
            writeln!(f, "{course}")?;
        }
        for line in self.account.unexplained.iter().take(SHOWN) {
            writeln!(f, "\nunexplained, {line}")?;
        }
        for kept in &self.kept {
            writeln!(f, "\nnot given back, {kept}")?;
        }
        for (text, count) in self.said.iter().take(SHOWN) {
            writeln!(f, "\nsaid {count} times: {text}")?;
        }
        Ok(())
    }
}
