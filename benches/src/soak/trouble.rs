//! What happens to the cluster all the time: endpoints come and go, die and come back, Services come and go.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sluice_model::Protocol;
use sluice_testbed::lab::{Host, PATIENCE};

use super::Kind;
use super::cluster::{Cluster, MORTAL, SERVER_PORT};
use super::ledger::{Cause, Failure, Ledger, Service};
use crate::interrupt::POLL;

/// From one change of endpoints to the next one: a flow that ends with its endpoint loses what is under way for much less.
const CHANGES: Duration = Duration::from_secs(1);

/// How long an endpoint is dead, and then alive.
const DEATH: Duration = Duration::from_secs(1);

/// From one temporary Service to the next one.
const SERVICES: Duration = Duration::from_millis(500);

/// How long a question to a Service that is not there yet, or not any more, waits.
const GLANCE: Duration = Duration::from_millis(300);

/// What silences a pod.
const SILENCE: &str = "table inet silence {
    chain input {
        type filter hook input priority 0
        drop
    }
}
";

/// Goes on until it is over. Whoever makes trouble has no errors of its own.
pub(super) struct Trouble<'a> {
    /// What is troubled.
    pub(super) cluster: &'a Cluster,
    /// Where it is written down.
    pub(super) ledger: &'a Ledger,
    /// When to end.
    pub(super) is_over: &'a AtomicBool,
    /// The first thing that could not be done.
    pub(super) failed: &'a Mutex<Option<anyhow::Error>>,
}

impl Trouble<'_> {
    /// The changing Service gets other endpoints.
    pub(super) fn change_endpoints(&self) {
        self.again_and_again(|turn| {
            let ongoing = self.ledger.begin(Cause::Change);
            self.cluster.change(turn)?;
            drop(ongoing);
            self.rest(CHANGES);
            Ok(())
        });
    }

    /// Endpoints of the mortal Service die, one at a time: refusing, or without a word. The apiserver is not told.
    pub(super) fn kill_endpoints(&self) {
        let alive = MORTAL.iter().map(|pod| self.cluster.serve(*pod).map(Some)).collect::<Result<Vec<_>>>();
        let mut alive = match alive {
            Ok(alive) => alive,
            Err(error) => return self.fail(error),
        };
        self.again_and_again(|turn| {
            self.rest(DEATH);
            let which = turn % MORTAL.len();
            let pod = MORTAL[which];
            let ongoing = self.ledger.begin(Cause::Death);
            if turn % 2 == 0 {
                alive[which] = None;
                self.rest(DEATH);
                alive[which] = Some(self.cluster.serve(pod)?);
            } else {
                let ns = &self.cluster.lab.pod(pod).ns;
                ns.nft_file(SILENCE)?;
                self.rest(DEATH);
                ns.nft("delete table inet silence")?;
            }
            drop(ongoing);
            Ok(())
        });
    }

    /// Services come, are served, and go.
    pub(super) fn change_services(&self) {
        let client = self.cluster.lab.pod(0);
        self.again_and_again(|turn| {
            let to = self.cluster.create_temporary(turn)?;
            for (protocol, kind) in [(Protocol::Tcp, Kind::Short), (Protocol::Udp, Kind::Question)] {
                self.expect(client, protocol, kind, to, true);
            }
            self.cluster.delete_temporary(turn)?;
            self.expect(client, Protocol::Tcp, Kind::Short, to, false);
            self.rest(SERVICES);
            Ok(())
        });
    }

    /// Asks until a Service is there, or is not any more.
    fn expect(&self, client: &Host, protocol: Protocol, kind: Kind, to: SocketAddr, is_there: bool) {
        let begin = Instant::now();
        loop {
            let outcome = client.ask(protocol, to, GLANCE);
            if outcome.by().is_some() == is_there {
                return self.ledger.done(kind);
            }
            if self.is_over() {
                return;
            }
            if begin.elapsed() > PATIENCE {
                let what = if is_there { "not served" } else { "still served" };
                let (service, end) = (Service::Temporary, Instant::now());
                let what = format!("{what}: {outcome:?}");
                return self.ledger.failed(Failure { kind, service, begin, end, is_ended: false, what });
            }
        }
    }

    fn again_and_again(&self, mut trouble: impl FnMut(usize) -> Result<()>) {
        for turn in 0.. {
            if self.is_over() {
                return;
            }
            if let Err(error) = trouble(turn) {
                return self.fail(error);
            }
        }
    }

    fn fail(&self, error: anyhow::Error) {
        if let Ok(mut failed) = self.failed.lock() {
            failed.get_or_insert(error.context("trouble"));
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_over() && Instant::now() < end {
            std::thread::sleep(POLL);
        }
    }
}

/// Waits until the mortal Service's first endpoints live.
///
/// # Errors
/// They do not in time.
pub(super) fn await_mortals(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for pod in MORTAL {
        let host = cluster.lab.pod(pod);
        let at = SocketAddr::from((host.v4, SERVER_PORT));
        while host.ask(Protocol::Tcp, at, GLANCE).by().is_none() {
            ensure!(Instant::now() < deadline, "{at} does not live");
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}
