//! Pods and namespaces: the fields that are read.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{List, Meta, Object, or_default};

/// `v1` Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Pod {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Meta<IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    pub spec: PodSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct PodSpec {
    pub host_network: Option<bool>,
}

/// `status` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: List<PodIp>,
}

/// One address of a pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct PodIp {
    pub ip: Option<String>,
}

/// `v1` Namespace.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the API's field of that name")]
pub struct Namespace {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Meta<IgnoredAny>,
}

impl Object for Pod {
    type Labels = IgnoredAny;

    fn metadata(&self) -> &Meta<IgnoredAny> {
        &self.metadata
    }
}

impl Object for Namespace {
    type Labels = IgnoredAny;

    fn metadata(&self) -> &Meta<IgnoredAny> {
        &self.metadata
    }
}
