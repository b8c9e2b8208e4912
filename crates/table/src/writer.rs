//! The table's only writer: keeps the objects, finds out what a change affects, and publishes it.
//!
//! Endpoints take effect at once ([`Writer::apply`] swaps them inside their service port). Frontends need the
//! kernel's help, so they change in steps, which the caller coordinates with its capture:
//!
//! 1. [`Writer::plan`] returns the frontends to withdraw and those to offer.
//! 2. [`Writer::publish`] adds the new ones to the table. Then the capture offers and withdraws in one step,
//!    and [`Writer::finish`] removes the withdrawn ones from the table.
//!
//! So a client never reaches a worker that has no route for it.

mod apiservers;
mod config;
mod conflicts;
mod frontends;
mod plan;
mod port_state;
mod rules;
mod service_state;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;
use sluice_model::{Change, EndpointSlice, Family, Frontend, Node, Object, ObjectName, ObjectRef, Service};

pub use config::{LocalPods, WriterConfig};
pub use plan::{FrontendState, Plan};
pub use work::Work;

use crate::affinity::Budget;
use crate::claims::Claims;
use crate::cluster_addresses::ClusterAddresses;
use crate::{HealthCheck, NodePortAddresses, Notice, ServicePort, Table, Verdict, node_ports};
use conflicts::Conflicts;
use port_state::PortState;
use rules::Surroundings;
use service_state::ServiceState;

/// Keys come from the apiserver and not from clients, so a fast hash is enough.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Owns the objects, and is the only one to change the [`Table`].
#[derive(Debug)]
pub struct Writer {
    config: WriterConfig,
    table: Table,
    /// This node, in its latest version. It stays when the Node object is deleted, as kube-proxy's rules do.
    node: Option<Node>,
    /// The addresses of the node's interfaces that the rules need.
    interfaces: BTreeSet<IpAddr>,
    /// The addresses that are the node's by a route, if [`Writer::set_routed`] is called.
    routed: BTreeSet<IpAddr>,
    services: Map<ObjectName, ServiceState>,
    /// The Service that each slice belonged to last, because a slice's label may change.
    slice_owners: Map<ObjectName, ObjectName>,
    claims: Claims,
    /// The addresses at which the agent reaches the apiserver.
    apiservers: BTreeSet<SocketAddr>,
    /// Frontends that are claimed but not served, because the agent reaches the apiserver there.
    left_out: BTreeSet<Frontend>,
    cluster_addresses: ClusterAddresses,
    health_checks: BTreeMap<ObjectName, Arc<HealthCheck>>,
    affinity_budget: Arc<Budget>,
    /// Services that remember clients, or may still do so.
    with_affinity: BTreeSet<ObjectName>,
    /// Services whose endpoints have to be recomputed after the current changes.
    stale: BTreeSet<ObjectName>,
    /// Frontends whose route, verdict or claims may have changed since the last plan.
    dirty: BTreeSet<Frontend>,
    /// Service ports that are gone from the objects but still in the table.
    retiring: Vec<PortState>,
    /// What the capture was told last.
    offered: Map<Frontend, FrontendState>,
    conflicts: BTreeMap<Frontend, Conflicts>,
    /// Service ports that have changed, once [`Writer::follow_changes`] was called.
    changed: Option<Vec<Arc<ServicePort>>>,
    notices: Vec<Notice>,
    work: Work,
    /// When endpoints changed in the cluster, by Service, for changes that [`Writer::take_triggers`] has not
    /// returned yet.
    triggers: BTreeMap<ObjectName, Vec<SystemTime>>,
}

/// Limits on the changes that are timed at once: the number of Services, and of changes of each. Enough for
/// all that arrives while the kernel is slow; changes beyond it are not measured.
const TRIGGERS: usize = 10_000;
const TRIGGERS_EACH: usize = 100;

