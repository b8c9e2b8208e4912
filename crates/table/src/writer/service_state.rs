//! What the writer keeps of one Service: the object, its slices, and the service ports made of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice_model::{Family, Frontend, FrontendKind, Protocol, Service, ServicePortName, TrafficPolicy};

use crate::claims::Claim;
use crate::selection::Origin;
use crate::slices::{self, Candidate, Slices};
use crate::topology::{Locality, categorize_endpoints};
use crate::{Notice, ServicePort, Upstream};

/// A port of a Service in one family.
type PortKey = (Arc<str>, Protocol, Family);

/// One Service.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub(super) service: Option<Service>,
    pub(super) slices: Slices,
    pub(super) ports: BTreeMap<PortKey, PortState>,
    frontends: BTreeMap<Frontend, Claim>,
    notices: BTreeSet<Notice>,
}

/// One service port and its endpoints' long-lived halves.
#[derive(Debug)]
pub(super) struct PortState {
    pub(super) port: Arc<ServicePort>,
    upstreams: HashMap<SocketAddr, Arc<Upstream>>,
}

/// What [`ServiceState::update_frontends`] changed.
#[derive(Debug, Default)]
pub(super) struct FrontendChange {
    pub(super) added: Vec<(Frontend, Claim)>,
    pub(super) dropped: Vec<(Frontend, Claim)>,
    pub(super) retired: Vec<PortState>,
}

/// What [`ServiceState::update_endpoints`] changed, beyond the endpoints themselves.
#[derive(Debug, Default)]
pub(super) struct EndpointChange {
    /// Frontends that may be relayed now and were not, or the other way round.
    pub(super) verdict_changed: Vec<Frontend>,
    /// Notices that did not hold before.
    pub(super) notices: Vec<Notice>,
}

impl ServiceState {
    pub(super) fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }

    /// The runtime half of a claim of this Service.
    pub(super) fn port_of(&self, frontend: &Frontend, claim: &Claim) -> Option<&Arc<ServicePort>> {
        let key = (Arc::clone(&claim.port.port), claim.port.protocol, Family::of(frontend.address.ip()));
        self.ports.get(&key).map(|state| &state.port)
    }

    /// Brings frontends and service ports in line with the Service object.
    pub(super) fn update_frontends(&mut self, node_addresses: &[IpAddr]) -> FrontendChange {
        let wanted = match &self.service {
            Some(service) => frontends_of(service, node_addresses),
            None => BTreeMap::new(),
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
        change.retired =
            self.ports.extract_if(.., |key, _| !keys.contains_key(key)).map(|(_, p)| p).collect();
        for (key, name) in keys {
            let family = key.2;
            self.ports.entry(key).or_insert_with(|| PortState {
                port: Arc::new(ServicePort::new(name.clone(), family)),
                upstreams: HashMap::new(),
            });
        }
        self.frontends = wanted;
        change
    }

    /// Brings every service port's endpoints in line with the slices.
    pub(super) fn update_endpoints(&mut self, here: Locality<'_>) -> EndpointChange {
        let Some(service) = &self.service else { return EndpointChange::default() };
        let mut change = EndpointChange::default();
        let mut notices = BTreeSet::new();
        for ((name, protocol, family), state) in &mut self.ports {
            let mut candidates = slices::merge(&self.slices, name, *protocol, *family, here.node);
            candidates.retain(|candidate| {
                let frontend = Frontend { address: candidate.address, protocol: *protocol };
                let is_loop = self.frontends.contains_key(&frontend);
                if is_loop {
                    let port = state.port.name().clone();
                    notices.insert(Notice::Loop { port, endpoint: candidate.address });
                }
                !is_loop
            });
            let verdicts = |port: &ServicePort| {
                let backends = port.backends();
                [(FrontendKind::ClusterIp, Origin::Outside), (FrontendKind::ExternalIp, Origin::Node)]
                    .map(|(kind, origin)| backends.verdict(kind, origin))
                    .into_iter()
                    .chain([backends.verdict(FrontendKind::ExternalIp, Origin::Outside)])
                    .collect::<Vec<_>>()
            };
            let before = verdicts(&state.port);
            state.publish(&candidates, here, service.internal_policy, service.external_policy);
            if verdicts(&state.port) != before {
                let is_ours = |claim: &Claim| claim.port == *state.port.name();
                let is_family = |frontend: &Frontend| Family::of(frontend.address.ip()) == *family;
                change.verdict_changed.extend(
                    self.frontends.iter().filter(|(f, c)| is_family(f) && is_ours(c)).map(|(f, _)| *f),
                );
            }
        }
        change.notices = notices.difference(&self.notices).cloned().collect();
        self.notices = notices;
        change
    }
}

impl PortState {
    /// Swaps in the endpoints that the rules choose, keeping the long-lived half of those that stay.
    fn publish(
        &mut self,
        candidates: &[Candidate<'_>],
        here: Locality<'_>,
        internal_policy: TrafficPolicy,
        external_policy: TrafficPolicy,
    ) {
        let chosen = categorize_endpoints(candidates, |candidate| candidate.endpoint, here);
        let mut upstreams = |set: &[Candidate<'_>]| -> Vec<Arc<Upstream>> {
            set.iter()
                .map(|candidate| {
                    let entry = self.upstreams.entry(candidate.address);
                    Arc::clone(entry.or_insert_with(|| Arc::new(Upstream::new(candidate.address))))
                })
                .collect()
        };
        let (cluster, local) = (upstreams(&chosen.cluster), upstreams(&chosen.local));
        for candidate in candidates {
            if let Some(upstream) = self.upstreams.get(&candidate.address) {
                upstream.set_serving(candidate.endpoint.ready || candidate.endpoint.serving);
            }
        }
        self.port.publish(cluster, local, internal_policy, external_policy);
        self.upstreams.retain(|address, upstream| {
            let stays = candidates.binary_search_by_key(address, |candidate| candidate.address).is_ok();
            if !stays {
                upstream.set_serving(false);
            }
            stays
        });
    }

    /// Takes every endpoint away: the service port is gone.
    pub(super) fn retire(mut self) {
        let here = Locality { node: "", zone: None };
        self.publish(&[], here, TrafficPolicy::default(), TrafficPolicy::default());
    }
}

/// Every frontend that a Service names. Where it names one twice, the kind that comes first counts.
fn frontends_of(service: &Service, node_addresses: &[IpAddr]) -> BTreeMap<Frontend, Claim> {
    let mut frontends = BTreeMap::new();
    for port in &service.ports {
        let name = ServicePortName {
            service: service.name.clone(),
            port: Arc::clone(&port.name),
            protocol: port.protocol,
        };
        let mut add = |kind, addresses: &[IpAddr], number| {
            for ip in addresses {
                let frontend = Frontend::new(*ip, number, port.protocol);
                let claim = Claim { created: service.created, port: name.clone(), kind };
                frontends.entry(frontend).or_insert(claim);
            }
        };
        add(FrontendKind::ClusterIp, &service.cluster_ips, port.port);
        add(FrontendKind::ExternalIp, &service.external_ips, port.port);
        add(FrontendKind::LoadBalancer, &service.load_balancer_ips, port.port);
        if let Some(number) = port.node_port {
            add(FrontendKind::NodePort, node_addresses, number);
        }
    }
    frontends
}
