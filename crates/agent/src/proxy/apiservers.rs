//! Keeps the way to the apiserver clear: tells the writer its addresses, so that no Service takes them, and
//! removes an earlier agent's rules for them until the Services are known. Runs on the controller's thread.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sluice_capture::tproxy::{Leftovers, Released};
use sluice_model::{Frontend, Protocol};
use tracing::{debug, warn};

use super::Proxy;

/// How often to look for redirections by an earlier agent, which may still run. A look costs nft a few
/// milliseconds if nftables has changed, and nothing otherwise.
const LOOK: Duration = Duration::from_secs(1);

/// The apiserver's addresses, and what is known of the way there.
#[derive(Debug, Default)]
pub(super) struct Apiservers {
    addresses: Vec<SocketAddr>,
    leftovers: Option<Leftovers>,
    looked: Option<Instant>,
    /// Whether the log has said that something was in the way.
    has_said: bool,
    left_out: Arc<ArcSwap<BTreeSet<Frontend>>>,
}

impl Apiservers {
    /// Frontends that are not served because the apiserver is there, for other threads.
    pub(super) fn left_out(&self) -> Arc<ArcSwap<BTreeSet<Frontend>>> {
        Arc::clone(&self.left_out)
    }

    /// Publishes which frontends are not served.
    pub(super) fn show(&self, left_out: &BTreeSet<Frontend>) {
        if **self.left_out.load() != *left_out {
            self.left_out.store(Arc::new(left_out.clone()));
        }
    }

    /// Removes the kernel's rules that redirect the way to the apiserver. `None` if nothing has changed, or on
    /// failure.
    fn release(&mut self) -> Option<Released> {
        let leftovers = match &mut self.leftovers {
            Some(leftovers) => leftovers,
            none => none.insert(Leftovers::open().inspect_err(|error| debug!("{error}")).ok()?),
        };
        match leftovers.release(&self.addresses) {
            Ok(released) => released,
            Err(error) => {
                debug!("the way to the apiserver may not be clear: {error}");
                None
            }
        }
    }
}

impl Proxy {
    /// Sets where the agent reaches the apiserver. From the next step on, no Service gets these addresses. If
    /// none were known before, no leftovers of an earlier agent are in the way when this returns.
    pub(crate) fn set_apiservers(&mut self, addresses: Vec<SocketAddr>) {
        debug!(?addresses, "the apiserver is reached there");
        self.writer.set_apiservers(addresses.iter().copied());
        self.apiservers.addresses = addresses;
        self.apiservers.looked = None;
        if !self.has_begun {
            self.clear_way(Instant::now());
        }
    }

    /// Removes leftovers of an earlier agent that redirect connections to the apiserver. To be called until the
    /// Services are known. If that agent still runs, it may put them back.
    pub(super) fn clear_way(&mut self, now: Instant) {
        let apiservers = &mut self.apiservers;
        let is_due = apiservers.looked.is_none_or(|looked| now >= looked + LOOK);
        if apiservers.addresses.is_empty() || self.captured.is_none() || !is_due {
            return;
        }
        apiservers.looked = Some(now);
        let Some(Released { released, external }) = apiservers.release() else { return };
        let tcp = |address: &SocketAddr| Frontend { address: *address, protocol: Protocol::Tcp };
        let external: Vec<Frontend> = external.iter().map(tcp).collect();
        let is_news = self.at_socket.forget(&external) || !released.is_empty();
        if is_news && !std::mem::replace(&mut apiservers.has_said, true) {
            warn!(
                "an earlier agent has left rules that lead connections to the apiserver to a Service, and they are removed: take \
                 the apiserver's address out of that Service, or have agents use another one (--master)"
            );
        }
    }
}
