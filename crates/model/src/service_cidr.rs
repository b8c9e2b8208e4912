//! ServiceCIDRs: where cluster IPs come from.

use std::net::IpAddr;
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

impl ServiceCidr {
    /// The range that has this address.
    pub fn range_of(&self, ip: IpAddr) -> Option<IpNet> {
        self.cidrs.iter().copied().find(|range| range.contains(&ip))
    }
}
