//! Where the agent gets its objects from, and following that source.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_kubeapi::apiserver::{self, ApiserverSource, EventWriter, Health, Prepared};
use sluice_kubeapi::manifests::{ManifestSource, Watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::controller::Feed;
use crate::proxy::Observer;
use crate::source_args::SourceArgs;

/// How old the served state may be before a warning is logged. The loss of an apiserver is noticed within 45 s,
/// and this leaves the next one time to answer.
const STALE: Duration = Duration::from_secs(180);

/// Where objects come from. No apiserver has been asked yet.
pub(super) enum Source {
    Manifests(ManifestSource),
    Apiserver(Box<Prepared>),
}

/// A source that is being followed.
pub(super) enum Following {
    Manifests { _watch: Watch },
    Apiserver { source: ApiserverSource, _task: JoinHandle<()>, is_stale: bool },
}

impl Source {
    /// `pods`: whether pods' annotations are needed.
    pub(super) fn new(args: &SourceArgs, node: &str, pods: bool) -> Result<Self> {
        if !args.manifests.is_empty() {
            if pods {
                bail!(
                    "--socket-pod-annotations takes an apiserver to ask about pods, and manifests have none: leave it out"
                );
            }
            return Ok(Self::Manifests(ManifestSource::new(args.manifests.clone())?));
        }
        let config = apiserver::Config { pods, ..args.apiserver.config(node) };
        let prepared = Prepared::new(config)
            .context("cannot follow an apiserver (to serve files, give --manifests PATH)")?;
        Ok(Self::Apiserver(Box::new(prepared)))
    }

    /// Starts to follow the source. When it returns, manifests are served; an apiserver's objects are served
    /// once it has sent them all.
    pub(super) async fn follow(self, feed: &Feed, observer: Observer) -> Result<Following> {
        match self {
            Self::Manifests(source) => {
                let watch = feed.follow(source).await.context("cannot follow the manifests")?;
                if observer.frontends() == 0 {
                    warn!("no manifest names a Service with an address: nothing to serve so far");
                }
                say_ready(&observer);
                Ok(Following::Manifests { _watch: watch })
            }
            Self::Apiserver(prepared) => {
                let mut addresses = prepared.addresses();
                let first = addresses.borrow_and_update().clone();
                // After the way to the apiserver is clear. If the controller has ended, its owner notices.
                let _ = feed.set_apiservers(first).await;
                let to = feed.clone();
                tokio::spawn(async move {
                    while addresses.changed().await.is_ok() {
                        let now = addresses.borrow_and_update().clone();
                        if to.set_apiservers(now).await.is_err() {
                            return;
                        }
                    }
                });
                let (source, mut batches) = prepared.start();
                let feed = feed.clone();
                let task = tokio::spawn(async move {
                    let mut observer = Some(observer);
                    while let Some(changes) = batches.recv().await {
                        // Endpoints do not wait for the kernel's part of frontends, not even those of the first
                        // frontends.
                        if feed.take(changes).await.is_err() {
                            return;
                        }
                        if let Some(observer) = observer.take() {
                            let feed = feed.clone();
                            tokio::spawn(async move {
                                if feed.settled().await.is_ok() {
                                    say_ready(&observer);
                                }
                            });
                        }
                    }
                });
                Ok(Following::Apiserver { source, _task: task, is_stale: false })
            }
        }
    }
}

impl Following {
    pub(super) fn events(&self) -> Option<EventWriter> {
        match self {
            Self::Manifests { .. } => None,
            Self::Apiserver { source, .. } => Some(source.events()),
        }
    }

    pub(super) fn health(&self) -> Option<&Arc<Health>> {
        match self {
            Self::Manifests { .. } => None,
            Self::Apiserver { source, .. } => Some(source.health()),
        }
    }

    /// Logs once that the served state is out of date, and once that it is up to date again.
    pub(super) fn check_age(&mut self) {
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

fn say_ready(observer: &Observer) {
    let (frontends, unserved) = (observer.frontends(), observer.unserved());
    if observer.capture_failing_for().is_none() {
        info!(frontends, unserved, "ready");
    } else {
        warn!(
            frontends,
            unserved, "not ready: everything is known, but the kernel's rules are not as they are to be"
        );
    }
}
