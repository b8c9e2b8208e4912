//! Computes the wanted elements from the table's frontends and addresses. No I/O.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::{Family, Frontend, FrontendKind, Protocol};
use sluice_table::{ClusterAddressChange, FrontendState, Verdict};

use super::elements::{Chain, Delta, Elements, Key, Place, SetName, Value, edit};
use super::pods::Pods;

/// The wanted elements, and their difference from those last applied.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    elements: Elements,
    /// Elements that have changed since [`Wanted::settle`], with their values at that time.
    touched: BTreeMap<Key, Option<Value>>,
    frontends: BTreeMap<Frontend, Placed>,
    /// The addresses on which each nodePort is served.
    node_ports: BTreeMap<NodePort, BTreeMap<IpAddr, Chain>>,
    /// How many frontends need each element that an address has only once.
    users: BTreeMap<Key, usize>,
    service_cidrs: Vec<IpNet>,
    local_pods: Vec<IpNet>,
    untracked: Vec<IpNet>,
    /// The node's own addresses, once they are known.
    node_addresses: Option<Vec<IpAddr>>,
    pods: Pods,
    are_pods_stale: bool,
}

type NodePort = (Family, Protocol, u16);

/// A frontend with its elements.
#[derive(Debug)]
struct Placed {
    kind: FrontendKind,
    allowed_sources: Vec<IpNet>,
}

impl Wanted {
    /// All elements.
    pub(super) fn elements(&self) -> &Elements {
        &self.elements
    }

    /// The changes since the last [`Wanted::settle`].
    pub(super) fn delta(&self) -> Delta {
        let edits = self.touched.iter();
        edits.filter_map(|(key, old)| Some((*key, edit(*old, self.elements.get(key).copied())?))).collect()
    }

    /// Notes that all elements have been applied.
    pub(super) fn settle(&mut self) {
        self.touched.clear();
    }

    pub(super) fn withdraw(&mut self, frontend: Frontend) {
        let Some(placed) = self.frontends.remove(&frontend) else { return };
        for source in placed.allowed_sources {
            self.put(Key::AllowedSource(frontend, source), None);
        }
        for key in of_address(frontend.address.ip(), placed.kind) {
            self.release(key);
        }
        match placed.kind {
            FrontendKind::NodePort => self.withdraw_node_port(frontend),
            _ => self.put(Key::Frontend(frontend), None),
        }
    }

    pub(super) fn offer(&mut self, state: &FrontendState) {
        let frontend = state.frontend;
        self.withdraw(frontend);
        let chain = chain(state);
        let allowed_sources = match &state.allowed_sources {
            Some(sources) if chain != Chain::Discard => merged(sources, Family::of(frontend.address.ip())),
            _ => Vec::new(),
        };
        for source in &allowed_sources {
            self.put(Key::AllowedSource(frontend, *source), Some(Value::Member));
        }
        for key in of_address(frontend.address.ip(), state.kind) {
            self.claim(key);
        }
        match state.kind {
            FrontendKind::NodePort => self.offer_node_port(frontend, chain),
            _ => self.put(Key::Frontend(frontend), Some(Value::Goto(chain))),
        }
        self.frontends.insert(frontend, Placed { kind: state.kind, allowed_sources });
    }

    pub(super) fn change_cluster_addresses(&mut self, change: &ClusterAddressChange) {
        for ip in &change.removed {
            self.put(Key::ClusterIp(*ip), None);
        }
        for ip in &change.added {
            self.put(Key::ClusterIp(*ip), Some(Value::Member));
        }
        if let Some(ranges) = &change.ranges {
            let before = std::mem::replace(&mut self.service_cidrs, IpNet::aggregate(ranges));
            self.replace(&before, &self.service_cidrs.clone(), Key::ServiceCidr);
            self.are_pods_stale = true;
        }
    }

    pub(super) fn set_local_pods(&mut self, cidrs: &[IpNet]) {
        let before = std::mem::replace(&mut self.local_pods, IpNet::aggregate(&cidrs.to_vec()));
        self.replace(&before, &self.local_pods.clone(), Key::LocalPods);
    }

    pub(super) fn set_untracked(&mut self, cidrs: &[IpNet]) {
        let before = std::mem::replace(&mut self.untracked, IpNet::aggregate(&cidrs.to_vec()));
        self.replace(&before, &self.untracked.clone(), Key::Untracked);
        self.are_pods_stale = true;
    }

    pub(super) fn set_node_addresses(&mut self, addresses: &[IpAddr]) {
        self.node_addresses = Some(addresses.to_vec());
        self.are_pods_stale = true;
    }

    /// Brings the elements for addresses that only pods have in line with all others. Until then they are out of
    /// date.
    pub(super) fn settle_pods(&mut self) {
        if !std::mem::take(&mut self.are_pods_stale) {
            return;
        }
        let after = self
            .node_addresses
            .as_ref()
            .map(|node| Pods::new(&self.untracked, &self.service_cidrs, node))
            .unwrap_or_default();
        let services: BTreeSet<Key> =
            self.elements.keys().filter_map(|key| to_services(key, &after)).collect();
        for set in SetName::ALL {
            for key in [Family::V4, Family::V6].map(|family| Key::ToServices(set, family)) {
                self.put(key, services.contains(&key).then_some(Value::Member));
            }
        }
        let before = std::mem::replace(&mut self.pods, after);
        let (networks, others) = (self.pods.networks.clone(), Vec::from_iter(self.pods.others.clone()));
        self.replace(&Vec::from_iter(before.others), &others, Key::ToOthers);
        self.replace(&before.networks, &networks, Key::ToPods);
        self.replace(&before.networks, &networks, Key::FromPods);
    }

