//! A service port as readers see it: who it is, and the current version of its endpoints.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use sluice_model::{Family, FrontendKind, ServicePortName, TrafficPolicy};

use crate::Upstream;
use crate::rotation::{self, Rotation};
use crate::selection::Origin;

/// One family's half of a service port. Lives from the first frontend that leads to it until the
/// Service or the port goes away; endpoint changes swap [`Backends`] inside it.
#[derive(Debug)]
pub struct ServicePort {
    name: ServicePortName,
    family: Family,
    backends: ArcSwap<Backends>,
    rotations: [Rotation; 2],
}

/// One version of a service port's endpoints and of the policies that choose among them.
#[derive(Debug, Default)]
pub struct Backends {
    pub(crate) cluster: EndpointSet,
    pub(crate) local: EndpointSet,
    pub(crate) internal_policy: TrafficPolicy,
    pub(crate) external_policy: TrafficPolicy,
}

/// Endpoints in the order of their turns.
#[derive(Debug, Default)]
pub struct EndpointSet {
    upstreams: Box<[Arc<Upstream>]>,
    offset: u64,
}

/// Which of the two sets of [`Backends`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetName {
    Cluster,
    Local,
}

/// What happens to a new connection or flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is carried to an endpoint.
    Relay,
    /// It is refused: TCP reset, UDP port unreachable.
    Refuse(Reason),
    /// It is ignored: the client hears nothing.
    Drop(Reason),
}

/// Why a connection is not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No endpoint of the Service is usable anywhere in the cluster.
    NoEndpoints,
    /// The traffic policy is Local and the usable endpoints are all on other nodes.
    NoLocalEndpoints,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoints => "no usable endpoint in the cluster",
            Self::NoLocalEndpoints => "policy Local, and no usable endpoint on this node",
        })
    }
}

impl EndpointSet {
    /// The endpoints, in the order of their turns.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }
}

impl Backends {
    /// Endpoints for traffic policy Cluster.
    pub fn cluster(&self) -> &EndpointSet {
        &self.cluster
    }

    /// Endpoints for traffic policy Local.
    pub fn local(&self) -> &EndpointSet {
        &self.local
    }

    /// What happens to connections to this kind of frontend from this kind of client.
    pub fn verdict(&self, kind: FrontendKind, origin: Origin) -> Verdict {
        self.choose(kind, origin).err().unwrap_or(Verdict::Relay)
    }

    /// The set that serves this kind of client, never an empty one, or the verdict instead.
    ///
    /// Clients inside the node are not bound by `externalTrafficPolicy: Local`: their connections
    /// short-circuit to all endpoints (kube-proxy: `externalPolicyLocal` chains for local traffic).
    pub(crate) fn choose(&self, kind: FrontendKind, origin: Origin) -> Result<SetName, Verdict> {
        let policy = if !kind.is_external() {
            self.internal_policy
        } else if origin.is_inside() {
            TrafficPolicy::Cluster
        } else {
            self.external_policy
        };
        match policy {
            _ if self.cluster.upstreams.is_empty() => Err(Verdict::Refuse(Reason::NoEndpoints)),
            TrafficPolicy::Cluster => Ok(SetName::Cluster),
            TrafficPolicy::Local if self.local.upstreams.is_empty() => {
                Err(Verdict::Drop(Reason::NoLocalEndpoints))
            }
            TrafficPolicy::Local => Ok(SetName::Local),
        }
    }

    pub(crate) fn set(&self, name: SetName) -> &EndpointSet {
        match name {
            SetName::Cluster => &self.cluster,
            SetName::Local => &self.local,
        }
    }
}

impl ServicePort {
    pub(crate) fn new(name: ServicePortName, family: Family) -> Self {
        Self { name, family, backends: ArcSwap::default(), rotations: Default::default() }
    }

    /// Namespace, Service, port and protocol.
    pub fn name(&self) -> &ServicePortName {
        &self.name
    }

    /// The family whose half this is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The current endpoints. The version returned stays as it is; take it anew to see changes.
    pub fn backends(&self) -> Arc<Backends> {
        self.backends.load_full()
    }

    /// Takes the next turn in a set of `backends`, which may be an older version.
    pub(crate) fn turn<'a>(&self, backends: &'a Backends, name: SetName) -> Option<&'a Arc<Upstream>> {
        let set = backends.set(name);
        let turn = self.rotation(name).next();
        set.upstreams.get(rotation::position(turn, set.offset, set.upstreams.len()))
    }

    /// Swaps in new sets, each going on where its rotation stands, and marks who no longer serves.
    pub(crate) fn publish(
        &self,
        cluster: Vec<Arc<Upstream>>,
        local: Vec<Arc<Upstream>>,
        internal_policy: TrafficPolicy,
        external_policy: TrafficPolicy,
    ) {
        let old = self.backends.load();
        let set = |name: SetName, upstreams: Vec<Arc<Upstream>>| {
            let old = old.set(name);
            let addresses = |set: &[Arc<Upstream>]| set.iter().map(|u| u.address()).collect::<Vec<_>>();
            let offset = if addresses(&old.upstreams) == addresses(&upstreams) {
                old.offset
            } else {
                rotation::continue_from(
                    self.rotation(name).peek(),
                    &addresses(&old.upstreams),
                    old.offset,
                    &addresses(&upstreams),
                )
            };
            EndpointSet { upstreams: upstreams.into(), offset }
        };
        let cluster = set(SetName::Cluster, cluster);
        let local = set(SetName::Local, local);
        self.backends.store(Arc::new(Backends { cluster, local, internal_policy, external_policy }));
    }

    fn rotation(&self, name: SetName) -> &Rotation {
        let [cluster, local] = &self.rotations;
        match name {
            SetName::Cluster => cluster,
            SetName::Local => local,
        }
    }
}
