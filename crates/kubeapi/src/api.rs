//! The fields of the API's objects that a rule reads. All other fields may hold anything.
//!
//! As in the API's own types, null means an absent field or an empty element of a list. A field that is read and
//! has another type is an error; `lenient` then keeps what can be read.

pub(crate) mod lenient;
mod pod;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

pub use pod::{Namespace, Pod, PodIp, PodSpec, PodStatus};

/// Annotation of an EndpointSlice: when the change happened that led to this version of it.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The prefix of Sluice's annotations.
const ANNOTATIONS: &str = "sluice.dev/";

/// A list that may be absent.
pub type List<T> = Option<Vec<OrDefault<T>>>;

/// An object of the API.
pub(crate) trait Object {
    /// Its labels.
    type Labels;

    fn metadata(&self) -> &Meta<Self::Labels>;
}

/// `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Meta<L> {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub resource_version: Option<String>,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<IgnoredAny>,
    #[serde(default = "L::default", deserialize_with = "or_default", bound = "L: Default + Read<'de>")]
    pub labels: L,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: Annotations,
}

/// The annotations that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Sluice's own annotations, without their prefix.
    pub own: BTreeMap<Arc<str>, Arc<str>>,
    /// Of an EndpointSlice, `endpoints.kubernetes.io/last-change-trigger-time`.
    pub last_change: Option<String>,
}

/// The fields that name any object.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Identity {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) metadata: IdentityMeta,
}

/// The fields of `metadata` that name an object, and its version.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct IdentityMeta {
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    #[serde(rename = "resourceVersion")]
    pub(crate) version: Option<String>,
}

/// `v1` Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Service {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Meta<ServiceLabels>,
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// Labels of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ServiceLabels {
    /// Names another proxy, which serves the Service.
    #[serde(default, rename = "service.kubernetes.io/service-proxy-name")]
    pub proxy_name: IsPresent,
}

/// `spec` of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: List<String>,
    pub ip_families: List<String>,
    #[serde(rename = "externalIPs")]
    pub external_ips: List<String>,
    pub load_balancer_source_ranges: List<String>,
    pub internal_traffic_policy: Option<String>,
    pub external_traffic_policy: Option<String>,
    pub session_affinity: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub session_affinity_config: SessionAffinityConfig,
    pub health_check_node_port: Option<i32>,
    pub ports: List<ServicePort>,
}

/// `spec.sessionAffinityConfig`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct SessionAffinityConfig {
    #[serde(default, rename = "clientIP", deserialize_with = "or_default")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<i32>,
}

/// An element of `spec.ports` of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i32>,
    pub node_port: Option<i32>,
}

/// `status` of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct ServiceStatus {
    #[serde(default, deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct LoadBalancerStatus {
    pub ingress: List<LoadBalancerIngress>,
}

/// An element of `status.loadBalancer.ingress`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct LoadBalancerIngress {
    pub ip: Option<String>,
    pub ip_mode: Option<String>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct EndpointSlice {
    #[serde(default, deserialize_with = "or_default")]
    pub metadata: Meta<SliceLabels>,
    pub address_type: Option<String>,
    pub ports: List<EndpointPort>,
    pub endpoints: List<Endpoint>,
}

/// Labels of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct SliceLabels {
    /// The Service that the endpoints belong to.
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
    /// Marks the slice of a headless Service: clients connect to its endpoints directly.
    #[serde(default, rename = "service.kubernetes.io/headless")]
    pub headless: IsPresent,
}

/// An element of `ports` of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct EndpointPort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i32>,
}

/// An element of `endpoints`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Endpoint {
    pub addresses: List<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub conditions: EndpointConditions,
    pub node_name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub hints: EndpointHints,
}

/// `conditions` of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct EndpointHints {
    pub for_zones: List<Hint>,
    pub for_nodes: List<Hint>,
}

/// An element of `hints.forZones` or `hints.forNodes`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Hint {
    pub name: Option<String>,
}

/// `v1` Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Node {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Meta<NodeLabels>,
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// Labels of a Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct NodeLabels {
    /// The node's zone.
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<String>,
}

