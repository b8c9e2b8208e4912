//! The writer's state of one Service: the object, its slices, and its service ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use litemap::LiteMap;
use sluice_model::{Family, Frontend, Protocol, Service, ServicePortName};

use super::frontends::frontends_of;
use super::port_state::PortState;
use super::rules::{self, Surroundings};
use crate::affinity::Budget;
use crate::backends::PortRules;
use crate::claims::Claim;
use crate::slices::{Candidate, Offers, Slices};
use crate::{HealthCheck, Notice, ServicePort};

/// A port of a Service in one family.
type PortKey = (Arc<str>, Protocol, Family);

/// One Service. Its maps are sorted lists, because most have a single entry and there is one of each for
/// every Service.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub(super) service: Option<Service>,
    pub(super) slices: Slices,
    pub(super) ports: LiteMap<PortKey, PortState>,
    pub(super) health_check: Option<Arc<HealthCheck>>,
    frontends: LiteMap<Frontend, Claim>,
    notices: BTreeSet<Notice>,
    /// Number of connections that count against the Service's limit.
    used_connections: Arc<AtomicU32>,
}

/// What [`ServiceState::update_frontends`] changed.
#[derive(Debug, Default)]
pub(super) struct FrontendChange {
    pub(super) added: Vec<(Frontend, Claim)>,
    pub(super) dropped: Vec<(Frontend, Claim)>,
    pub(super) retired: Vec<PortState>,
    /// Whether the health check port came, went or moved.
    pub(super) health_check: bool,
}

/// What [`ServiceState::update_endpoints`] changed, beyond the endpoints themselves.
#[derive(Debug, Default)]
pub(super) struct EndpointChange {
    /// Frontends whose verdicts may have changed.
    pub(super) verdict_changed: Vec<Frontend>,
    /// Notices that are new.
    pub(super) notices: Vec<Notice>,
    /// Number of endpoints examined.
    pub(super) examined: usize,
    /// Number of slices' ports and of frontends that were searched.
    pub(super) searched: usize,
    /// Service ports that changed.
    pub(super) swapped: Vec<Arc<ServicePort>>,
}

impl ServiceState {
    /// The notices about the Service, while the object exists.
    pub(super) fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.notices.iter().filter(|_| self.service.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }

