//! Whether the proxy as a whole is healthy, which `/healthz` and the health check node ports report.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sluice_kubeapi::apiserver;

use crate::programming::Programming;
use crate::proxy::Observer;

/// How long changes may fail to reach the kernel: twice the sync period of 30 s, as in kube-proxy.
const STALE: Duration = Duration::from_secs(60);

/// Changes that have waited this long without a failed attempt wait for a thread that hangs: an attempt takes
/// at most half a minute.
const HUNG: Duration = Duration::from_secs(300);

/// Answers whether the proxy is healthy. Cloning it is cheap.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    observer: Observer,
    programming: Arc<Programming>,
    /// `None` if manifests are followed.
    apiserver: Option<Arc<apiserver::Health>>,
}

/// Why the proxy is not healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unhealthy {
    /// Not all Services are known yet.
    NotSynced,
    /// The kernel could not be brought in line for this long.
    Failing(Duration),
}

/// The health at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    /// The proxy's own health, whatever becomes of the node.
    pub verdict: Result<(), Unhealthy>,
    /// Whether load balancers may send to this node.
    pub node_eligible: bool,
    /// When changes last took effect.
    pub updated: Option<Timestamp>,
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSynced => f.write_str("the apiserver has not told everything so far"),
            Self::Failing(time) => write!(
                f,
                "the kernel's rules and routes could not be brought up to date for {} s: the log says why",
                time.as_secs()
            ),
        }
    }
}

impl Health {
    pub(crate) fn new(
        observer: Observer,
        programming: Arc<Programming>,
        apiserver: Option<Arc<apiserver::Health>>,
    ) -> Self {
        Self { observer, programming, apiserver }
    }

    /// Which changes have taken effect.
    pub(crate) fn programming(&self) -> &Programming {
        &self.programming
    }

    /// The apiserver's health, if one is followed.
    pub(crate) fn apiserver(&self) -> Option<&Arc<apiserver::Health>> {
        self.apiserver.as_ref()
    }

    /// The proxy's own health now.
    ///
    /// # Errors
    /// It is not healthy.
    pub(crate) fn verdict(&self) -> Result<(), Unhealthy> {
        let is_synced = self.apiserver.as_ref().is_none_or(|health| health.is_synced());
        let pending = self.programming.pending_for(Instant::now());
        judge(is_synced, self.observer.capture_failing_for().max(pending))
    }

    /// Whether the agent works; if not, a restart helps. It does not help if only the kernel's rules cannot be
    /// changed: a new process could not even start, while this one still carries connections by the present rules.
    pub(crate) fn is_live(&self) -> bool {
        let now = Instant::now();
        let waiting = [self.programming.queued_for(now), self.programming.pending_for(now)];
        is_live(waiting, self.observer.capture_last_failure())
    }

    /// The whole state now.
    pub(crate) fn state(&self) -> State {
        State {
            verdict: self.verdict(),
            node_eligible: may_be_sent_to(self.observer.node_eligible(), self.apiserver.is_some()),
            updated: self.programming.updated(),
        }
    }
}

fn judge(is_synced: bool, stale_for: Option<Duration>) -> Result<(), Unhealthy> {
    match stale_for {
        _ if !is_synced => Err(Unhealthy::NotSynced),
        Some(time) if time >= STALE => Err(Unhealthy::Failing(time)),
        _ => Ok(()),
    }
}

/// Whether no thread hangs. The arguments: for how long changes have waited to be taken in, and to take effect;
/// how long ago an attempt at the latter failed. As long as attempts fail, nothing hangs.
fn is_live([queued, pending]: [Option<Duration>; 2], last_failure: Option<Duration>) -> bool {
    let hangs = |time: Option<Duration>| time.is_some_and(|time| time >= HUNG);
    let tries = last_failure.is_some_and(|time| time < HUNG);
    !hangs(queued) && (!hangs(pending) || tries)
}

/// Whether load balancers may send here, by the Node. A cluster without a Node of this name has no use for this
/// node (kube-proxy: `NodeEligible`); manifests need not have a Node.
fn may_be_sent_to(node: Option<bool>, in_cluster: bool) -> bool {
    node.unwrap_or(!in_cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let seconds = Duration::from_secs;
        let cases = [
            ("all is well", true, None, Ok(())),
            ("nothing is known", false, None, Err(Unhealthy::NotSynced)),
            ("it fails for a while", true, Some(seconds(59)), Ok(())),
            ("it fails for too long", true, Some(seconds(60)), Err(Unhealthy::Failing(seconds(60)))),
        ];
        for (name, is_synced, stale_for, wanted) in cases {
            assert_eq!(judge(is_synced, stale_for), wanted, "{name}");
        }
        assert!(Unhealthy::Failing(seconds(61)).to_string().contains("for 61 s"));
    }

    #[test]
    fn a_new_process_is_better_where_this_one_hangs_and_not_where_the_kernel_refuses() {
        let seconds = |n| Some(Duration::from_secs(n));
        let cases = [
            ("nothing waits", [None, None], None, true),
            ("a change waits", [None, seconds(299)], None, true),
            ("and for too long", [None, seconds(300)], None, false),
            ("but attempts fail all the time", [None, seconds(1_000)], seconds(30), true),
            ("and do so no more", [None, seconds(1_000)], seconds(300), false),
            ("nobody takes it in", [seconds(300), seconds(300)], seconds(30), false),
        ];
        for (name, waiting, last_failure, wanted) in cases {
            assert_eq!(is_live(waiting, last_failure), wanted, "{name}");
        }
    }

    #[test]
    fn a_node_that_the_cluster_has_not_is_not_sent_to() {
        let cases =
            [(Some(true), true, true), (Some(false), true, false), (None, true, false), (None, false, true)];
        for (node, in_cluster, wanted) in cases {
            assert_eq!(may_be_sent_to(node, in_cluster), wanted, "{node:?} {in_cluster}");
        }
    }
}