/// `spec` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: List<String>,
    pub taints: List<Taint>,
}

/// An element of `spec.taints`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Taint {
    pub key: Option<String>,
}

/// `status` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct NodeStatus {
    pub addresses: List<NodeAddress>,
}

/// An element of `status.addresses`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    pub address: Option<String>,
}

/// `networking.k8s.io/v1` ServiceCIDR.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct ServiceCidr {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Meta<IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct ServiceCidrSpec {
    pub cidrs: List<String>,
}

impl Object for Service {
    type Labels = ServiceLabels;

    fn metadata(&self) -> &Meta<ServiceLabels> {
        &self.metadata
    }
}

impl Object for EndpointSlice {
    type Labels = SliceLabels;

    fn metadata(&self) -> &Meta<SliceLabels> {
        &self.metadata
    }
}

impl Object for Node {
    type Labels = NodeLabels;

    fn metadata(&self) -> &Meta<NodeLabels> {
        &self.metadata
    }
}

impl Object for ServiceCidr {
    type Labels = IgnoredAny;

    fn metadata(&self) -> &Meta<IgnoredAny> {
        &self.metadata
    }
}

/// Reads a value. A derived `Deserialize` would also accept a list, as the struct's fields in order.
pub(crate) trait Read<'de>: Sized {
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

impl<'de> Read<'de> for String {
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

impl<'de> Read<'de> for IgnoredAny {
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

macro_rules! read_as_map {
    ($($type:ty)*) => {$(
        impl<'de> Read<'de> for $type {
            fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(AsMap(PhantomData))
            }
        }
    )*};
}

read_as_map! {
    Service ServiceLabels ServiceSpec SessionAffinityConfig ClientIpConfig ServicePort
    ServiceStatus LoadBalancerStatus LoadBalancerIngress
    EndpointSlice SliceLabels EndpointPort Endpoint EndpointConditions EndpointHints Hint
    Node NodeLabels NodeSpec Taint NodeStatus NodeAddress
    ServiceCidr ServiceCidrSpec
    Pod PodSpec PodStatus PodIp Namespace
    Annotations Identity IdentityMeta
}

impl<'de, L: Default + Read<'de>> Read<'de> for Meta<L> {
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AsMap(PhantomData))
    }
}

struct AsMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for AsMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Reads null as the empty value.
fn or_default<'de, D: Deserializer<'de>, T: Default + Read<'de>>(from: D) -> Result<T, D::Error> {
    OrDefault::deserialize(from).map(|OrDefault(value)| value)
}

/// A value that is empty if it is null, such as an element of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OrDefault<T>(pub T);

impl<'de, T: Default + Read<'de>> Deserialize<'de> for OrDefault<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_option(OrDefaultVisitor(PhantomData))
    }
}

struct OrDefaultVisitor<T>(PhantomData<T>);

impl<'de, T: Default + Read<'de>> Visitor<'de> for OrDefaultVisitor<T> {
    type Value = OrDefault<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or null")
    }

    fn visit_none<E: Error>(self) -> Result<OrDefault<T>, E> {
        Ok(OrDefault(T::default()))
    }

    fn visit_unit<E: Error>(self) -> Result<OrDefault<T>, E> {
        self.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<OrDefault<T>, D::Error> {
        T::read(deserializer).map(OrDefault)
    }
}

impl<T> Deref for OrDefault<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Whether a key is present, whatever its value: the opposite of the selector `!key`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IsPresent(pub bool);

impl<'de> Deserialize<'de> for IsPresent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnnotationsVisitor)
    }
}

struct AnnotationsVisitor;

impl<'de> Visitor<'de> for AnnotationsVisitor {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut annotations = Annotations::default();
        while let Some(key) = map.next_key::<String>()? {
            if key == LAST_CHANGE {
                // It is used for a measurement only, so an invalid one counts as absent.
                annotations.last_change = Some(map.next_value::<OrDefault<String>>()?.0);
                continue;
            }
            match key.strip_prefix(ANNOTATIONS) {
                Some(key) => {
                    let OrDefault(value) = map.next_value::<OrDefault<String>>()?;
                    annotations.own.insert(key.into(), value.into());
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(annotations)
    }
}