impl Writer {
    /// A writer of a new, empty table.
    pub fn new(config: WriterConfig) -> Self {
        let writer = Self {
            affinity_budget: Budget::new(config.affinity_clients),
            with_affinity: BTreeSet::new(),
            config,
            table: Table::default(),
            node: None,
            interfaces: BTreeSet::new(),
            routed: BTreeSet::new(),
            services: Map::default(),
            slice_owners: Map::default(),
            claims: Claims::default(),
            apiservers: BTreeSet::new(),
            left_out: BTreeSet::new(),
            cluster_addresses: ClusterAddresses::default(),
            health_checks: BTreeMap::new(),
            stale: BTreeSet::new(),
            dirty: BTreeSet::new(),
            retiring: Vec::new(),
            offered: Map::default(),
            conflicts: BTreeMap::new(),
            changed: None,
            notices: Vec::new(),
            work: Work::default(),
            triggers: BTreeMap::new(),
        };
        writer.tell_of_local_detectors();
        writer
    }

    /// Tells readers for which families pods of this node can be told from other clients.
    fn tell_of_local_detectors(&self) {
        for family in [Family::V4, Family::V6] {
            let detects = self.config.local_pods.are_detected(family, self.node.as_ref());
            self.table.set_detects_local_pods(family, detects);
        }
    }

    /// The table, to be shared with readers.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Applies a change. Endpoints of offered frontends change at once; changes of the frontends themselves
    /// wait for [`plan`](Self::plan).
    pub fn apply(&mut self, change: Change) {
        self.apply_all([change]);
    }

