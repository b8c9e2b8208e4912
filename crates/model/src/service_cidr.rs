//! ServiceCIDRs: where cluster IPs come from.

use std::sync::Arc;

use ipnet::IpNet;

/// A ServiceCIDR object (networking.k8s.io/v1): ranges that cluster IPs are allocated from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`: one, or one of each family.
    pub cidrs: Vec<IpNet>,
}
