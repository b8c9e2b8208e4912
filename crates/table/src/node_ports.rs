//! Where nodePorts are served.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::{Family, Node};

/// Where nodePorts are served (kube-proxy: `--nodeport-addresses`).
///
/// Never on a loopback address: a connection from there would have to leave with a source address
/// that nobody can answer to, or with `route_localnet` (CVE-2020-8558).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On the primary address of each family of the Node object.
    Primary,
    /// On these addresses of the node.
    Listed(Vec<IpAddr>),
}

impl NodePortAddresses {
    /// The addresses of the node's interfaces that the CIDRs name. A family that no CIDR is of is
    /// served on all of its addresses.
    pub fn matching(cidrs: &[IpNet], interfaces: &[IpAddr]) -> Self {
        let is_served = |ip: &IpAddr| {
            let mut family =
                cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == Family::of(*ip)).peekable();
            family.peek().is_none() || family.any(|cidr| cidr.contains(ip))
        };
        Self::Listed(interfaces.iter().filter(|ip| is_served(ip)).copied().collect())
    }

    /// The addresses, given what is known of the node.
    pub(crate) fn addresses(&self, node: Option<&Node>) -> Vec<IpAddr> {
        let mut addresses = match self {
            Self::Listed(addresses) => addresses.clone(),
            Self::Primary => {
                [Family::V4, Family::V6].into_iter().filter_map(|family| primary(node?, family)).collect()
            }
        };
        addresses.retain(|ip| !ip.is_loopback());
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

/// The node's primary address of a family.
pub(crate) fn primary(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name of the case, CIDRs or `primary`, addresses of the node, addresses served. The Node
    /// object says the same as the interfaces, without loopback.
    type Case = (&'static str, &'static str, &'static str, &'static str);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("primary: the first address",               "primary", "192.0.2.1 192.0.2.2", "192.0.2.1"),
        ("primary: the first of each family",        "primary", "192.0.2.1 2001:db8::1 192.0.2.2 2001:db8::2", "192.0.2.1 2001:db8::1"),
        ("primary: a single-stack IPv6 node",        "primary", "2001:db8::1", "2001:db8::1"),
        ("primary: the node is not known yet",       "primary", "", ""),
        ("a CIDR names one interface",               "192.0.2.0/24", "192.0.2.1 198.51.100.1", "192.0.2.1"),
        ("two CIDRs name two",                       "192.0.2.0/24 198.51.100.0/24", "192.0.2.1 198.51.100.1 203.0.113.1", "192.0.2.1 198.51.100.1"),
        ("several addresses inside one CIDR",        "192.0.2.0/24", "192.0.2.1 192.0.2.2", "192.0.2.1 192.0.2.2"),
        ("a CIDR that names none",                   "203.0.113.0/24", "192.0.2.1", ""),
        ("a family without CIDR: all of it",         "192.0.2.0/24", "192.0.2.1 198.51.100.1 2001:db8::1", "192.0.2.1 2001:db8::1"),
        ("an IPv6 CIDR leaves IPv4 whole",           "2001:db8::/64", "192.0.2.1 2001:db8::1 2001:db8:1::1", "192.0.2.1 2001:db8::1"),
        ("an empty list: all of both",               "", "192.0.2.1 2001:db8::1", "192.0.2.1 2001:db8::1"),
        ("0.0.0.0/0: all of IPv4",                   "0.0.0.0/0", "192.0.2.1 198.51.100.1", "192.0.2.1 198.51.100.1"),
        ("loopback is never served",                 "", "127.0.0.1 192.0.2.1 ::1 2001:db8::1", "192.0.2.1 2001:db8::1"),
        ("loopback is not served when named either", "127.0.0.0/8", "127.0.0.1 192.0.2.1", ""),
    ];

    #[test]
    fn cases() {
        for (name, cidrs, addresses, wanted) in CASES {
            let parse = |text: &str| -> Vec<IpAddr> {
                text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
            };
            let node = (!addresses.is_empty()).then(|| Node {
                name: "here".into(),
                zone: None,
                addresses: parse(addresses),
                pod_cidrs: Vec::new(),
                eligible: true,
            });
            let setting = if *cidrs == "primary" {
                NodePortAddresses::Primary
            } else {
                let cidrs: Vec<IpNet> = cidrs.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect();
                NodePortAddresses::matching(&cidrs, &parse(addresses))
            };
            assert_eq!(setting.addresses(node.as_ref()), parse(wanted), "{name}");
        }
    }
}
