//! `loadBalancerSourceRanges`: who may connect to the load-balancer addresses of a Service.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_model::{Family, FrontendKind};

/// The sources that may connect to one family's load-balancer addresses; `None` for any.
///
/// Ranges of the other family do not count: a Service whose ranges are all IPv4 does not restrict its IPv6
/// addresses (kube-proxy filters them by family before it checks whether there are any).
///
/// If the ranges include the node's address, they include the load-balancer addresses too: a process of the
/// node that connects to a load-balancer address that is also on an interface has that address as its source.
pub(crate) fn allowed_sources(
    ranges: Option<&[IpNet]>,
    family: Family,
    node: Option<IpAddr>,
    load_balancer_ips: &[IpAddr],
) -> Option<Arc<[IpNet]>> {
    let is_family = |range: &&IpNet| Family::of(range.addr()) == family;
    let mut allowed: Vec<IpNet> = ranges?.iter().filter(is_family).copied().collect();
    if allowed.is_empty() || allowed.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    if node.is_some_and(|node| allowed.iter().any(|range| range.contains(&node))) {
        let own = load_balancer_ips.iter().filter(|ip| Family::of(**ip) == family);
        allowed.extend(own.map(|ip| IpNet::from(*ip)));
    }
    allowed.sort_unstable();
    allowed.dedup();
    Some(allowed.into())
}

/// Whether a client may connect to this kind of frontend. Pods are not exempt. Cluster IPs, external IPs and
/// nodePorts are not restricted.
pub(crate) fn admits(allowed: Option<&[IpNet]>, kind: FrontendKind, client: IpAddr) -> bool {
    match allowed {
        Some(allowed) if kind == FrontendKind::LoadBalancer => {
            allowed.iter().any(|range| range.contains(&client))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};

    use super::*;

    /// Name of the case, ranges, the node's address, kind of frontend, client, whether it may connect. The
    /// load-balancer addresses are 203.0.113.5 and 2001:db8::5.
    type Case = (&'static str, &'static str, &'static str, FrontendKind, &'static str, bool);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("inside a range",                              "192.0.2.0/24", "10.0.0.1", LoadBalancer, "192.0.2.9", true),
        ("inside the second range",                     "192.0.2.0/24 198.51.100.0/24", "10.0.0.1", LoadBalancer, "198.51.100.9", true),
        ("outside all ranges",                          "192.0.2.0/24 198.51.100.0/24", "10.0.0.1", LoadBalancer, "203.0.113.9", false),
        ("a single address as range",                   "192.0.2.9/32", "10.0.0.1", LoadBalancer, "192.0.2.9", true),
        ("next to a single address",                    "192.0.2.9/32", "10.0.0.1", LoadBalancer, "192.0.2.8", false),
        ("pods are not exempt",                         "192.0.2.0/24", "10.0.0.1", LoadBalancer, "10.244.0.7", false),
        ("no ranges: anyone",                           "-", "10.0.0.1", LoadBalancer, "203.0.113.9", true),
        ("no valid range left: anyone",                 "", "10.0.0.1", LoadBalancer, "203.0.113.9", true),
        ("a /0 among them: anyone",                     "192.0.2.0/24 0.0.0.0/0", "10.0.0.1", LoadBalancer, "203.0.113.9", true),
        ("nodePorts are not guarded",                   "192.0.2.0/24", "10.0.0.1", NodePort, "203.0.113.9", true),
        ("external IPs are not guarded",                "192.0.2.0/24", "10.0.0.1", ExternalIp, "203.0.113.9", true),
        ("cluster IPs are not guarded",                 "192.0.2.0/24", "10.0.0.1", ClusterIp, "203.0.113.9", true),
        ("the node outside the ranges may not",         "192.0.2.0/24", "10.0.0.1", LoadBalancer, "10.0.0.1", false),
        ("the node inside the ranges may",              "10.0.0.0/8", "10.0.0.1", LoadBalancer, "10.0.0.1", true),
        ("the address as source, node inside",          "10.0.0.0/8", "10.0.0.1", LoadBalancer, "203.0.113.5", true),
        ("the address as source, node outside",         "192.0.2.0/24", "10.0.0.1", LoadBalancer, "203.0.113.5", false),
        ("the address as source, node unknown",         "10.0.0.0/8", "", LoadBalancer, "203.0.113.5", false),
        ("the address's neighbour as source",           "10.0.0.0/8", "10.0.0.1", LoadBalancer, "203.0.113.6", false),
        ("IPv6 inside",                                 "2001:db8:1::/48", "2001:db8::1", LoadBalancer, "2001:db8:1::9", true),
        ("IPv6 outside",                                "2001:db8:1::/48", "2001:db8::1", LoadBalancer, "2001:db8:2::9", false),
        ("IPv4 ranges do not restrict IPv6",            "192.0.2.0/24", "2001:db8::1", LoadBalancer, "2001:db8:2::9", true),
        ("IPv6 ranges do not restrict IPv4",            "2001:db8:1::/48", "10.0.0.1", LoadBalancer, "203.0.113.9", true),
        ("an IPv6 /0 does not lift IPv4 ranges",        "192.0.2.0/24 ::/0", "10.0.0.1", LoadBalancer, "203.0.113.9", false),
        ("IPv6 address as source, node inside",         "2001:db8::/64", "2001:db8::1", LoadBalancer, "2001:db8::5", true),
    ];

    #[test]
    fn cases() {
        let vips = ["203.0.113.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        for (name, ranges, node, kind, client, wanted) in CASES {
            let client: IpAddr = client.parse().unwrap();
            let parsed: Vec<IpNet> =
                ranges.split_whitespace().filter_map(|range| range.parse().ok()).collect();
            let ranges = (*ranges != "-").then_some(&parsed[..]);
            let allowed = allowed_sources(ranges, Family::of(client), node.parse().ok(), &vips);
            assert_eq!(admits(allowed.as_deref(), *kind, client), *wanted, "{name}");
        }
    }
}