    /// Applies changes that arrived together. Endpoints change once, to their state after the last of them,
    /// so an endpoint that moves from one slice to another is never missing in between.
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.note(change));
        self.settle();
    }

    /// Applies a change to the objects, and records whose endpoints it may affect.
    fn note(&mut self, change: Change) {
        match change {
            Change::Apply(Object::Service(service)) => self.apply_service(service),
            Change::Apply(Object::EndpointSlice(slice)) => self.apply_slice(slice),
            Change::Apply(Object::Node(node)) if node.name == self.config.node => self.set_node(node),
            Change::Apply(Object::Node(_)) | Change::Delete(ObjectRef::Node(_)) => {}
            Change::Apply(Object::ServiceCidr(cidr)) => self.cluster_addresses.set_cidr(cidr),
            // These objects do not affect endpoints.
            Change::Apply(Object::Pod(_) | Object::Namespace(_))
            | Change::Delete(ObjectRef::Pod(_) | ObjectRef::Namespace(_)) => {}
            Change::Delete(ObjectRef::Service(name)) => self.delete_service(&name),
            Change::Delete(ObjectRef::EndpointSlice(name)) => self.delete_slice(&name),
            Change::Delete(ObjectRef::ServiceCidr(name)) => self.cluster_addresses.remove_cidr(&name),
        }
    }

    /// The verdict for a connection to an address that matches no frontend: refused if a Service has the
    /// address, dropped if it is in a ServiceCIDR. `None` if the address is not the cluster's.
    pub fn verdict_without_frontend(&self, ip: IpAddr) -> Option<Verdict> {
        self.cluster_addresses.verdict(ip)
    }

    /// Changes where nodePorts are served.
    pub fn set_node_port_addresses(&mut self, addresses: NodePortAddresses) {
        let before = self.node_port_addresses();
        self.config.node_port_addresses = addresses;
        if self.node_port_addresses() != before {
            self.refresh_all_frontends();
            self.settle();
        }
    }

    /// Updates the addresses of the node's interfaces. This may change where nodePorts are served, and which
    /// endpoints are processes of this node. Returns the addresses that are gone.
    pub fn set_interfaces(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
        let node_ports = self.node_port_addresses();
        let before = std::mem::replace(&mut self.interfaces, addresses.into_iter().collect());
        if self.node_port_addresses() != node_ports {
            self.refresh_all_frontends();
        }
        let changed: BTreeSet<IpAddr> = before.symmetric_difference(&self.interfaces).copied().collect();
        self.mark_endpoints_at(&changed);
        self.settle();
        before.difference(&self.interfaces).copied().collect()
    }

    /// Updates the addresses that are the node's by a route; nodePorts may be served on them as well. Returns
    /// those that are gone and on no interface. See [`Writer::goes_by_routes`].
    pub fn set_routed(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
        let node_ports = self.node_port_addresses();
        let before = std::mem::replace(&mut self.routed, addresses.into_iter().collect());
        if self.node_port_addresses() != node_ports {
            self.refresh_all_frontends();
            self.settle();
        }
        before.difference(&self.routed).filter(|ip| !self.interfaces.contains(ip)).copied().collect()
    }

    /// Number of addresses that are the node's only by a route and have no nodePorts because there are too
    /// many.
    pub fn routed_left_out(&self) -> usize {
        let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) =
            self.routed.difference(&self.interfaces).partition(|ip| ip.is_ipv4());
        [v4, v6].iter().map(|of_family| of_family.len().saturating_sub(node_ports::ROUTED_MAX)).sum()
    }

    /// Whether addresses that are the node's only by a route matter: if a family is served on all of its
    /// addresses.
    pub fn goes_by_routes(&self) -> bool {
        self.config.node_port_addresses.goes_by_routes(self.node.as_ref())
    }

    /// Marks the Services with an endpoint at one of these addresses as stale, because the rules for the
    /// address have changed.
    fn mark_endpoints_at(&mut self, addresses: &BTreeSet<IpAddr>) {
        if !addresses.is_empty() && !self.config.frontends_lead_back {
            let is_there = |(_, state): &(&ObjectName, &ServiceState)| state.has_endpoint_at(addresses);
            self.stale.extend(self.services.iter().filter(is_there).map(|(name, _)| name.clone()));
        }
    }

    /// Forgets clients that were idle for longer than the affinity timeout, about a thousand for each service
    /// port. To be called once a second. Their entries are void already; this frees the memory if no new
    /// clients come.
    pub fn expire_affinity(&mut self, now: Instant) {
        let services = &self.services;
        self.with_affinity.retain(|name| {
            let ports = services.get(name).into_iter().flat_map(|state| state.ports.values());
            ports.filter(|state| state.port.expire_affinity(now)).count() > 0
        });
    }

    /// From now on, records which service ports change, for [`Writer::take_changed`].
    pub fn follow_changes(&mut self) {
        self.changed.get_or_insert_default();
    }

    /// The service ports whose endpoints or rules have changed since the last call. To be called after
    /// changes were applied; the list grows until it is taken.
    pub fn take_changed(&mut self) -> Vec<Arc<ServicePort>> {
        self.changed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All notices that hold now, whether or not a plan has returned them before.
    pub fn standing_notices(&self) -> impl Iterator<Item = &Notice> {
        let conflicts = self.conflicts.values().flat_map(Conflicts::standing);
        conflicts.chain(self.services.values().flat_map(ServiceState::notices))
    }

    /// The work done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    fn apply_service(&mut self, service: Service) {
        let name = service.name.clone();
        let state = self.services.entry(name.clone()).or_default();
        if state.service.as_ref() != Some(&service) {
            service.cluster_ips.iter().for_each(|ip| self.cluster_addresses.add(*ip));
            if service.affinity.is_some() {
                self.with_affinity.insert(name.clone());
            }
            let before = state.service.replace(service);
            before.iter().flat_map(|s| &s.cluster_ips).for_each(|ip| self.cluster_addresses.remove(*ip));
            self.refresh_frontends(&name);
        }
    }

    fn delete_service(&mut self, name: &ObjectName) {
        if let Some(state) = self.services.get_mut(name)
            && let Some(service) = state.service.take()
        {
            service.cluster_ips.iter().for_each(|ip| self.cluster_addresses.remove(*ip));
            self.with_affinity.remove(name);
            self.refresh_frontends(name);
        }
    }

    fn apply_slice(&mut self, slice: EndpointSlice) {
        let (name, owner) = (slice.name.clone(), slice.service.clone());
        if self.slice_owners.get(&name).is_some_and(|previous| *previous != owner) {
            self.delete_slice(&name);
        }
        let slices = &mut self.services.entry(owner.clone()).or_default().slices;
        if !slices.get(&name.name).is_some_and(|former| former.says_the_same(&slice)) {
            if let Some(trigger) = slice.last_change
                && self.triggers.len() < TRIGGERS
            {
                let triggers = self.triggers.entry(owner.clone()).or_default();
                if triggers.len() < TRIGGERS_EACH {
                    triggers.push(trigger);
                }
            }
            slices.insert(Arc::clone(&name.name), slice);
            self.slice_owners.insert(name, owner.clone());
            self.stale.insert(owner);
        }
    }

    /// When the endpoint changes that were applied since the last call happened in the cluster, if the slices
    /// say so. The rules are kube-proxy's (`EndpointsChangeTracker`): a slice with no new time does not
    /// count, and neither do a Service's earlier times once one of its slices is deleted, because no slice
    /// says when it was deleted.
    pub fn take_triggers(&mut self) -> Vec<SystemTime> {
        std::mem::take(&mut self.triggers).into_values().flatten().collect()
    }

    fn delete_slice(&mut self, name: &ObjectName) {
        let Some(owner) = self.slice_owners.remove(name) else { return };
        if let Some(state) = self.services.get_mut(&owner) {
            state.slices.remove(&name.name);
            self.triggers.remove(&owner);
            self.stale.insert(owner);
        }
    }

    fn set_node(&mut self, node: Node) {
        let node = Some(match &self.node {
            Some(before) => node.or_as(before),
            None => node,
        });
        if self.node == node {
            return;
        }
        let ports_before = self.node_port_addresses();
        // The part of the Node that the rules depend on.
        let seen = |node: &Option<Node>| {
            let node = node.as_ref();
            let primary = [Family::V4, Family::V6].map(|family| node_ports::primary(node?, family));
            let detected =
                [Family::V4, Family::V6].map(|family| self.config.local_pods.are_detected(family, node));
            (node.and_then(|node| node.zone.clone()), primary, detected)
        };
        let rules_changed = seen(&self.node) != seen(&node);
        self.node = node;
        self.tell_of_local_detectors();
        if self.node_port_addresses() != ports_before {
            self.refresh_all_frontends();
        } else if rules_changed {
            self.stale.extend(self.services.keys().cloned());
        }
    }

    /// The addresses that nodePorts are served on.
    pub fn node_port_addresses(&self) -> Vec<IpAddr> {
        let interfaces: Vec<IpAddr> = self.interfaces.iter().copied().collect();
        let routed: Vec<IpAddr> = self.routed.difference(&self.interfaces).copied().collect();
        self.config.node_port_addresses.addresses(self.node.as_ref(), &interfaces, &routed)
    }

    /// Where to listen for the health checks of Services: at the addresses of nodePorts, and at the
    /// unspecified address for a family in which nodePorts are served on all of the node's addresses
    /// (kube-proxy: `newServiceHealthServer`).
    pub fn health_check_addresses(&self) -> Vec<IpAddr> {
        let interfaces: Vec<IpAddr> = self.interfaces.iter().copied().collect();
        self.config.node_port_addresses.listening(self.node.as_ref(), &interfaces)
    }

    /// Number of Services with nodePorts that are served nowhere, because there is no address for them.
    pub fn services_without_node_port_address(&self) -> usize {
        if !self.node_port_addresses().is_empty() {
            return 0;
        }
        let services = self.services.values().filter_map(|state| state.service.as_ref());
        services.filter(|service| service.ports.iter().any(|port| port.node_port.is_some())).count()
    }

    /// An address of the Node that is in a ServiceCIDR, and the range. Connections to it are dropped like
    /// [those to an address that no Service has](Self::verdict_without_frontend). Always `None` in bind mode,
    /// which drops none.
    pub fn node_address_in_range(&self) -> Option<(IpAddr, IpNet)> {
        if self.config.frontends_lead_back {
            return None;
        }
        let in_range = |ip: &IpAddr| Some((*ip, self.cluster_addresses.range_of(*ip)?));
        self.node.iter().flat_map(|node| &node.addresses).find_map(in_range)
    }

    fn refresh_all_frontends(&mut self) {
        let names: Vec<ObjectName> = self.services.keys().cloned().collect();
        names.iter().for_each(|name| self.refresh_frontends(name));
    }

    /// Updates the endpoints of all Services that changes have affected.
    fn settle(&mut self) {
        let moved = self.cluster_addresses.take_moved();
        self.mark_endpoints_at(&moved);
        for name in std::mem::take(&mut self.stale) {
            self.refresh_endpoints(&name);
            self.forget_if_empty(&name);
        }
    }

    /// Recomputes a Service's frontends; its endpoints have to be recomputed afterwards.
    fn refresh_frontends(&mut self, name: &ObjectName) {
        let node_addresses = self.node_port_addresses();
        let Some(state) = self.services.get_mut(name) else { return };
        let change = state.update_frontends(&node_addresses, &self.affinity_budget);
        for (frontend, claim) in change.dropped {
            self.claims.remove(&frontend, &claim);
            self.dirty.insert(frontend);
        }
        for (frontend, claim) in change.added {
            self.claims.add(frontend, claim);
            self.dirty.insert(frontend);
        }
        self.retiring.extend(change.retired);
        if change.health_check {
            match &state.health_check {
                Some(check) => self.health_checks.insert(name.clone(), Arc::clone(check)),
                None => self.health_checks.remove(name),
            };
        }
        self.work.frontend_runs += 1;
        self.stale.insert(name.clone());
        if change.health_check {
            self.table.set_health_checks(self.health_checks.values().cloned().collect());
        }
    }

    /// Recomputes a Service's endpoints and swaps them in.
    fn refresh_endpoints(&mut self, name: &ObjectName) {
        let Some(state) = self.services.get_mut(name) else { return };
        let around = Surroundings {
            config: &self.config,
            node: self.node.as_ref(),
            interfaces: &self.interfaces,
            cluster_addresses: &self.cluster_addresses,
        };
        let change = state.update_endpoints(around);
        self.dirty.extend(change.verdict_changed);
        self.notices.extend(change.notices);
        self.work.endpoint_runs += 1;
        self.work.endpoints += change.examined as u64;
        self.work.searched += change.searched as u64;
        self.work.swaps += change.swapped.len() as u64;
        if let Some(changed) = &mut self.changed {
            changed.extend(change.swapped);
        }
    }

    /// Whether the writer keeps no object but the Node.
    #[cfg(test)]
    fn is_forgetful(&self) -> bool {
        self.interfaces.is_empty()
            && self.routed.is_empty()
            && self.services.is_empty()
            && self.slice_owners.is_empty()
            && self.claims.is_empty()
            && self.left_out.is_empty()
            && self.cluster_addresses.is_empty()
            && self.health_checks.is_empty()
            && self.with_affinity.is_empty()
            && self.stale.is_empty()
            && self.dirty.is_empty()
            && self.retiring.is_empty()
            && self.offered.is_empty()
            && self.conflicts.is_empty()
            && self.notices.is_empty()
    }

    fn forget_if_empty(&mut self, name: &ObjectName) {
        if self.services.get(name).is_some_and(ServiceState::is_empty) {
            self.services.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
