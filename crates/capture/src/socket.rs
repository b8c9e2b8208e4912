//! Socket mode: what programs in the kernel are told about frontends and endpoints, so that connections of this node's
//! clients are led to an endpoint before there is a packet. Beside `tproxy`, which has everything that is not decided
//! there.
//!
//! Belongs to the thread that changes the table: endpoints take effect here at the same moment. Frontends come last and
//! go first: at any time there is a way for what the programs leave alone.
//!
//! `numbers`: whom the maps' numbers of endpoints are told. `ledger`: what connections did.

mod ledger;
mod numbers;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice_model::{Frontend, FrontendKind};
use sluice_socket_maps::{IdChange, Kernel, Maps, Port, PortKey, Stats};
use sluice_table::{
    AtSocket, Balance, FrontendKey, Reader, ServicePort, SetName, SharedHealth, SocketOutcomes, Table,
};
use tracing::warn;

pub use self::ledger::{Ledger, Sum};

/// What decides at clients' sockets.
pub trait AtSockets: Send + Sync {
    /// Has these be decided here from now on: the table knows them, and so does the other capture.
    fn offer(&mut self, frontends: &[Frontend]);

    /// Once this returns nothing is decided here any more about connections to these.
    fn withdraw(&mut self, frontends: &[Frontend]);

    /// Goes by what these service ports are now.
    fn change(&mut self, ports: &[Arc<ServicePort>]);

    /// Learns the addresses of the node's interfaces.
    fn set_interfaces(&mut self, addresses: &[IpAddr]);

    /// Everything that there is was offered: what an earlier agent has left beyond that is gone when this returns.
    fn forget_others(&mut self);

    /// Does what is due. To be called several times a second.
    fn keep(&mut self);

    /// Says that there is a relay now, which takes what is left to it: endpoints in doubt are. To be called several times
    /// a second for as long as there is one.
    fn beat(&mut self);

    /// How much there is.
    fn stats(&self) -> Stats;
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// How many ports are changed at a time: their endpoints, a thousand or two, are looked at several times, and from the
/// second one on are in the processor's cache.
const TOGETHER: usize = 128;

/// A service port with its frontends.
#[derive(Debug)]
struct Known {
    port: Arc<ServicePort>,
    /// In order.
    frontends: Vec<(Frontend, FrontendKind)>,
}

/// The maps of socket mode, kept in line with the table.
#[derive(Debug)]
pub struct Sockets<K> {
    maps: Maps<K>,
    table: Reader,
    health: SharedHealth,
    ports: Map<PortKey, Known>,
    /// Where each frontend that is offered leads.
    holders: Map<Frontend, PortKey>,
    /// Those that an endpoint may be: the table has no endpoints that are cluster IPs.
    external: BTreeSet<Frontend>,
    interfaces: BTreeSet<IpAddr>,
    /// Whether nothing is decided about pods.
    host_only: bool,
    /// How much does not fit, as it was last said.
    said: usize,
    /// Where it is known whose the endpoints' numbers are.
    ledger: Arc<Ledger>,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What to tell a port by: as long as it is known its place in memory is nobody else's.
fn key(port: &Arc<ServicePort>) -> PortKey {
    PortKey(Arc::as_ptr(port) as usize as u64)
}

impl<K: Kernel + Send + Sync> Sockets<K> {
    /// Maps that are kept in line with a table, and a ledger that knows what is in them; with `host_only` for the node's own
    /// sockets alone.
    pub fn new(mut maps: Maps<K>, table: &Table, ledger: Arc<Ledger>, host_only: bool) -> Self {
        maps.follow_ids();
        Self {
            health: maps.kernel().health(),
            maps,
            table: table.reader(),
            ports: Map::default(),
            holders: Map::default(),
            external: BTreeSet::new(),
            interfaces: BTreeSet::new(),
            host_only,
            said: 0,
            ledger,
        }
    }

    /// Lets go of a frontend; whose it was.
    fn release(&mut self, frontend: Frontend) -> Option<PortKey> {
        let holder = self.holders.remove(&frontend)?;
        self.external.remove(&frontend);
        if let Some(known) = self.ports.get_mut(&holder) {
            known.frontends.retain(|(other, _)| *other != frontend);
        }
        Some(holder)
    }

    /// Ports with an endpoint that is one of these.
    fn with_endpoint_in(&self, frontends: &BTreeSet<Frontend>) -> BTreeSet<PortKey> {
        let has_one = |known: &Known| {
            let backends = known.port.backends();
            let mut upstreams = backends.cluster().upstreams().iter().chain(backends.local().upstreams());
            let protocol = known.port.name().protocol;
            upstreams.any(|upstream| frontends.contains(&Frontend { address: upstream.address(), protocol }))
        };
        if frontends.is_empty() {
            return BTreeSet::new();
        }
        self.ports.iter().filter(|(_, known)| has_one(known)).map(|(key, _)| *key).collect()
    }

    /// Brings the maps in line with what these ports are now.
    fn refresh(&mut self, keys: impl IntoIterator<Item = PortKey>) {
        let keys: Vec<PortKey> = keys.into_iter().collect();
        keys.chunks(TOGETHER).for_each(|keys| self.refresh_some(keys));
    }

    /// The same, for a few.
    fn refresh_some(&mut self, keys: &[PortKey]) {
        let ports: Vec<(PortKey, Port)> =
            keys.iter().filter_map(|key| Some((*key, self.wanted(self.ports.get(key)?)))).collect();
        let gone: Vec<PortKey> =
            ports.iter().filter(|(_, port)| port.frontends.is_empty()).map(|(key, _)| *key).collect();
        let keys: Vec<PortKey> = ports.iter().map(|(key, _)| *key).collect();
        self.maps.apply(ports);
        let changes = self.maps.take_id_changes();
        self.share(&changes, &keys);
        gone.iter().for_each(|key| {
            self.ports.remove(key);
        });
    }

