//! Turns changes of claims and verdicts into steps for the capture and the table.

use std::sync::Arc;

use ipnet::IpNet;
use sluice_model::{Frontend, FrontendKind, ServicePortName};

use super::Writer;
use super::port_state::PortState;
use crate::claims::Claim;
use crate::lookup::RouteMap;
use crate::{ClusterAddressChange, FrontendKey, Notice, Origin, Route, ServicePort, Verdict};

/// A frontend as the capture is told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontendState {
    /// The frontend.
    pub frontend: Frontend,
    /// Which field of the Service it comes from.
    pub kind: FrontendKind,
    /// The service port it leads to.
    pub port: ServicePortName,
    /// What happens to connections of this node's pods and processes.
    pub inside: Verdict,
    /// What happens to connections of all other clients.
    pub outside: Verdict,
    /// The only sources to which these verdicts apply; connections from all others are dropped. `None` for
    /// any source. (`loadBalancerSourceRanges`: load-balancer addresses only.)
    pub allowed_sources: Option<Arc<[IpNet]>>,
}

impl FrontendState {
    /// Whether any client is relayed.
    pub fn is_relayed(&self) -> bool {
        self.inside == Verdict::Relay || self.outside == Verdict::Relay
    }
}

/// One coalesced update of the table. See [`Writer`] for the order of its parts.
#[derive(Debug, Default)]
pub struct Plan {
    /// Frontends that no longer exist: to be withdrawn before they are removed from the table.
    pub withdraw: Vec<FrontendState>,
    /// Frontends that are new or have other verdicts: to be offered once they are in the table.
    pub offer: Vec<FrontendState>,
    /// Frontends that now lead to another service port, or are of another kind, whether or not their verdicts
    /// changed.
    pub rerouted: Vec<Frontend>,
    /// Changes of cluster IPs and ServiceCIDRs, for connections that no frontend matches.
    pub cluster_addresses: ClusterAddressChange,
    /// New notices, each reported once.
    pub notices: Vec<Notice>,
    added: Vec<Route>,
    removed: Vec<Frontend>,
    retiring: Vec<PortState>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.withdraw.is_empty()
            && self.offer.is_empty()
            && self.cluster_addresses.is_empty()
            && self.notices.is_empty()
            && self.added.is_empty()
            && self.removed.is_empty()
            && self.retiring.is_empty()
    }
}

impl Writer {
    /// Returns what has to be done about all changes since the last plan.
    pub fn plan(&mut self) -> Plan {
        self.judge_apiservers();
        let mut plan = Plan {
            retiring: std::mem::take(&mut self.retiring),
            notices: std::mem::take(&mut self.notices),
            cluster_addresses: self.cluster_addresses.take_change(),
            ..Plan::default()
        };
        let current = self.table.load();
        for frontend in std::mem::take(&mut self.dirty) {
            self.work.planned += 1;
            plan.notices.extend(self.new_conflicts(frontend));
            let Some((port, kind)) = self.holder_of(&frontend) else {
                plan.withdraw.extend(self.offered.remove(&frontend));
                plan.removed.push(frontend);
                continue;
            };
            let backends = port.load();
            let state = FrontendState {
                frontend,
                kind,
                port: port.name().clone(),
                inside: backends.verdict(kind, Origin::Node),
                outside: backends.verdict(kind, Origin::Outside),
                allowed_sources: backends.allowed_sources(kind).cloned(),
            };
            let is_current = current
                .get(&FrontendKey::from(frontend))
                .is_some_and(|route| Arc::ptr_eq(route.service_port(), &port) && route.kind() == kind);
            if !is_current {
                plan.rerouted.push(frontend);
                plan.added.push(Route::new(frontend, kind, port));
            }
            if self.offered.get(&frontend) != Some(&state) {
                self.offered.insert(frontend, state.clone());
                plan.offer.push(state);
            }
        }
        plan
    }

    /// Adds the plan's new routes to the table. Readers see all of them or none.
    pub fn publish(&mut self, plan: &mut Plan) {
        let added = std::mem::take(&mut plan.added);
        self.swap_routes(added.len(), |map| {
            added
                .into_iter()
                .filter_map(|route| map.insert(route.frontend().into(), Arc::new(route)))
                .collect()
        });
    }

    /// Removes the plan's withdrawn frontends from the table, all at once, and frees what only they needed.
    pub fn finish(&mut self, plan: &mut Plan) {
        let removed = std::mem::take(&mut plan.removed);
        self.swap_routes(removed.len(), |map| {
            removed.iter().filter_map(|frontend| map.remove(&FrontendKey::from(*frontend))).collect()
        });
        plan.retiring.drain(..).for_each(PortState::retire);
    }

    /// Swaps in a map with this number of changes, and retires the routes that were removed.
    fn swap_routes(&mut self, changes: usize, change: impl FnOnce(&mut RouteMap) -> Vec<Arc<Route>>) {
        if changes == 0 {
            return;
        }
        self.work.maps += 1;
        self.work.routes += changes as u64;
        let mut map = (*self.table.load()).clone();
        let replaced = change(&mut map);
        self.table.swap(map);
        replaced.iter().for_each(|route| route.retire());
    }

    /// The service port that a frontend leads to.
    fn holder_of(&self, frontend: &Frontend) -> Option<(Arc<ServicePort>, FrontendKind)> {
        if self.left_out.contains(frontend) {
            return None;
        }
        let claim = self.claims.holder(frontend, |claim| self.leads_somewhere(frontend, claim))?;
        Some((Arc::clone(self.port_of(frontend, claim)?), claim.kind))
    }

    /// The service port that a claim leads to.
    fn port_of(&self, frontend: &Frontend, claim: &Claim) -> Option<&Arc<ServicePort>> {
        self.services.get(&claim.port.service)?.port_of(frontend, claim)
    }

    /// Whether a claim leads to an endpoint for anybody, even if only for clients of this node (kube-proxy:
    /// `hasInternalEndpoints` for a cluster IP, `hasEndpoints` for others).
    pub(super) fn leads_somewhere(&self, frontend: &Frontend, claim: &Claim) -> bool {
        let port = self.port_of(frontend, claim);
        port.is_some_and(|port| port.load().verdict(claim.kind, Origin::Node) == Verdict::Relay)
    }
}
