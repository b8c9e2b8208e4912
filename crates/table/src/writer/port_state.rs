//! The writer's state of one service port: the half that readers share, and how it is updated.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_model::{Endpoint, FrontendKind};

use crate::backends::{Facts, PortRules};
use crate::slices::Candidate;
use crate::topology::{Locality, categorize_endpoints};
use crate::{Condition, Origin, ServicePort, Upstream, Verdict};

/// One service port.
#[derive(Debug)]
pub(super) struct PortState {
    pub(super) port: Arc<ServicePort>,
}

/// What the capture has to know about a service port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    internal: Verdict,
    external_inside: Verdict,
    external_outside: Verdict,
    allowed_sources: Option<Arc<[IpNet]>>,
}

impl PortState {
    pub(super) fn new(port: ServicePort) -> Self {
        Self { port: Arc::new(port) }
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

    /// Swaps in the endpoints that the rules choose. Endpoints that stay keep their long-lived state. Returns
    /// whether anything changed, including an endpoint in no set that stopped serving. `candidates` are
    /// sorted by address; `is_own` says which addresses are this node's.
    pub(super) fn publish(
        &self,
        candidates: &[Candidate<'_>],
        here: Locality<'_>,
        is_own: impl Fn(IpAddr) -> bool,
        rules: PortRules,
    ) -> bool {
        let mut roster = self.port.roster();
        let gone =
            roster.take_over(self.port.shared_name(), candidates.iter().map(|candidate| candidate.address));
        let items: Vec<(&Endpoint, &Arc<Upstream>)> =
            candidates.iter().map(|candidate| candidate.endpoint).zip(roster.current()).collect();
        let chosen = categorize_endpoints(&items, |(endpoint, _)| endpoint, here);
        let mut has_lost = !gone.is_empty();
        for (endpoint, upstream) in &items {
            let condition = Condition::new(endpoint, here.is_local(endpoint));
            has_lost |= upstream.is_serving() && !condition.serving;
            upstream.set_condition(condition);
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
        // Last, so that a flow that has to choose again finds the new endpoints.
        roster.retire(gone);
        if has_lost {
            self.port.note_lost();
        }
        changed || has_lost
    }

    /// Removes all endpoints, because the service port is gone.
    pub(super) fn retire(self) {
        self.publish(&[], Locality { node: "", zone: None }, |_| false, PortRules::default());
    }
}
