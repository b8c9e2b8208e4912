//! The one writer of the table: keeps the objects, works out what a change touches, publishes it.
//!
//! Endpoints take effect at once ([`Writer::apply`] swaps them inside their service port). Frontends
//! need the kernel's help, so they go in two steps that the caller interleaves with its capture:
//!
//! 1. [`Writer::plan`] says which frontends are to be withdrawn and which to be offered;
//! 2. the capture withdraws, [`Writer::publish`] swaps the map, the capture offers.
//!
//! So a client never reaches a worker that has no route for it.

mod config;
mod plan;
mod service_state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_model::{Change, EndpointSlice, Family, Frontend, Node, Object, ObjectName, ObjectRef, Service};

pub use config::{NodePortAddresses, WriterConfig};
pub use plan::{FrontendState, Plan};
use service_state::{PortState, ServiceState};

use crate::claims::Claims;
use crate::topology::Locality;
use crate::{Notice, Table};

/// Owns the objects; the only one who changes the [`Table`].
#[derive(Debug)]
pub struct Writer {
    config: WriterConfig,
    table: Table,
    node: Option<Node>,
    services: HashMap<ObjectName, ServiceState>,
    /// Which Service each slice was last seen with: its label may change.
    slice_owners: HashMap<ObjectName, ObjectName>,
    claims: Claims,
    /// Frontends whose route, verdict or claims may have changed since the last plan.
    dirty: BTreeSet<Frontend>,
    /// Service ports that are gone from the objects but still in the table.
    retiring: Vec<PortState>,
    /// What the capture was last told.
    offered: HashMap<Frontend, FrontendState>,
    conflicts: BTreeMap<Frontend, Vec<Notice>>,
    notices: Vec<Notice>,
}

impl Writer {
    /// A writer of a new, empty table.
    pub fn new(config: WriterConfig) -> Self {
        Self {
            config,
            table: Table::default(),
            node: None,
            services: HashMap::new(),
            slice_owners: HashMap::new(),
            claims: Claims::default(),
            dirty: BTreeSet::new(),
            retiring: Vec::new(),
            offered: HashMap::new(),
            conflicts: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// The table, to be shared with readers.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Takes a change in. Endpoints of frontends that are already offered change at once; anything
    /// about the frontends themselves waits for [`plan`](Self::plan).
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Apply(Object::Service(service)) => self.apply_service(service),
            Change::Apply(Object::EndpointSlice(slice)) => self.apply_slice(slice),
            Change::Apply(Object::Node(node)) if node.name == self.config.node => self.set_node(Some(node)),
            Change::Apply(Object::Node(_) | Object::ServiceCidr(_)) => {}
            Change::Delete(ObjectRef::Service(name)) => self.delete_service(&name),
            Change::Delete(ObjectRef::EndpointSlice(name)) => self.delete_slice(&name),
            Change::Delete(ObjectRef::Node(name)) if name == self.config.node => self.set_node(None),
            Change::Delete(ObjectRef::Node(_) | ObjectRef::ServiceCidr(_)) => {}
        }
    }

    fn apply_service(&mut self, service: Service) {
        let name = service.name.clone();
        let state = self.services.entry(name.clone()).or_default();
        if state.service.as_ref() != Some(&service) {
            state.service = Some(service);
            self.refresh_frontends(&name);
        }
    }

    fn delete_service(&mut self, name: &ObjectName) {
        if let Some(state) = self.services.get_mut(name)
            && state.service.take().is_some()
        {
            self.refresh_frontends(name);
            self.forget_if_empty(name);
        }
    }

    fn apply_slice(&mut self, slice: EndpointSlice) {
        let (name, owner) = (slice.name.clone(), slice.service.clone());
        if self.slice_owners.get(&name).is_some_and(|previous| *previous != owner) {
            self.delete_slice(&name);
        }
        let slices = &mut self.services.entry(owner.clone()).or_default().slices;
        if slices.get(&name.name) != Some(&slice) {
            slices.insert(Arc::clone(&name.name), slice);
            self.slice_owners.insert(name, owner.clone());
            self.refresh_endpoints(&owner);
        }
    }

    fn delete_slice(&mut self, name: &ObjectName) {
        let Some(owner) = self.slice_owners.remove(name) else { return };
        if let Some(state) = self.services.get_mut(&owner) {
            state.slices.remove(&name.name);
            self.refresh_endpoints(&owner);
            self.forget_if_empty(&owner);
        }
    }

    fn set_node(&mut self, node: Option<Node>) {
        if self.node == node {
            return;
        }
        let ports_before = self.node_port_addresses();
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.clone());
        let zone_changed = zone(&self.node) != zone(&node);
        self.node = node;
        let names: Vec<ObjectName> = self.services.keys().cloned().collect();
        if self.node_port_addresses() != ports_before {
            names.iter().for_each(|name| self.refresh_frontends(name));
        } else if zone_changed {
            names.iter().for_each(|name| self.refresh_endpoints(name));
        }
    }

    /// The addresses that nodePorts are served on.
    fn node_port_addresses(&self) -> Vec<IpAddr> {
        match (&self.config.node_port_addresses, &self.node) {
            (NodePortAddresses::Listed(addresses), _) => addresses.clone(),
            (NodePortAddresses::Primary, None) => Vec::new(),
            (NodePortAddresses::Primary, Some(node)) => [Family::V4, Family::V6]
                .into_iter()
                .filter_map(|family| node.addresses.iter().find(|ip| Family::of(**ip) == family).copied())
                .collect(),
        }
    }

    /// Works out a Service's frontends anew, then its endpoints.
    fn refresh_frontends(&mut self, name: &ObjectName) {
        let node_addresses = self.node_port_addresses();
        let Some(state) = self.services.get_mut(name) else { return };
        let change = state.update_frontends(&node_addresses);
        for (frontend, claim) in change.dropped {
            self.claims.remove(&frontend, &claim);
            self.dirty.insert(frontend);
        }
        for (frontend, claim) in change.added {
            self.claims.add(frontend, claim);
            self.dirty.insert(frontend);
        }
        self.retiring.extend(change.retired);
        self.refresh_endpoints(name);
    }

    /// Works out a Service's endpoints anew and swaps them in.
    fn refresh_endpoints(&mut self, name: &ObjectName) {
        let zone = self.node.as_ref().and_then(|node| node.zone.clone());
        let here = Locality { node: &self.config.node, zone: zone.as_deref() };
        let Some(state) = self.services.get_mut(name) else { return };
        let change = state.update_endpoints(here);
        self.dirty.extend(change.verdict_changed);
        self.notices.extend(change.notices);
    }

    fn forget_if_empty(&mut self, name: &ObjectName) {
        if self.services.get(name).is_some_and(ServiceState::is_empty) {
            self.services.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