    /// Has ledger and table go by the numbers that the maps have now, for the endpoints of these ports and for what is gone.
    fn share(&self, changes: &[IdChange], keys: &[PortKey]) {
        self.ledger.follow(changes);
        for key in keys {
            if let Some(known) = self.ports.get(key) {
                numbers::share(&known.port, *key, &self.maps, &self.health, &self.ledger);
            }
        }
    }

    fn wanted(&self, known: &Known) -> Port {
        let backends = known.port.backends();
        let protocol = known.port.name().protocol;
        // What is sent there would be captured on its way, and led to an endpoint of that frontend.
        let leads_on = |name| {
            let set = match name {
                SetName::Cluster => backends.cluster(),
                SetName::Local => backends.local(),
            };
            let is_frontend = |address| self.external.contains(&Frontend { address, protocol });
            // Most clusters have none, and ten times as many endpoints as Services.
            !self.external.is_empty()
                && set.upstreams().iter().any(|upstream| is_frontend(upstream.address()))
        };
        let leads_on = [SetName::Cluster, SetName::Local].map(|name| (name, leads_on(name)));
        let fits = |outcome| match outcome {
            AtSocket::Balance(name) if leads_on.contains(&(name, true)) => AtSocket::Relay,
            outcome => outcome,
        };
        let outcomes = |(frontend, kind): &(Frontend, FrontendKind)| {
            let ip = frontend.address.ip();
            let said = SocketOutcomes::of(&known.port, *kind, ip, self.interfaces.contains(&ip));
            let pod = if self.host_only { AtSocket::Relay } else { fits(said.pod) };
            (*frontend, SocketOutcomes { node: fits(said.node), pod })
        };
        let frontends: Vec<_> = known.frontends.iter().map(outcomes).collect();
        let addresses = |name, set: &sluice_table::EndpointSet| {
            let leads_there = |(_, outcomes): &(Frontend, SocketOutcomes)| {
                [outcomes.node, outcomes.pod].contains(&AtSocket::Balance(name))
            };
            if frontends.iter().any(leads_there) {
                set.upstreams().iter().map(|upstream| upstream.address()).collect()
            } else {
                Vec::new()
            }
        };
        Port {
            cluster: addresses(SetName::Cluster, backends.cluster()),
            local: addresses(SetName::Local, backends.local()),
            frontends,
            is_random: backends.balance() == Balance::Random,
        }
    }
}

impl<K: Kernel + Send + Sync> AtSockets for Sockets<K> {
    fn offer(&mut self, frontends: &[Frontend]) {
        let mut touched = BTreeSet::new();
        let mut external = BTreeSet::new();
        self.holders.reserve(frontends.len());
        for frontend in frontends {
            touched.extend(self.release(*frontend));
            let Some(route) = self.table.lookup(FrontendKey::from(*frontend)) else { continue };
            let (port, kind) = (Arc::clone(route.service_port()), route.kind());
            let key = key(&port);
            let known =
                self.ports.entry(key).or_insert_with(|| Known { port, frontends: Vec::with_capacity(1) });
            // It was released, so it is nobody's now.
            let at = known.frontends.partition_point(|(other, _)| other < frontend);
            known.frontends.insert(at, (*frontend, kind));
            self.holders.insert(*frontend, key);
            touched.insert(key);
            if kind.is_external() {
                external.insert(*frontend);
                self.external.insert(*frontend);
            }
        }
        touched.extend(self.with_endpoint_in(&external));
        self.refresh(touched);
    }

    fn withdraw(&mut self, frontends: &[Frontend]) {
        let mut touched: BTreeSet<PortKey> =
            frontends.iter().filter_map(|frontend| self.release(*frontend)).collect();
        touched.extend(self.with_endpoint_in(&frontends.iter().copied().collect()));
        self.refresh(touched);
    }

    fn change(&mut self, ports: &[Arc<ServicePort>]) {
        let keys: BTreeSet<PortKey> = ports.iter().map(key).collect();
        self.refresh(keys);
    }

    fn set_interfaces(&mut self, addresses: &[IpAddr]) {
        let before = std::mem::replace(&mut self.interfaces, addresses.iter().copied().collect());
        let changed: BTreeSet<IpAddr> = before.symmetric_difference(&self.interfaces).copied().collect();
        let holders = self.holders.iter();
        let touched: BTreeSet<PortKey> = holders
            .filter(|(frontend, _)| changed.contains(&frontend.address.ip()))
            .map(|(_, key)| *key)
            .collect();
        self.refresh(touched);
    }

    fn forget_others(&mut self) {
        self.maps.forget_unclaimed();
        let changes = self.maps.take_id_changes();
        self.share(&changes, &[]);
        if let Err(error) = self.maps.kernel_mut().take_over() {
            warn!("what an older version has left is not all gone: {error}");
        }
    }

    fn keep(&mut self) {
        let changed = self.maps.retry();
        let changes = self.maps.take_id_changes();
        self.share(&changes, &changed);
        self.ledger.settle_some();
        let waiting = self.maps.stats().waiting;
        if waiting > self.said {
            warn!(
                "{waiting} service ports do not fit into the maps of socket mode, and are relayed: raise \
                 --socket-endpoints"
            );
        }
        self.said = waiting;
    }

    fn beat(&mut self) {
        self.maps.kernel_mut().beat();
    }

    fn stats(&self) -> Stats {
        self.maps.stats()
    }
}

#[cfg(test)]
mod tests;