    /// Whether a slice has an endpoint with one of these addresses.
    pub(super) fn has_endpoint_at(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let mut endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| addresses.contains(&endpoint.address))
    }

    /// The shared half of the service port that a claim of this Service leads to.
    pub(super) fn port_of(&self, frontend: &Frontend, claim: &Claim) -> Option<&Arc<ServicePort>> {
        let key = (Arc::clone(&claim.port.port), claim.port.protocol, Family::of(frontend.address.ip()));
        self.ports.get(&key).map(|state| &state.port)
    }

    /// Updates frontends, service ports and the health check port from the Service object.
    pub(super) fn update_frontends(
        &mut self,
        node_addresses: &[IpAddr],
        affinity_budget: &Arc<Budget>,
    ) -> FrontendChange {
        let wanted: LiteMap<Frontend, Claim> = match &self.service {
            Some(service) => frontends_of(service, node_addresses).into_iter().collect(),
            None => LiteMap::new(),
        };
        let mut change = FrontendChange::default();
        for (frontend, claim) in &self.frontends {
            if wanted.get(frontend) != Some(claim) {
                change.dropped.push((*frontend, claim.clone()));
            }
        }
        for (frontend, claim) in &wanted {
            if self.frontends.get(frontend) != Some(claim) {
                change.added.push((*frontend, claim.clone()));
            }
        }
        let keys: BTreeMap<PortKey, &ServicePortName> = wanted
            .iter()
            .map(|(frontend, claim)| {
                let family = Family::of(frontend.address.ip());
                ((Arc::clone(&claim.port.port), claim.port.protocol, family), &claim.port)
            })
            .collect();
        // Both are sorted and there may be thousands, so they are merged side by side.
        let mut before = std::mem::take(&mut self.ports).into_iter().peekable();
        for (key, name) in keys {
            while let Some((_, gone)) = before.next_if(|(known, _)| *known < key) {
                change.retired.push(gone);
            }
            let known = before.next_if(|(known, _)| *known == key).map(|(_, state)| state);
            let state = known.unwrap_or_else(|| {
                PortState::new(ServicePort::new(name.clone(), key.2, Arc::clone(affinity_budget)))
            });
            self.ports.insert(key, state);
        }
        change.retired.extend(before.map(|(_, gone)| gone));
        self.frontends = wanted;
        change.health_check = self.update_health_check();
        change
    }

    /// Updates the health check port. Returns whether it came, went, or moved to another port or other
    /// families.
    fn update_health_check(&mut self) -> bool {
        let wanted = self.service.as_ref().and_then(|service| {
            let families: BTreeSet<Family> = service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
            Some((service.name.clone(), service.health_check_node_port?, families))
        });
        let is_so = match (&wanted, &self.health_check) {
            (Some((_, port, families)), Some(check)) => *port == check.port() && families == check.families(),
            (wanted, check) => wanted.is_none() && check.is_none(),
        };
        if !is_so {
            self.health_check =
                wanted.map(|(service, port, families)| Arc::new(HealthCheck::new(service, port, families)));
        }
        !is_so
    }

    /// Updates every service port's endpoints and rules from the objects.
    pub(super) fn update_endpoints(&mut self, around: Surroundings<'_>) -> EndpointChange {
        let Some(service) = &self.service else { return EndpointChange::default() };
        let mut change = EndpointChange::default();
        let mut notices = BTreeSet::new();
        if let Err(value) = rules::balance(service) {
            notices.insert(Notice::unknown_balance(service.name.clone(), value));
        }
        let unknown = rules::unknown_annotations(service);
        notices.extend(unknown.map(|name| Notice::unknown_annotation(service.name.clone(), name)));
        let here = around.locality();
        let mut local_ready = BTreeSet::new();
        let rules = self.rules(service, around);
        let offers = Offers::new(&self.slices);
        change.searched += offers.count();
        let mut verdict_changed: Vec<PortKey> = Vec::new();
        for (key, state) in &mut self.ports {
            let (name, protocol, family) = key;
            let mut candidates = offers.merge(name, *protocol, *family, here.node);
            change.examined += candidates.len();
            candidates.retain(|candidate| {
                let frontend = Frontend { address: candidate.address, protocol: *protocol };
                let is_loop = around.config.frontends_lead_back && self.frontends.contains_key(&frontend);
                if is_loop {
                    let port = state.port.name().clone();
                    notices.insert(Notice::Loop { port, endpoint: candidate.address });
                }
                let is_refused = around.refuses(candidate.address.ip());
                if is_refused {
                    let port = state.port.name().clone();
                    notices.insert(Notice::ClusterIpEndpoint { port, endpoint: candidate.address });
                }
                !is_loop && !is_refused
            });
            if self.health_check.is_some() {
                let is_counted = |c: &&Candidate<'_>| c.endpoint.ready && here.is_local(c.endpoint);
                local_ready.extend(candidates.iter().filter(is_counted).map(|c| c.address.ip()));
            }
            let before = state.verdicts();
            let [v4, v6] = &rules;
            let rules = if *family == Family::V4 { v4 } else { v6 }.clone();
            if state.publish(&candidates, here, |ip| around.has_process_at(ip), rules) {
                change.swapped.push(Arc::clone(&state.port));
            }
            if state.verdicts() != before {
                verdict_changed.push(key.clone());
            }
        }
        if !verdict_changed.is_empty() {
            change.searched += self.frontends.len();
            change.verdict_changed = self.leading_to(&verdict_changed);
        }
        if let Some(check) = &self.health_check {
            for family in [Family::V4, Family::V6] {
                check.set(family, local_ready.iter().filter(|ip| Family::of(**ip) == family).count());
            }
        }
        change.notices = notices.difference(&self.notices).cloned().collect();
        self.notices = notices;
        change
    }

    /// The rules for each family. They are computed once for all ports, because there may be thousands of
    /// ports, and as many ranges.
    fn rules(&self, service: &Service, around: Surroundings<'_>) -> [PortRules; 2] {
        [Family::V4, Family::V6].map(|family| {
            let of_family = self.ports.iter().find(|((_, _, of), _)| *of == family);
            let before = of_family.and_then(|(_, state)| state.port.load().rules.allowed_sources.clone());
            around.rules(service, family, &self.used_connections).keeping(before)
        })
    }

    /// The frontends that lead to these ports, which are sorted.
    fn leading_to(&self, ports: &[PortKey]) -> Vec<Frontend> {
        let is_theirs = |(frontend, claim): &(&Frontend, &Claim)| {
            let port = (&*claim.port.port, claim.port.protocol, Family::of(frontend.address.ip()));
            ports
                .binary_search_by(|(name, protocol, family)| (&**name, *protocol, *family).cmp(&port))
                .is_ok()
        };
        self.frontends.iter().filter(is_theirs).map(|(frontend, _)| *frontend).collect()
    }
}
