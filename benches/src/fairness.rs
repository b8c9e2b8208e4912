//! How load on one Service affects the clients of another one: how long small exchanges take without other
//! load and beside each kind of noise; through Sluice and, for comparison, without a proxy and through
//! haproxy.

mod probe;
mod scene;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice_model::Protocol;
use sluice_testbed::lab::Process;

pub use probe::{Answers, Question};
pub use scene::Carrier;
use scene::Scene;

use crate::compare::median;
use crate::flood::Flood;
use crate::hold::Hold;
use crate::table::figure;
use crate::{interrupt, usage};

/// How long an answer through Sluice may take beside noise, as a multiple of the time without noise (99th
/// percentile).
pub const GOAL: f64 = 3.0;

/// Number of clients in the flood of connections.
const CLIENTS: usize = 8;

/// The amount of everything.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How often each is measured.
    pub rounds: usize,
    /// How long each measurement takes.
    pub time: Duration,
    /// The pause between two measurements.
    pub rest: Duration,
    /// Number of bulk connections.
    pub bulk: usize,
    /// Number of endpoints that refuse, at most 254.
    pub refusing: usize,
    /// Number of idle sessions of one pod.
    pub idle: usize,
}

impl Plan {
    /// For results.
    pub const FULL: Self = Self {
        rounds: 3,
        time: Duration::from_secs(3),
        rest: Duration::from_secs(1),
        bulk: 100,
        refusing: 200,
        idle: 9_800,
    };

    /// To check that it works.
    pub const SMOKE: Self = Self {
        rounds: 1,
        time: Duration::from_millis(100),
        rest: Duration::ZERO,
        bulk: 4,
        refusing: 4,
        idle: 20,
    };
}

/// The kind of noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Nothing.
    None,
    /// TCP connections in bulk.
    Bulk,
    /// Connections to a Service whose endpoints all refuse.
    Refused,
    /// Idle sessions of one pod.
    Idle,
    /// Datagrams, each from another port.
    Datagrams,
}

impl Noise {
    /// All kinds, in the order of the table.
    pub const ALL: [Self; 5] = [Self::None, Self::Bulk, Self::Refused, Self::Idle, Self::Datagrams];

    fn title(self, plan: &Plan) -> String {
        match self {
            Self::None => "quiet".into(),
            Self::Bulk => format!("{} connections in bulk", plan.bulk),
            Self::Refused => format!("connections to {} endpoints that refuse", plan.refusing),
            Self::Idle => "idle sessions of one pod".into(),
            Self::Datagrams => "datagrams from many ports of one pod".into(),
        }
    }
}

/// A running noise.
enum Noisy {
    Nobody,
    Flood(Flood, Instant),
    Hold(Hold),
}

impl Noisy {
    fn start(noise: Noise, scene: &Scene, plan: &Plan) -> Result<Self> {
        let (from, to) = (scene.noisy_client(), &scene.addresses);
        let flood = match noise {
            Noise::None => return Ok(Self::Nobody),
            Noise::Idle => return Ok(Self::Hold(Hold::start(from, Protocol::Tcp, to.noisy, plan.idle)?)),
            Noise::Bulk => Flood::bulk(from, to.bulk, plan.bulk),
            Noise::Refused => Flood::connects(from, to.refusing, CLIENTS),
            Noise::Datagrams => Flood::datagrams(from, to.noisy),
        };
        Ok(Self::Flood(flood?, Instant::now()))
    }

