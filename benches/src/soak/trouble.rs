//! What constantly happens to the cluster: endpoints change, die and come back, and Services come and go.

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

/// The interval of endpoint changes. A flow that ends with its endpoint loses datagrams for a much shorter
/// time.
const CHANGES: Duration = Duration::from_secs(1);

/// How long an endpoint is dead, and then alive.
const DEATH: Duration = Duration::from_secs(1);

/// The interval of temporary Services.
const SERVICES: Duration = Duration::from_millis(500);

/// The timeout of a request to a Service that does not exist yet, or not any more.
const GLANCE: Duration = Duration::from_millis(300);

/// The rules that silence a pod.
const SILENCE: &str = "table inet silence {
    chain input {
        type filter hook input priority 0
        drop
    }
}
";

/// Runs until it is over. It has no error results of its own.
pub(super) struct Trouble<'a> {
    /// The cluster.
    pub(super) cluster: &'a Cluster,
    /// Where causes are recorded.
    pub(super) ledger: &'a Ledger,
    /// Whether to end.
    pub(super) is_over: &'a AtomicBool,
    /// The first error.
    pub(super) failed: &'a Mutex<Option<anyhow::Error>>,
}

impl Trouble<'_> {
    /// Changes the endpoints of the changing Service.
    pub(super) fn change_endpoints(&self) {
        self.again_and_again(|turn| {
            let ongoing = self.ledger.begin(Cause::Change);
            self.cluster.change(turn)?;
            drop(ongoing);
            self.rest(CHANGES);
            Ok(())
        });
    }

    /// Kills endpoints of the mortal Service, one at a time: they refuse, or are silent. The apiserver is not
    /// told.
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

    /// Creates Services, waits until they are served, and deletes them.
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

    /// Sends requests until a Service is served, or not any more.
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

/// Waits until the mortal Service's first endpoints are running.
///
/// # Errors
/// They are not in time.
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
