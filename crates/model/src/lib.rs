//! The compact, plain-data model of Services, EndpointSlices, Nodes and Pods that every other crate shares.
//!
//! No I/O, no async, no Kubernetes types: [`Object`]s are made by a *source* (`sluice-kubeapi`) from
//! whatever the apiserver or a file says, already validated, and consumed by `sluice-table`.

mod frontend;
mod ip;
mod name;
mod node;
mod pod;
mod service;
mod service_cidr;
mod shortage;
mod slice;

use std::fmt;

pub use frontend::{Family, Frontend, FrontendKind, Protocol};
pub use ip::{InvalidIp, parse_cidr, parse_ip};
pub use name::{ObjectName, ServicePortName};
pub use node::Node;
pub use pod::{Namespace, Pod};
pub use service::{AffinityTimeout, Service, ServicePort, TrafficPolicy};
pub use service_cidr::ServiceCidr;
pub use shortage::mend_of_shortage;
pub use slice::{Endpoint, EndpointSlice, SlicePort};

/// One object as a source hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A Service that a proxy has to serve.
    Service(Service),
    /// A slice of the endpoints of one Service.
    EndpointSlice(EndpointSlice),
    /// A node of the cluster; only the agent's own one matters.
    Node(Node),
    /// Ranges that cluster IPs come from.
    ServiceCidr(ServiceCidr),
    /// A pod; only those of the agent's own node matter.
    Pod(Pod),
    /// A namespace of the cluster.
    Namespace(Namespace),
}

impl Object {
    /// What identifies this object within its source.
    pub fn reference(&self) -> ObjectRef {
        match self {
            Self::Service(service) => ObjectRef::Service(service.name.clone()),
            Self::EndpointSlice(slice) => ObjectRef::EndpointSlice(slice.name.clone()),
            Self::Node(node) => ObjectRef::Node(node.name.clone()),
            Self::ServiceCidr(cidr) => ObjectRef::ServiceCidr(cidr.name.clone()),
            Self::Pod(pod) => ObjectRef::Pod(pod.name.clone()),
            Self::Namespace(namespace) => ObjectRef::Namespace(namespace.name.clone()),
        }
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Self {
        Self::Service(service)
    }
}

impl From<EndpointSlice> for Object {
    fn from(slice: EndpointSlice) -> Self {
        Self::EndpointSlice(slice)
    }
}

impl From<Node> for Object {
    fn from(node: Node) -> Self {
        Self::Node(node)
    }
}

impl From<ServiceCidr> for Object {
    fn from(cidr: ServiceCidr) -> Self {
        Self::ServiceCidr(cidr)
    }
}

impl From<Pod> for Object {
    fn from(pod: Pod) -> Self {
        Self::Pod(pod)
    }
}

impl From<Namespace> for Object {
    fn from(namespace: Namespace) -> Self {
        Self::Namespace(namespace)
    }
}

/// The identity of an [`Object`]: its kind and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectRef {
    /// A Service, by namespace and name.
    Service(ObjectName),
    /// An EndpointSlice, by namespace and name.
    EndpointSlice(ObjectName),
    /// A Node, by name.
    Node(std::sync::Arc<str>),
    /// A ServiceCIDR, by name.
    ServiceCidr(std::sync::Arc<str>),
    /// A Pod, by namespace and name.
    Pod(ObjectName),
    /// A Namespace, by name.
    Namespace(std::sync::Arc<str>),
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
        }
    }
}

/// What a source tells the table, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object exists and looks like this now.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectRef),
}