    fn replace(&mut self, before: &[IpNet], after: &[IpNet], key: impl Fn(IpNet) -> Key) {
        for cidr in before {
            self.put(key(*cidr), None);
        }
        for cidr in after {
            self.put(key(*cidr), Some(Value::Member));
        }
    }

    fn offer_node_port(&mut self, frontend: Frontend, chain: Chain) {
        let ip = frontend.address.ip();
        self.node_ports.entry(node_port(frontend)).or_default().insert(ip, chain);
        self.refresh_node_port(frontend);
    }

    fn withdraw_node_port(&mut self, frontend: Frontend) {
        let ip = frontend.address.ip();
        // Removes the element that the frontend had of its own, if it had one.
        self.put(Key::Frontend(frontend), None);
        let port = node_port(frontend);
        if let Some(chains) = self.node_ports.get_mut(&port) {
            chains.remove(&ip);
            if chains.is_empty() {
                self.node_ports.remove(&port);
            }
        }
        self.refresh_node_port(frontend);
    }

    /// Brings the element of a nodePort in line with its addresses.
    ///
    /// One element serves all addresses, because their verdicts are the same: policies and endpoints belong to
    /// the service port, not to an address. If addresses differ nevertheless, the first one's verdict is used
    /// for the nodePort, and the others become frontends, which are looked up first.
    fn refresh_node_port(&mut self, frontend: Frontend) {
        let port = node_port(frontend);
        let (family, protocol, number) = port;
        let chains = self.node_ports.get(&port).cloned().unwrap_or_default();
        let common = chains.values().next().copied();
        self.put(Key::NodePort(family, protocol, number), common.map(Value::Goto));
        for (ip, chain) in chains {
            let own = (Some(chain) != common).then_some(Value::Goto(chain));
            self.put(Key::Frontend(Frontend::new(ip, number, protocol)), own);
        }
    }

    fn claim(&mut self, key: Key) {
        let users = self.users.entry(key).or_default();
        *users += 1;
        if *users == 1 {
            self.put(key, Some(Value::Member));
        }
    }

    fn release(&mut self, key: Key) {
        let Some(users) = self.users.get_mut(&key) else { return };
        *users -= 1;
        if *users == 0 {
            self.users.remove(&key);
            self.put(key, None);
        }
    }

    fn put(&mut self, key: Key, value: Option<Value>) {
        let old = match value {
            Some(value) => self.elements.insert(key, value),
            None => self.elements.remove(&key),
        };
        if old != value {
            // The rule that the last such address leaves behind stays until something else changes: rules cost
            // more to change than to keep, and whoever may give addresses to Services may do so all the time.
            let rule = value.and_then(|_| to_services(&key, &self.pods));
            self.are_pods_stale |= rule.is_some_and(|rule| !self.elements.contains_key(&rule));
            // An element that is added and removed before it is applied leaves no change.
            match self.touched.entry(key) {
                Entry::Occupied(settled) if *settled.get() == value => drop(settled.remove()),
                Entry::Occupied(_) => {}
                Entry::Vacant(unsettled) => drop(unsettled.insert(old)),
            }
        }
    }
}

/// The rule that excludes a Service's address from the pods', if it would be taken for a pod's.
fn to_services(key: &Key, pods: &Pods) -> Option<Key> {
    let (Key::ClusterIp(ip) | Key::ExternalIp(ip)) = key else { return None };
    let Place::Set(set, family) = key.place() else { return None };
    pods.contains(*ip).then_some(Key::ToServices(set, family))
}

/// The elements that an address has once, however many frontends of a kind it has.
fn of_address(ip: IpAddr, kind: FrontendKind) -> impl Iterator<Item = Key> {
    let is_node_port = kind == FrontendKind::NodePort;
    let keys = [is_node_port.then_some(Key::NodeIp(ip)), kind.is_external().then_some(Key::ExternalIp(ip))];
    keys.into_iter().flatten()
}

fn node_port(frontend: Frontend) -> NodePort {
    (Family::of(frontend.address.ip()), frontend.protocol, frontend.address.port())
}

/// The chain for a frontend's verdicts.
///
/// Clients inside and outside the node differ in one case only: policy Local without a local endpoint, where
/// those inside are relayed and those outside are dropped. In other combinations that relay clients outside, a
/// worker decides: it knows the client and refuses those inside.
fn chain(state: &FrontendState) -> Chain {
    use Verdict::{Drop, Refuse, Relay};
    let chain = match (state.inside, state.outside) {
        (_, Relay) => Chain::Relay,
        (Relay, Refuse(_) | Drop(_)) => Chain::InsideOnly,
        (_, Refuse(_)) => Chain::Refuse,
        (_, Drop(_)) => Chain::Discard,
    };
    match chain {
        _ if state.allowed_sources.is_none() => chain,
        Chain::Relay => Chain::GuardedRelay,
        Chain::Refuse => Chain::GuardedRefuse,
        Chain::InsideOnly => Chain::GuardedInsideOnly,
        silent => silent,
    }
}

/// The ranges of one family, merged, because the kernel rejects overlaps.
fn merged(ranges: &[IpNet], family: Family) -> Vec<IpNet> {
    let own = ranges.iter().filter(|range| Family::of(range.addr()) == family).copied();
    IpNet::aggregate(&own.collect())
}

#[cfg(test)]
mod tests;
