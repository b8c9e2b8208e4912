//! What the writer keeps of one service port: its runtime half and its endpoints' long-lived halves.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_model::{Endpoint, FrontendKind};

use crate::backends::{Facts, PortRules};
use crate::slices::Candidate;
use crate::topology::{Locality, categorize_endpoints};
use crate::{Origin, ServicePort, Upstream, Verdict};

/// One service port and its endpoints.
#[derive(Debug)]
pub(super) struct PortState {
    pub(super) port: Arc<ServicePort>,
    /// Every endpoint that the slices name, usable or not; sorted by address.
    upstreams: Vec<Arc<Upstream>>,
}

/// What the capture has to know of a service port's connections.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    internal: Verdict,
    external_inside: Verdict,
    external_outside: Verdict,
    allowed_sources: Option<Arc<[IpNet]>>,
}

impl PortState {
    pub(super) fn new(port: ServicePort) -> Self {
        Self { port: Arc::new(port), upstreams: Vec::new() }
    }

    pub(super) fn verdicts(&self) -> Verdicts {
        let backends = self.port.load();
        Verdicts {
            internal: backends.verdict(FrontendKind::ClusterIp, Origin::Outside),
            external_inside: backends.verdict(FrontendKind::ExternalIp, Origin::Node),
            external_outside: backends.verdict(FrontendKind::ExternalIp, Origin::Outside),
            allowed_sources: backends.rules.allowed_sources.clone(),
        }
    }

    /// Swaps in the endpoints that the rules choose, keeping the long-lived half of those that stay;
    /// whether anything changed. `candidates` are sorted by address; `is_own` says which addresses are this node's.
    pub(super) fn publish(
        &mut self,
        candidates: &[Candidate<'_>],
        here: Locality<'_>,
        is_own: impl Fn(IpAddr) -> bool,
        rules: PortRules,
    ) -> bool {
        let left = self.take_over(candidates);
        let items: Vec<(&Endpoint, &Arc<Upstream>)> =
            candidates.iter().map(|candidate| candidate.endpoint).zip(&self.upstreams).collect();
        let chosen = categorize_endpoints(&items, |(endpoint, _)| endpoint, here);
        for (endpoint, upstream) in &items {
            upstream.set_serving(endpoint.ready || endpoint.serving);
            upstream.set_in_node_network(is_own(upstream.address().ip()));
        }
        let upstreams = |set: Vec<(&Endpoint, &Arc<Upstream>)>| -> Vec<Arc<Upstream>> {
            set.into_iter().map(|(_, upstream)| Arc::clone(upstream)).collect()
        };
        let facts = Facts {
            cluster_basis: chosen.cluster_basis,
            local_basis: chosen.local_basis,
            tally: chosen.tally,
        };
        let changed = self.port.publish(upstreams(chosen.cluster), upstreams(chosen.local), facts, rules);
        // Last, so that a flow that is decided afresh finds the new endpoints.
        left.iter().for_each(|upstream| upstream.set_serving(false));
        changed
    }

    /// Takes every endpoint away: the service port is gone.
    pub(super) fn retire(mut self) {
        self.publish(&[], Locality { node: "", zone: None }, |_| false, PortRules::default());
    }

    /// Makes `upstreams` stand for `candidates`, one by one. Returns those that are gone.
    fn take_over(&mut self, candidates: &[Candidate<'_>]) -> Vec<Arc<Upstream>> {
        let mut left = Vec::new();
        let mut old = std::mem::take(&mut self.upstreams).into_iter().peekable();
        self.upstreams = candidates
            .iter()
            .map(|candidate| {
                while let Some(gone) = old.next_if(|upstream| upstream.address() < candidate.address) {
                    left.push(gone);
                }
                old.next_if(|upstream| upstream.address() == candidate.address)
                    .unwrap_or_else(|| Arc::new(Upstream::new(candidate.address)))
            })
            .collect();
        left.extend(old);
        left
    }
}
