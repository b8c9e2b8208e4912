//! How many service ports have no endpoint that their traffic policy allows on this node, for a metric.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_model::{Family, TrafficPolicy};

use crate::{Route, Table};

/// Service ports with traffic policy Local whose endpoints are all on other nodes, so that their traffic is
/// dropped. Service ports without any endpoint do not count, as in kube-proxy
/// (`SyncProxyRulesNoLocalEndpointsTotal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WithoutLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl Table {
    /// The current counts of a family. Visits every route, for some nanoseconds each.
    pub fn without_local_endpoints(&self, family: Family) -> WithoutLocal {
        count(self.load().values(), family)
    }
}

fn count<'a>(routes: impl Iterator<Item = &'a Arc<Route>>, family: Family) -> WithoutLocal {
    let (mut seen, mut counts) = (HashSet::new(), WithoutLocal::default());
    for port in routes.map(|route| route.service_port()).filter(|port| port.family() == family) {
        let backends = port.backends();
        if backends.cluster().upstreams().is_empty() || !backends.local().upstreams().is_empty() {
            continue;
        }
        let policies = backends.rules.policies;
        let [internal, external] =
            [policies.internal, policies.external].map(|policy| policy == TrafficPolicy::Local);
        // A service port has a route for each of its frontends.
        if (internal || external) && seen.insert(Arc::as_ptr(port)) {
            counts.internal += usize::from(internal);
            counts.external += usize::from(external);
        }
    }
    counts
}
