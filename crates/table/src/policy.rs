//! Traffic policies: which set of endpoints serves a client, or the verdict if none does.

use sluice_model::{FrontendKind, TrafficPolicy};

use crate::{Origin, Reason, Verdict};

/// One of a service port's two sets of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetName {
    /// For traffic policy Cluster.
    Cluster,
    /// For traffic policy Local.
    Local,
}

impl SetName {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Cluster => Self::Local,
            Self::Local => Self::Cluster,
        }
    }
}

/// The two policies of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Policies {
    pub(crate) internal: TrafficPolicy,
    pub(crate) external: TrafficPolicy,
}

/// Which sets have an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usable {
    /// False only if no endpoint of the whole cluster is usable.
    pub(crate) cluster: bool,
    pub(crate) local: bool,
}

impl Policies {
    /// The policy that applies to this client at this kind of frontend.
    ///
    /// `externalTrafficPolicy: Local` does not apply to clients on the node. They short-circuit to all
    /// endpoints, as if their connections had gone out to the load balancer and come back (kube-proxy: the
    /// `external-` chain of a service port).
    pub(crate) fn binding(self, kind: FrontendKind, origin: Origin) -> TrafficPolicy {
        match (kind.is_external(), origin.is_inside()) {
            (false, _) => self.internal,
            (true, true) => TrafficPolicy::Cluster,
            (true, false) => self.external,
        }
    }

    /// Whether the same client may be served by either set. External policy Local alone is enough, because it
    /// does not apply inside the node.
    pub(crate) fn use_both_sets(self) -> bool {
        self.internal != self.external || self.external == TrafficPolicy::Local
    }

    /// The set that serves this client, which is never empty.
    pub(crate) fn choose(self, kind: FrontendKind, origin: Origin, has: Usable) -> Result<SetName, Verdict> {
        match self.binding(kind, origin) {
            _ if !has.cluster => Err(Verdict::Refuse(Reason::NoEndpoints)),
            TrafficPolicy::Cluster => Ok(SetName::Cluster),
            TrafficPolicy::Local if has.local => Ok(SetName::Local),
            TrafficPolicy::Local => Err(Verdict::Drop(Reason::NoLocalEndpoints)),
        }
    }
}

#[cfg(test)]
mod tests {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    use Origin::{LocalPod, Node, Outside};

    use super::*;

    const CLUSTER: Result<SetName, Verdict> = Ok(SetName::Cluster);
    const LOCAL: Result<SetName, Verdict> = Ok(SetName::Local);
    const REFUSED: Result<SetName, Verdict> = Err(Verdict::Refuse(Reason::NoEndpoints));
    const DROPPED: Result<SetName, Verdict> = Err(Verdict::Drop(Reason::NoLocalEndpoints));

    /// Name of the case, policies (`internal external`), where endpoints are, kind of frontend,
    /// client, outcome.
    type Case = (&'static str, &'static str, &'static str, FrontendKind, Origin, Result<SetName, Verdict>);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("internal Cluster: a pod reaches all",                  "Cluster Cluster", "here+there", ClusterIp, LocalPod, CLUSTER),
        ("internal Cluster: the node reaches all",               "Cluster Cluster", "here+there", ClusterIp, Node, CLUSTER),
        ("internal Cluster: outside reaches all",                "Cluster Cluster", "here+there", ClusterIp, Outside, CLUSTER),
        ("internal Cluster: endpoints elsewhere are enough",     "Cluster Cluster", "there", ClusterIp, LocalPod, CLUSTER),
        ("internal Cluster: no endpoint is refused",             "Cluster Cluster", "", ClusterIp, LocalPod, REFUSED),
        ("internal Local: a pod reaches local ones",             "Local Cluster", "here+there", ClusterIp, LocalPod, LOCAL),
        ("internal Local: the node reaches local ones",          "Local Cluster", "here+there", ClusterIp, Node, LOCAL),
        ("internal Local: outside reaches local ones",           "Local Cluster", "here+there", ClusterIp, Outside, LOCAL),
        ("internal Local: no short circuit for a pod",           "Local Cluster", "there", ClusterIp, LocalPod, DROPPED),
        ("internal Local: no short circuit for the node",        "Local Cluster", "there", ClusterIp, Node, DROPPED),
        ("internal Local: outside without local ones: silence",  "Local Cluster", "there", ClusterIp, Outside, DROPPED),
        ("internal Local: no endpoint anywhere is refused",      "Local Cluster", "", ClusterIp, LocalPod, REFUSED),
        ("internal Local leaves external addresses alone",       "Local Cluster", "there", NodePort, Outside, CLUSTER),
        ("external Cluster: outside reaches all",                "Cluster Cluster", "here+there", LoadBalancer, Outside, CLUSTER),
        ("external Cluster: endpoints elsewhere are enough",     "Cluster Cluster", "there", NodePort, Outside, CLUSTER),
        ("external Cluster: no endpoint is refused",             "Cluster Cluster", "", ExternalIp, Outside, REFUSED),
        ("external Local: outside reaches local ones (nodePort)",     "Cluster Local", "here+there", NodePort, Outside, LOCAL),
        ("external Local: outside reaches local ones (externalIP)",   "Cluster Local", "here+there", ExternalIp, Outside, LOCAL),
        ("external Local: outside reaches local ones (loadBalancer)", "Cluster Local", "here+there", LoadBalancer, Outside, LOCAL),
        ("external Local: outside without local ones: silence (nodePort)",     "Cluster Local", "there", NodePort, Outside, DROPPED),
        ("external Local: outside without local ones: silence (externalIP)",   "Cluster Local", "there", ExternalIp, Outside, DROPPED),
        ("external Local: outside without local ones: silence (loadBalancer)", "Cluster Local", "there", LoadBalancer, Outside, DROPPED),
        ("external Local: a pod short-circuits to all",          "Cluster Local", "here+there", LoadBalancer, LocalPod, CLUSTER),
        ("external Local: a pod short-circuits to others",       "Cluster Local", "there", LoadBalancer, LocalPod, CLUSTER),
        ("external Local: the node short-circuits to all",       "Cluster Local", "here+there", NodePort, Node, CLUSTER),
        ("external Local: the node short-circuits to others",    "Cluster Local", "there", NodePort, Node, CLUSTER),
        ("external Local: no endpoint is refused outside",       "Cluster Local", "", NodePort, Outside, REFUSED),
        ("external Local: no endpoint is refused inside",        "Cluster Local", "", NodePort, LocalPod, REFUSED),
        ("external Local leaves cluster IPs alone",              "Cluster Local", "there", ClusterIp, LocalPod, CLUSTER),
        ("both Local: a short circuit ignores the internal one", "Local Local", "there", ExternalIp, LocalPod, CLUSTER),
        ("both Local: cluster IPs follow the internal one",      "Local Local", "there", ClusterIp, LocalPod, DROPPED),
        ("only draining local ones left count as local",         "Cluster Local", "here+there", NodePort, Outside, LOCAL),
    ];

    #[test]
    fn cases() {
        for (name, policies, endpoints, kind, origin, wanted) in CASES {
            let policy = |text| match text {
                Some("Local") => TrafficPolicy::Local,
                _ => TrafficPolicy::Cluster,
            };
            let mut words = policies.split(' ');
            let policies = Policies { internal: policy(words.next()), external: policy(words.next()) };
            let has = Usable { cluster: !endpoints.is_empty(), local: endpoints.contains("here+") };
            assert_eq!(policies.choose(*kind, *origin, has), *wanted, "{name}");
        }
    }
}
