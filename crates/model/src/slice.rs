//! EndpointSlices: where the endpoints of a Service are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::{Family, ObjectName, Protocol};

/// One EndpointSlice of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The Service it belongs to: its own namespace and the label `kubernetes.io/service-name`.
    pub service: ObjectName,
    /// `addressType`; slices of type FQDN never get here.
    pub family: Family,
    /// The ports that every endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When the change in the cluster that led to this version happened: the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`.
    pub last_change: Option<SystemTime>,
}

impl EndpointSlice {
    /// Whether it equals another one, apart from the time of the change.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self { name, service, family, ports, endpoints, last_change: _ } = self;
        (name, service, family, ports, endpoints)
            == (&other.name, &other.service, &other.family, &other.ports, &other.endpoints)
    }
}

/// A port of an [`EndpointSlice`]: joined to the Service's port by name and protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service port; `""` is valid.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The number on the endpoint (what `targetPort` led to).
    pub number: u16,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the others do not count.
    pub address: IpAddr,
    /// `conditions.ready`; absent means true.
    pub ready: bool,
    /// `conditions.serving`; absent means true.
    pub serving: bool,
    /// `conditions.terminating`; absent means false.
    pub terminating: bool,
    /// `nodeName`; absent means that it is never local.
    pub node: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Box<[Arc<str>]>,
    /// `hints.forNodes[].name`.
    pub node_hints: Box<[Arc<str>]>,
}

impl Endpoint {
    /// A ready endpoint with nothing else said of it.
    pub fn ready(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone_hints: Box::default(),
            node_hints: Box::default(),
        }
    }
}