    /// The amount of noise: a rate, or a number.
    fn amount(&self) -> f64 {
        match self {
            Self::Nobody => 0.0,
            Self::Flood(flood, since) => flood.done() as f64 / since.elapsed().as_secs_f64(),
            Self::Hold(hold) => hold.count as f64,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone)]
struct Sample {
    answers: [Option<Answers>; 3],
    amount: f64,
    /// The number of CPUs that the carrier used.
    cpu: f64,
}

/// The results: by noise, by carrier, by round.
#[derive(Debug)]
pub struct Results {
    plan: Plan,
    carriers: Vec<Carrier>,
    samples: Vec<Vec<Vec<Sample>>>,
    /// What could not be measured, and why.
    notes: Vec<String>,
}

/// Runs the measurements. Calls `say` to report progress.
///
/// # Errors
/// A lab or a carrier does not start, or the run was interrupted. A measurement that fails becomes a note.
pub fn run(plan: Plan, noises: &[Noise], carriers: &[Carrier], mut say: impl FnMut(&str)) -> Result<Results> {
    let (carriers, left_out): (Vec<Carrier>, Vec<Carrier>) =
        carriers.iter().partition(|carrier| carrier.is_installed());
    left_out.iter().for_each(|carrier| say(&format!("{} is not installed", carrier.name())));
    let scenes: Vec<Scene> = carriers
        .iter()
        .map(|carrier| Scene::new(*carrier, plan.refusing).with_context(|| carrier.name()))
        .collect::<Result<_>>()?;
    let mut samples = vec![vec![Vec::new(); carriers.len()]; Noise::ALL.len()];
    let mut notes = Vec::new();
    for round in 0..plan.rounds {
        for (of, noise) in Noise::ALL.into_iter().enumerate() {
            if !noises.contains(&noise) {
                continue;
            }
            for step in 0..carriers.len() {
                interrupt::check()?;
                let who = (round + step) % carriers.len();
                if noise == Noise::Datagrams && !carriers[who].has_udp() {
                    continue;
                }
                match measure(noise, carriers[who], &scenes[who], &plan) {
                    Ok(sample) => {
                        say(&line(round, noise, carriers[who], &sample, &plan));
                        samples[of][who].push(sample);
                    }
                    // A carrier without free connections answers nobody.
                    Err(error) => {
                        interrupt::check()?;
                        let note = format!("{}, {}: {error:#}", noise.title(&plan), carriers[who].name());
                        say(&note);
                        if !notes.contains(&note) {
                            notes.push(note);
                        }
                    }
                }
                interrupt::rest(plan.rest)?;
            }
        }
    }
    Ok(Results { plan, carriers, samples, notes })
}

fn measure(noise: Noise, carrier: Carrier, scene: &Scene, plan: &Plan) -> Result<Sample> {
    let noisy = Noisy::start(noise, scene, plan)?;
    // Until the noise is at its full level.
    interrupt::rest(plan.rest.min(Duration::from_millis(500)))?;
    let used = |processes: &[Process]| usage::cpu_of(processes);
    let (before, begin) = (used(scene.carriers())?, Instant::now());
    let answers = probe::ask(scene.quiet_client(), scene.addresses.quiet, plan.time, carrier.has_udp())
        .context("no answer from the quiet Service")?;
    let cpu = used(scene.carriers())?.saturating_sub(before).as_secs_f64() / begin.elapsed().as_secs_f64();
    Ok(Sample { answers, amount: noisy.amount(), cpu })
}

fn line(round: usize, noise: Noise, carrier: Carrier, sample: &Sample, plan: &Plan) -> String {
    let mut line = format!("round {}: {}, {}:", round + 1, noise.title(plan), carrier.name());
    for (question, answers) in Question::ALL.iter().zip(&sample.answers) {
        if let Some(answers) = answers {
            let (title, p50, p99) = (question.title(), figure(answers.p50), figure(answers.p99));
            let _ = write!(line, " {title} {p50}/{p99}/{} us,", figure(answers.max));
            if answers.failed > 0 {
                let _ = write!(line, " {} failed,", answers.failed);
            }
        }
    }
    let _ = write!(line, " {}, {:.2} processors", amount(noise, sample.amount), sample.cpu);
    line
}

fn amount(noise: Noise, amount: f64) -> String {
    match noise {
        Noise::None => "-".into(),
        Noise::Bulk => format!("{:.1} Gbit/s", amount * 8.0 / 1e9),
        Noise::Refused => format!("{} connections/s", figure(amount)),
        Noise::Idle => format!("{amount} sessions"),
        Noise::Datagrams => format!("{} datagrams/s", figure(amount)),
    }
}

impl Results {
    fn median(&self, noise: usize, carrier: usize, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.get(noise)?.get(carrier)?.iter().filter_map(of).collect())
    }

    fn answers(&self, noise: usize, carrier: usize, question: usize, of: fn(&Answers) -> f64) -> Option<f64> {
        self.median(noise, carrier, |sample| sample.answers.get(question)?.as_ref().map(of))
    }

