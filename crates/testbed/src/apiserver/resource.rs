//! The resources, and their properties.

use std::fmt;

/// A resource of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `v1` Namespaces. `default` and `kube-system` exist from the start.
    Namespaces,
    /// `v1` Nodes.
    Nodes,
    /// `v1` Pods.
    Pods,
    /// `v1` Services.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlices.
    EndpointSlices,
    /// `networking.k8s.io/v1` ServiceCIDRs. `kubernetes` exists from the start.
    ServiceCidrs,
    /// `v1` Events: accepted and dropped.
    CoreEvents,
    /// `events.k8s.io/v1` Events. In a real cluster the core ones are the same objects; here they are not.
    Events,
}

/// The discovery information of a resource, and its special features.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// Whether it has a `/status` subresource.
    pub(crate) status: bool,
    /// Fields that field selectors may use besides `metadata.name` and `metadata.namespace`.
    pub(crate) fields: &'static [&'static str],
}

impl Resource {
    /// All of them, in the order in which discovery lists them.
    pub const ALL: [Self; 8] = [
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::Services,
        Self::CoreEvents,
        Self::EndpointSlices,
        Self::Events,
        Self::ServiceCidrs,
    ];

    /// The resource behind a path such as `/apis/GROUP/VERSION/PLURAL`; the group of `/api/v1` is "".
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| {
            let info = resource.info();
            (info.group, info.version, info.plural) == (group, version, plural)
        })
    }

    /// `v1` or `GROUP/VERSION`.
    pub fn api_version(self) -> String {
        let info = self.info();
        if info.group.is_empty() {
            info.version.to_owned()
        } else {
            format!("{}/{}", info.group, info.version)
        }
    }

    /// `Service`, `EndpointSlice` and so on.
    pub fn kind(self) -> &'static str {
        self.info().kind
    }

    /// Whether objects of this resource are in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.info().namespaced
    }

    /// Whether objects of this resource are stored.
    pub(crate) fn is_stored(self) -> bool {
        self != Self::CoreEvents
    }

    /// The name in error messages, such as `services` or `endpointslices.discovery.k8s.io`.
    pub(crate) fn qualified(self) -> String {
        let info = self.info();
        match info.group {
            "" => info.plural.to_owned(),
            group => format!("{}.{group}", info.plural),
        }
    }

    pub(crate) fn info(self) -> &'static Info {
        match self {
            Self::Namespaces => &NAMESPACES,
            Self::Nodes => &NODES,
            Self::Pods => &PODS,
            Self::Services => &SERVICES,
            Self::EndpointSlices => &ENDPOINT_SLICES,
            Self::ServiceCidrs => &SERVICE_CIDRS,
            Self::CoreEvents => &CORE_EVENTS,
            Self::Events => &EVENTS,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().plural)
    }
}

static NAMESPACES: Info = Info {
    group: "",
    version: "v1",
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    short_names: &["ns"],
    namespaced: false,
    status: true,
    fields: &["status.phase"],
};

static NODES: Info = Info {
    group: "",
    version: "v1",
    plural: "nodes",
    singular: "node",
    kind: "Node",
    short_names: &["no"],
    namespaced: false,
    status: true,
    fields: &["spec.unschedulable"],
};

static PODS: Info = Info {
    group: "",
    version: "v1",
    plural: "pods",
    singular: "pod",
    kind: "Pod",
    short_names: &["po"],
    namespaced: true,
    status: true,
    fields: &["spec.nodeName", "spec.hostNetwork", "status.phase", "status.podIP"],
};

static SERVICES: Info = Info {
    group: "",
    version: "v1",
    plural: "services",
    singular: "service",
    kind: "Service",
    short_names: &["svc"],
    namespaced: true,
    status: true,
    fields: &["spec.clusterIP", "spec.type"],
};

static ENDPOINT_SLICES: Info = Info {
    group: "discovery.k8s.io",
    version: "v1",
    plural: "endpointslices",
    singular: "endpointslice",
    kind: "EndpointSlice",
    short_names: &[],
    namespaced: true,
    status: false,
    fields: &[],
};

static SERVICE_CIDRS: Info = Info {
    group: "networking.k8s.io",
    version: "v1",
    plural: "servicecidrs",
    singular: "servicecidr",
    kind: "ServiceCIDR",
    short_names: &[],
    namespaced: false,
    status: true,
    fields: &[],
};

static CORE_EVENTS: Info = Info {
    group: "",
    version: "v1",
    plural: "events",
    singular: "event",
    kind: "Event",
    short_names: &["ev"],
    namespaced: true,
    status: false,
    fields: &[
        "reason",
        "type",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
    ],
};

static EVENTS: Info = Info {
    group: "events.k8s.io",
    version: "v1",
    plural: "events",
    singular: "event",
    kind: "Event",
    short_names: &["ev"],
    namespaced: true,
    status: false,
    fields: &["reason", "type", "regarding.kind", "regarding.name", "regarding.namespace", "regarding.uid"],
};
