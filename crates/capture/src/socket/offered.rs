//! The offered frontends, their service ports, and what the programs have to know of a service port.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_model::{Frontend, FrontendKind, Protocol};
use sluice_socket_maps::{Port, PortKey};
use sluice_table::{AtSocket, Balance, FrontendKey, Reader, ServicePort, SetName, SocketOutcomes};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A service port with its frontends.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) port: Arc<ServicePort>,
    /// Sorted.
    frontends: Vec<(Frontend, FrontendKind)>,
}

/// The offered frontends, by service port.
#[derive(Debug)]
pub(super) struct Offered {
    table: Reader,
    pub(super) ports: Map<PortKey, Known>,
    /// The service port of each frontend.
    holders: Map<Frontend, PortKey>,
    /// Frontends that may be endpoints as well: the table has no endpoints that are cluster IPs.
    external: BTreeSet<Frontend>,
    interfaces: BTreeSet<IpAddr>,
    /// Whether nothing is decided about pods.
    host_only: bool,
}

/// The key of a port: as long as the port is known, nothing else has its place in memory.
pub(super) fn key(port: &Arc<ServicePort>) -> PortKey {
    PortKey(Arc::as_ptr(port) as usize as u64)
}

pub(super) fn each_once(mut keys: Vec<PortKey>) -> Vec<PortKey> {
    keys.sort_unstable();
    keys.dedup();
    keys
}

impl Offered {
    pub(super) fn new(table: Reader, host_only: bool) -> Self {
        Self {
            table,
            ports: Map::default(),
            holders: Map::default(),
            external: BTreeSet::new(),
            interfaces: BTreeSet::new(),
            host_only,
        }
    }

    pub(super) fn get(&self, key: PortKey) -> Option<&Known> {
        self.ports.get(&key)
    }

    /// Forgets a port that has no frontend any more.
    pub(super) fn forget(&mut self, key: PortKey) {
        self.ports.remove(&key);
    }

    /// Adds frontends. Returns the ports that this changes, each once.
    pub(super) fn add(&mut self, frontends: &[Frontend]) -> Vec<PortKey> {
        let mut touched = Vec::with_capacity(frontends.len());
        let mut external = BTreeSet::new();
        self.holders.reserve(frontends.len());
        for frontend in frontends {
            touched.extend(self.release(*frontend));
            let Some(route) = self.table.lookup(FrontendKey::from(*frontend)) else { continue };
            let (port, kind) = (Arc::clone(route.service_port()), route.kind());
            let key = key(&port);
            let known =
                self.ports.entry(key).or_insert_with(|| Known { port, frontends: Vec::with_capacity(1) });
            // It was released above, so no port has it now.
            let at = known.frontends.partition_point(|(other, _)| other < frontend);
            known.frontends.insert(at, (*frontend, kind));
            self.holders.insert(*frontend, key);
            touched.push(key);
            if kind.is_external() {
                external.insert(*frontend);
                self.external.insert(*frontend);
            }
        }
        touched.extend(self.with_endpoint_in(&external));
        each_once(touched)
    }

    /// Removes frontends. Returns the ports that this changes, each once.
    pub(super) fn remove(&mut self, frontends: &[Frontend]) -> Vec<PortKey> {
        let mut touched: Vec<PortKey> =
            frontends.iter().filter_map(|frontend| self.release(*frontend)).collect();
        touched.extend(self.with_endpoint_in(&frontends.iter().copied().collect()));
        each_once(touched)
    }

    /// Sets the addresses of the node's interfaces. Returns the ports that this changes, each once.
    pub(super) fn set_interfaces(&mut self, addresses: &[IpAddr]) -> Vec<PortKey> {
        let before = std::mem::replace(&mut self.interfaces, addresses.iter().copied().collect());
        let changed: BTreeSet<IpAddr> = before.symmetric_difference(&self.interfaces).copied().collect();
        let holders = self.holders.iter();
        let changed = holders.filter(|(frontend, _)| changed.contains(&frontend.address.ip()));
        each_once(changed.map(|(_, key)| *key).collect())
    }

    /// Removes a frontend. Returns its port.
    fn release(&mut self, frontend: Frontend) -> Option<PortKey> {
        let holder = self.holders.remove(&frontend)?;
        self.external.remove(&frontend);
        if let Some(known) = self.ports.get_mut(&holder) {
            known.frontends.retain(|(other, _)| *other != frontend);
        }
        Some(holder)
    }

    /// The ports that have one of these frontends as an endpoint.
    fn with_endpoint_in(&self, frontends: &BTreeSet<Frontend>) -> Vec<PortKey> {
        let has_one = |known: &Known| {
            let backends = known.port.backends();
            let mut upstreams = backends.cluster().upstreams().iter().chain(backends.local().upstreams());
            let protocol = known.port.name().protocol;
            upstreams.any(|upstream| frontends.contains(&Frontend { address: upstream.address(), protocol }))
        };
        if frontends.is_empty() {
            return Vec::new();
        }
        self.ports.iter().filter(|(_, known)| has_one(known)).map(|(key, _)| *key).collect()
    }

    /// The wanted state of those ports that are known.
    pub(super) fn wanted(&self, keys: &[PortKey]) -> Vec<(PortKey, Port)> {
        keys.iter().filter_map(|key| Some((*key, self.wanted_of(self.ports.get(key)?)))).collect()
    }

    fn wanted_of(&self, known: &Known) -> Port {
        let backends = known.port.backends();
        let protocol = known.port.name().protocol;
        // Packets to such an endpoint would be captured on their way, and led to an endpoint of that frontend.
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
        // The same rule as for relayed flows. TCP has no flows.
        let serving = if protocol == Protocol::Udp {
            let endpoints = known.port.endpoints().into_iter();
            endpoints.filter(|upstream| upstream.is_serving()).map(|upstream| upstream.address()).collect()
        } else {
            Vec::new()
        };
        Port {
            cluster: addresses(SetName::Cluster, backends.cluster()),
            local: addresses(SetName::Local, backends.local()),
            frontends,
            serving,
            is_random: backends.balance() == Balance::Random,
            affinity: backends.affinity().filter(|_| protocol == Protocol::Tcp),
        }
    }
}
