//! The node's agent, and its successors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use sluice_testbed::lab::{Host, PATIENCE, Process};

use super::ledger::{Cause, Ledger};
use crate::agent::{Agent, Source, metrics};
use crate::interrupt;

/// How long an agent may wait for its connections after SIGTERM. All clients' connections are shorter.
const GRACE: Duration = Duration::from_secs(25);

/// Maximum number of agents' messages that are kept.
const TEXTS: usize = 100;

/// The current agent.
pub(super) struct Agents {
    node: Host,
    kubeconfig: PathBuf,
    /// The agents' arguments.
    arguments: Vec<String>,
    current: Process,
    /// Warnings and errors of earlier agents, with their numbers.
    said: BTreeMap<String, usize>,
}

impl Agents {
    /// Starts the first agent.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start(
        node: &Host,
        kubeconfig: PathBuf,
        udp_idle: Duration,
        mode: &[String],
    ) -> Result<Self> {
        let (udp_idle, grace) = (format!("{}ms", udp_idle.as_millis()), format!("{}s", GRACE.as_secs()));
        let more = ["--udp-idle-timeout", &udp_idle, "--grace-period", &grace].map(str::to_owned);
        let arguments = [mode, &more].concat();
        let current = start(node, &kubeconfig, &arguments)?;
        let agents = Self { node: node.clone(), kubeconfig, arguments, current, said: BTreeMap::new() };
        agents.await_metrics()?;
        Ok(agents)
    }

    /// The current agent.
    pub(super) fn current(&self) -> &Process {
        &self.current
    }

    /// Hands over as in a rolling update: starts another agent, then asks the old one to end. Returns when it
    /// has ended.
    ///
    /// # Errors
    /// An agent does not start, or ends with an error.
    pub(super) fn hand_over(&mut self, ledger: &Ledger) -> Result<()> {
        let _ongoing = ledger.begin(Cause::HandOver);
        let next = start(&self.node, &self.kubeconfig, &self.arguments)?;
        let mut last = std::mem::replace(&mut self.current, next);
        last.signal(Signal::TERM)?;
        let status = last.wait(GRACE + PATIENCE)?;
        self.note(&last.lines());
        if !status.success() {
            bail!("an agent has ended with {status}: {}", last.lines().join("\n"));
        }
        // One agent after the other serves them at the same address.
        self.await_metrics()
    }

    fn await_metrics(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = metrics(&self.node) {
            interrupt::check()?;
            if Instant::now() > deadline {
                return Err(error).context("an agent without metrics");
            }
            std::thread::sleep(interrupt::POLL);
        }
        Ok(())
    }

    fn note(&mut self, lines: &[String]) {
        for line in lines {
            let text = ["ERROR ", "WARN "].iter().find_map(|level| Some((level, line.split_once(level)?.1)));
            let Some((level, text)) = text else { continue };
            let text = format!("{level}{}", text.trim_start());
            if self.said.len() < TEXTS || self.said.contains_key(&text) {
                *self.said.entry(text).or_default() += 1;
            }
        }
    }

    /// Warnings and errors of all agents, with their numbers.
    pub(super) fn said(mut self) -> BTreeMap<String, usize> {
        let lines = self.current.lines();
        self.note(&lines);
        self.said
    }
}

fn start(node: &Host, kubeconfig: &Path, arguments: &[String]) -> Result<Process> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Agent { program: None, arguments: &arguments, source: Source::Kubeconfig(kubeconfig) }.start(node)
}