    /// The medians of all rounds as Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "p50 / p99 in microseconds; in parentheses as multiples of the same carrier's without noise. Medians of {} measurements \
             of {} s each.\n\n| noise | carrier | {} | amount | carrier's processors |\n|---|---|---|---|---|---|---|\n",
            self.plan.rounds,
            self.plan.time.as_secs_f64(),
            Question::ALL.map(Question::title).join(" | "),
        );
        for (of, noise) in Noise::ALL.into_iter().enumerate() {
            for (who, carrier) in self.carriers.iter().enumerate() {
                let Some(cpu) = self.median(of, who, |sample| Some(sample.cpu)) else { continue };
                let cells: Vec<String> =
                    (0..Question::ALL.len()).map(|kind| self.cell(of, who, kind)).collect();
                let much = self.median(of, who, |sample| Some(sample.amount)).unwrap_or(0.0);
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {cpu:.2} |",
                    noise.title(&self.plan),
                    carrier.name(),
                    cells.join(" | "),
                    amount(noise, much),
                );
            }
        }
        if !self.notes.is_empty() {
            text.push('\n');
            self.notes.iter().for_each(|note| text.push_str(&format!("* {note}\n")));
        }
        text
    }

    fn cell(&self, noise: usize, carrier: usize, question: usize) -> String {
        let at = |noise, of| self.answers(noise, carrier, question, of);
        let p50 = |answers: &Answers| answers.p50;
        let p99 = |answers: &Answers| answers.p99;
        let (Some(half), Some(most)) = (at(noise, p50), at(noise, p99)) else { return "-".into() };
        let mut cell = format!("{} / {}", figure(half), figure(most));
        if noise > 0
            && let (Some(quiet_half), Some(quiet_most)) = (at(0, p50), at(0, p99))
        {
            let _ = write!(cell, " ({:.1} / {:.1})", half / quiet_half, most / quiet_most);
        }
        let failed: usize = self.samples[noise][carrier]
            .iter()
            .filter_map(|sample| Some(sample.answers.get(question)?.as_ref()?.failed))
            .sum();
        if failed > 0 {
            let _ = write!(cell, ", {failed} failed");
        }
        cell
    }

    /// Where Sluice misses the [`GOAL`].
    pub fn missed(&self) -> Vec<String> {
        let Some(who) = self.carriers.iter().position(|carrier| *carrier == Carrier::Sluice) else {
            return Vec::new();
        };
        let p99 = |noise, question| self.answers(noise, who, question, |answers| answers.p99);
        let cells = (1..Noise::ALL.len())
            .flat_map(|noise| (0..Question::ALL.len()).map(move |question| (noise, question)));
        cells
            .filter_map(|(noise, question)| {
                let ratio = p99(noise, question)? / p99(0, question)?;
                (ratio >= GOAL).then(|| {
                    let (noise, question) =
                        (Noise::ALL[noise].title(&self.plan), Question::ALL[question].title());
                    format!(
                        "{question} beside {noise}: {ratio:.1} times the quiet p99, the goal is below {GOAL}"
                    )
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_multiples_of_the_quiet_and_says_what_is_missed() {
        let sample = |p99| {
            let answers = Answers { p50: 50.0, p99, max: 900.0, failed: 1 };
            Sample { answers: [Some(answers), None, None], amount: 1e9, cpu: 0.5 }
        };
        let mut samples = vec![vec![Vec::new()]; Noise::ALL.len()];
        samples[0][0].push(sample(100.0));
        samples[1][0].push(sample(350.0));
        let notes = vec!["nobody answers".to_owned()];
        let results = Results { plan: Plan::FULL, carriers: vec![Carrier::Sluice], samples, notes };
        let table = results.table();
        let wanted = "| 100 connections in bulk | sluice | 50.0 / 350 (1.0 / 3.5), 1 failed | - | - | 8.0 Gbit/s | 0.50 |";
        assert!(table.contains(wanted), "{table}");
        assert!(table.ends_with("* nobody answers\n"), "{table}");
        assert_eq!(results.missed().len(), 1, "{:?}", results.missed());
    }
}
