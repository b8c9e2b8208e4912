//! Addresses that only pods have. No I/O.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::Family;

/// The maximum number of networks and exceptions per family. Every packet between pods is compared with each, so
/// many of them cost more than they save. Usually there are one or two, and the address of the node's bridge.
const COMPARED_MAX: usize = 8;

/// Networks and exceptions that packets' addresses are compared with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    /// Pod networks.
    pub networks: Vec<IpNet>,
    /// Addresses in these networks that are not pods': the node's own, and the ranges of cluster IPs.
    pub others: BTreeSet<IpNet>,
}

impl Pods {
    /// Computes them from all pod networks, the ranges of cluster IPs, and the node's own addresses. A family
    /// with too many of them gets none.
    pub(super) fn new(networks: &[IpNet], service_cidrs: &[IpNet], node: &[IpAddr]) -> Self {
        let addresses = node.iter().filter(|ip| !service_cidrs.iter().any(|range| range.contains(*ip)));
        let others = service_cidrs.iter().copied().chain(addresses.copied().map(IpNet::from));
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let others = others.filter(|other| networks.iter().any(|network| overlap(network, other)));
        let mut pods = Self { networks: networks.to_vec(), others: others.collect() };
        for family in [Family::V4, Family::V6] {
            let is_of = |network: &IpNet| Family::of(network.addr()) == family;
            let compared = pods.networks.iter().chain(&pods.others).filter(|network| is_of(network)).count();
            if compared > COMPARED_MAX {
                pods.networks.retain(|network| !is_of(network));
                pods.others.retain(|network| !is_of(network));
            }
        }
        pods
    }

    /// Whether an address counts as a pod's.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        let has = |network: &IpNet| network.contains(&ip);
        self.networks.iter().any(has) && !self.others.iter().any(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|network| network.parse().unwrap()).collect()
    }

    fn check(pod_networks: &str, service_cidrs: &str, addresses: &str, others: &str) {
        let addresses: Vec<IpAddr> = addresses.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        let pods = Pods::new(&networks(pod_networks), &networks(service_cidrs), &addresses);
        let others = networks(others).into_iter().collect();
        assert_eq!(pods, Pods { networks: networks(pod_networks), others });
    }

    #[test]
    fn what_has_an_address_there_and_is_no_pod() {
        check("", "10.96.0.0/12", "10.96.0.1", "");
        check(
            "10.244.1.0/24 fd00:244::/64",
            "10.96.0.0/12 fd00:96::/112",
            "10.0.0.1 fd00:244::1",
            "fd00:244::1/128",
        );
        check(
            "10.244.1.0/24 10.244.3.0/24",
            "",
            "10.244.1.0 10.244.2.1 10.244.3.9",
            "10.244.1.0/32 10.244.3.9/32",
        );
        // A supernet of pods and Services, and the reverse.
        check("10.0.0.0/8", "10.96.0.0/12", "10.96.0.1 10.100.0.1", "10.96.0.0/12");
        check("10.96.1.0/24", "10.96.0.0/12", "10.96.1.7", "10.96.0.0/12");
    }

    #[test]
    fn a_family_with_too_many_has_none() {
        let addresses: Vec<IpAddr> = (1..=8).map(|last| IpAddr::from([10, 244, 0, last])).collect();
        let both = networks("10.244.0.0/16 fd00:244::/64");
        let pods = Pods::new(&both, &[], &addresses);
        assert_eq!(pods, Pods { networks: networks("fd00:244::/64"), others: BTreeSet::new() });
        assert_eq!(Pods::new(&both, &[], addresses.get(1..).unwrap()).others.len(), 7);
    }
}
