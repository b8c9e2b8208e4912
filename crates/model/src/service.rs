//! A Service, reduced to what decides who gets what connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::{ObjectName, Protocol};

/// A Service that is to be proxied: it has at least one cluster IP (kube-proxy `ShouldSkipService`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since the Unix epoch; `i64::MAX` where it is absent,
    /// so that an object without a birthday never takes an address from one that has it.
    pub created: i64,
    /// `spec.clusterIPs`, at most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` absent or `VIP`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, valid ones only; each restricts its own family. `None`: no
    /// restriction in either (none given, or a `/0` in every family that has any).
    pub source_ranges: Option<Vec<IpNet>>,
    /// `spec.internalTrafficPolicy`: for cluster IPs.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`: for every other address.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<AffinityTimeout>,
    /// `spec.healthCheckNodePort`, for type LoadBalancer with policy Local only.
    pub health_check_node_port: Option<u16>,
    /// `spec.ports` with a protocol that Sluice carries.
    pub ports: Vec<ServicePort>,
    /// Annotation `sluice.dev/max-connections`: how many connections and UDP flows there may be through one
    /// node, over all ports. `None`: any number.
    pub max_connections: Option<NonZeroU32>,
    /// Annotations under `sluice.dev/`, without that prefix.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
}

impl Service {
    /// A Service with nothing else set: no other addresses, policy Cluster, no affinity, no creation time.
    pub fn new(name: ObjectName, cluster_ips: Vec<IpAddr>, ports: Vec<ServicePort>) -> Self {
        Self {
            name,
            created: i64::MAX,
            cluster_ips,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            ports,
            max_connections: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// One port of a [`Service`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The name that joins it to ports of EndpointSlices; `""` is valid.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on cluster IPs, external IPs and load-balancer addresses.
    pub port: u16,
    /// The port on the node's own addresses; counts whenever it is set, whatever the Service's type.
    pub node_port: Option<u16>,
}

/// `internalTrafficPolicy` / `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// How long a client that is idle stays with its endpoint.
pub type AffinityTimeout = Duration;
