//! Where nodePorts are served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_model::{Family, Node};

/// The maximum number of addresses per family that are the node's only by a route and serve nodePorts. There
/// is a frontend for each nodePort on each of them, and if load balancers' addresses are such routes, there
/// is one for each load balancer.
pub(crate) const ROUTED_MAX: usize = 64;

/// Where nodePorts are served (kube-proxy: `--nodeport-addresses`).
///
/// Never on a loopback address: a connection from there would need a source address that nobody can reply to,
/// or `route_localnet` (CVE-2020-8558).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On the primary address of each family of the Node object. If the Node has no address of one family but
    /// one of the other, that family is served on all of the node's addresses of it: kube-proxy takes
    /// loopback as the node address of that family and then filters it out, so no CIDR of the family is left.
    /// If the Node has no address at all, because a cloud controller has not initialized it, nothing is
    /// served; kube-proxy waits for it.
    Primary,
    /// On the addresses of the node's interfaces that are in these CIDRs. A family without a CIDR is served
    /// on all of its addresses.
    Inside(Vec<IpNet>),
    /// On both: the Node's primary addresses count as CIDRs of one address. While the Node is not known, a
    /// family without a CIDR has no addresses.
    PrimaryAnd(Vec<IpNet>),
}

impl NodePortAddresses {
    /// The addresses, given the Node, the addresses of its interfaces, and those that are the node's only by
    /// a route. The latter count for a family that is served on all addresses, as in kube-proxy, which then
    /// uses `fib daddr type local`, and interfaces if there are CIDRs.
    pub(crate) fn addresses(
        &self,
        node: Option<&Node>,
        interfaces: &[IpAddr],
        routed: &[IpAddr],
    ) -> Vec<IpAddr> {
        let node = with_addresses(node);
        let families = [Family::V4, Family::V6].into_iter();
        let mut addresses: Vec<IpAddr> = match self {
            Self::Inside(cidrs) => families.flat_map(|family| inside(cidrs, family, interfaces)).collect(),
            Self::Primary => families
                .flat_map(|family| match (node, node.and_then(|node| primary(node, family))) {
                    (None, _) => Vec::new(),
                    (Some(_), Some(primary)) => vec![primary],
                    (Some(_), None) => inside(&[], family, interfaces),
                })
                .collect(),
            Self::PrimaryAnd(cidrs) => families
                .flat_map(|family| {
                    let primary = node.and_then(|node| primary(node, family));
                    let is_silent = primary.is_none() && node.is_some();
                    let mut addresses = match cidrs.iter().any(|cidr| Family::of(cidr.addr()) == family) {
                        false if !is_silent => Vec::new(),
                        _ => inside(cidrs, family, interfaces),
                    };
                    addresses.extend(primary);
                    addresses
                })
                .collect(),
        };
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.takes_all(*family, node)) {
            addresses.extend(routed.iter().filter(|ip| Family::of(**ip) == family).take(ROUTED_MAX));
        }
        addresses.retain(|ip| !ip.is_loopback());
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Where to listen in order to be reachable at these addresses. A family that is served on all of the
    /// node's addresses is replaced by the unspecified address, which includes addresses that are the node's
    /// only by a route, and loopback.
    pub(crate) fn listening(&self, node: Option<&Node>, interfaces: &[IpAddr]) -> Vec<IpAddr> {
        let mut addresses = self.addresses(node, interfaces, &[]);
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.takes_all(*family, node)) {
            let all = addresses.len();
            addresses.retain(|ip| Family::of(*ip) != family);
            // A machine without the family has no sockets for it either.
            if addresses.len() < all {
                addresses.push(match family {
                    Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                });
            }
        }
        addresses.sort_unstable();
        addresses
    }

    /// Whether addresses that are the node's only by a route matter.
    pub(crate) fn goes_by_routes(&self, node: Option<&Node>) -> bool {
        [Family::V4, Family::V6].into_iter().any(|family| self.takes_all(family, node))
    }

    /// Whether a family is served on all of the node's addresses (kube-proxy: `MatchAll`).
    fn takes_all(&self, family: Family, node: Option<&Node>) -> bool {
        let is_silent = with_addresses(node).is_some_and(|node| primary(node, family).is_none());
        let (cidrs, is_all_without) = match self {
            Self::Inside(cidrs) => (cidrs.as_slice(), true),
            Self::Primary => (&[][..], is_silent),
            Self::PrimaryAnd(cidrs) => (cidrs.as_slice(), is_silent),
        };
        let mut of_family = cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family).peekable();
        match of_family.peek() {
            Some(_) => of_family.any(|cidr| cidr.prefix_len() == 0),
            None => is_all_without,
        }
    }
}

/// The Node, unless it has no address yet.
fn with_addresses(node: Option<&Node>) -> Option<&Node> {
    node.filter(|node| !node.addresses.is_empty())
}

/// The addresses of a family that are in its CIDRs, or all of them if it has no CIDR.
fn inside(cidrs: &[IpNet], family: Family, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let cidrs: Vec<&IpNet> = cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family).collect();
    let is_inside = |ip: &IpAddr| cidrs.is_empty() || cidrs.iter().any(|cidr| cidr.contains(ip));
    addresses.iter().copied().filter(|ip| Family::of(*ip) == family && is_inside(ip)).collect()
}

/// The node's primary address of a family.
pub(crate) fn primary(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name of the case, CIDRs or `primary`, addresses of the node, addresses served. The Node object has the
    /// same addresses as the interfaces, except for those after a `|`, which it lacks.
    type Case = (&'static str, &'static str, &'static str, &'static str);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("primary: the first address",               "primary", "192.0.2.1 192.0.2.2", "192.0.2.1"),
        ("primary: the first of each family",        "primary", "192.0.2.1 2001:db8::1 192.0.2.2 2001:db8::2", "192.0.2.1 2001:db8::1"),
        ("primary: a single-stack IPv6 node",        "primary", "2001:db8::1", "2001:db8::1"),
        ("primary: the node is not known yet",       "primary", "", ""),
        ("primary: other addresses are not served",  "primary", "192.0.2.1 2001:db8::1 | 192.0.2.2 2001:db8::2", "192.0.2.1 2001:db8::1"),
        ("primary: a family that the Node lacks: all of it", "primary", "192.0.2.1 | 192.0.2.2 ::1 2001:db8::1 2001:db8::2", "192.0.2.1 2001:db8::1 2001:db8::2"),
        ("primary: a Node without any address",      "primary", " | 192.0.2.1 2001:db8::1", ""),
        ("primary and a CIDR: the same",             "primary 192.0.2.0/24", " | 192.0.2.1 198.51.100.1 2001:db8::1", "192.0.2.1"),
        ("primary: the same, of IPv4",               "primary", "2001:db8::1 | 127.0.0.1 192.0.2.1 198.51.100.1", "192.0.2.1 198.51.100.1 2001:db8::1"),
        ("a CIDR names one interface",               "192.0.2.0/24", "192.0.2.1 198.51.100.1", "192.0.2.1"),
        ("two CIDRs name two",                       "192.0.2.0/24 198.51.100.0/24", "192.0.2.1 198.51.100.1 203.0.113.1", "192.0.2.1 198.51.100.1"),
        ("several addresses inside one CIDR",        "192.0.2.0/24", "192.0.2.1 192.0.2.2", "192.0.2.1 192.0.2.2"),
        ("a CIDR that names none",                   "203.0.113.0/24", "192.0.2.1", ""),
        ("a family without CIDR: all of it",         "192.0.2.0/24", "192.0.2.1 198.51.100.1 2001:db8::1", "192.0.2.1 2001:db8::1"),
        ("an IPv6 CIDR leaves IPv4 whole",           "2001:db8::/64", "192.0.2.1 2001:db8::1 2001:db8:1::1", "192.0.2.1 2001:db8::1"),
        ("an empty list: all of both",               "", "192.0.2.1 2001:db8::1", "192.0.2.1 2001:db8::1"),
        ("0.0.0.0/0: all of IPv4",                   "0.0.0.0/0", "192.0.2.1 198.51.100.1", "192.0.2.1 198.51.100.1"),
        ("primary and a CIDR: both",                 "primary 198.51.100.0/24", "192.0.2.1 198.51.100.1 203.0.113.1", "192.0.2.1 198.51.100.1"),
        ("primary and a CIDR that has it: once",     "primary 192.0.2.0/24", "192.0.2.1 192.0.2.2 203.0.113.1", "192.0.2.1 192.0.2.2"),
        ("primary and a CIDR of the other family",   "primary 2001:db8::/64", "192.0.2.1 2001:db8:1::1 | 192.0.2.2 2001:db8::1", "192.0.2.1 2001:db8::1 2001:db8:1::1"),
        ("primary and a CIDR: a family of neither is served whole", "primary 192.0.2.0/24", "192.0.2.1 | 2001:db8::1 2001:db8::2", "192.0.2.1 2001:db8::1 2001:db8::2"),
        ("primary and localhost: primary",           "primary 127.0.0.0/8 ::1/128", "192.0.2.1 | 127.0.0.1 192.0.2.2 ::1 2001:db8::1", "192.0.2.1"),
        ("localhost alone: none",                    "127.0.0.0/8 ::1/128", "127.0.0.1 192.0.2.1 ::1 2001:db8::1", ""),
        ("loopback is never served",                 "", "127.0.0.1 192.0.2.1 ::1 2001:db8::1", "192.0.2.1 2001:db8::1"),
        ("loopback is not served when named either", "127.0.0.0/8", "127.0.0.1 192.0.2.1", ""),
    ];

    fn parse(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    /// Parses a case's setting and addresses.
    fn world(cidrs: &str, addresses: &str) -> (NodePortAddresses, Option<Node>, Vec<IpAddr>) {
        let (known, others) = addresses.split_once('|').unwrap_or((addresses, ""));
        let interfaces = [parse(known), parse(others)].concat();
        let node = (!addresses.is_empty()).then(|| Node {
            name: "here".into(),
            zone: None,
            addresses: parse(known),
            pod_cidrs: Vec::new(),
            eligible: true,
        });
        let setting = match cidrs {
            "primary" => NodePortAddresses::Primary,
            cidrs => {
                let parse = |text: &str| text.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect();
                match cidrs.strip_prefix("primary ") {
                    Some(others) => NodePortAddresses::PrimaryAnd(parse(others)),
                    None => NodePortAddresses::Inside(parse(cidrs)),
                }
            }
        };
        (setting, node, interfaces)
    }

    #[test]
    fn cases() {
        for (name, cidrs, addresses, wanted) in CASES {
            let (setting, node, interfaces) = world(cidrs, addresses);
            assert_eq!(setting.addresses(node.as_ref(), &interfaces, &[]), parse(wanted), "{name}");
        }
    }

    #[test]
    fn what_only_a_route_makes_the_nodes_counts_where_all_addresses_do() {
        const ROUTED: &str = "127.0.0.1 192.0.2.1 203.0.113.1 2001:db8::7";
        #[rustfmt::skip]
        const CASES: &[Case] = &[
            ("all",                        "0.0.0.0/0 ::/0", "192.0.2.1 2001:db8::1", "192.0.2.1 203.0.113.1 2001:db8::1 2001:db8::7"),
            ("all of one family",          "203.0.113.0/24 ::/0", "192.0.2.1 2001:db8::1", "2001:db8::1 2001:db8::7"),
            ("a CIDR that it is in",       "203.0.113.0/24 2001:db8::/32", "192.0.2.1 2001:db8::1", "2001:db8::1"),
            ("primary",                    "primary", "192.0.2.1 2001:db8::1", "192.0.2.1 2001:db8::1"),
            ("primary of a family that the Node lacks", "primary", "192.0.2.1 | 2001:db8::1", "192.0.2.1 2001:db8::1 2001:db8::7"),
        ];
        for (name, cidrs, addresses, wanted) in CASES {
            let (setting, node, interfaces) = world(cidrs, addresses);
            let routed = parse(ROUTED);
            assert_eq!(setting.addresses(node.as_ref(), &interfaces, &routed), parse(wanted), "{name}");
            assert_eq!(setting.goes_by_routes(node.as_ref()), wanted.contains("::7"), "{name}");
        }
        let (all, node, interfaces) = world("", "192.0.2.1");
        let routed = (2..=200).flat_map(|n| {
            [IpAddr::from([192, 0, 2, n]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()])]
        });
        let mut routed: Vec<IpAddr> = routed.collect();
        routed.sort();
        let served = all.addresses(node.as_ref(), &interfaces, &routed);
        assert_eq!(served.len(), 1 + 2 * ROUTED_MAX, "a bound, of each family");
    }

    #[test]
    fn who_is_to_be_reached_at_all_addresses_listens_at_none_in_particular() {
        #[rustfmt::skip]
        const CASES: &[Case] = &[
            ("all",                                "0.0.0.0/0 ::/0", "192.0.2.1 2001:db8::1", "0.0.0.0 ::"),
            ("an empty list: all of both",         "", "192.0.2.1 2001:db8::1", "0.0.0.0 ::"),
            ("all, among others",                  "192.0.2.0/24 0.0.0.0/0 2001:db8::/64", "192.0.2.1 198.51.100.1 2001:db8::1", "0.0.0.0 2001:db8::1"),
            ("a family without CIDR",              "192.0.2.0/24", "192.0.2.1 198.51.100.1 2001:db8::1", "192.0.2.1 ::"),
            ("a family that the node lacks",       "", "192.0.2.1 ::1", "0.0.0.0"),
            ("primary",                            "primary", "192.0.2.1 2001:db8::1", "192.0.2.1 2001:db8::1"),
            ("primary of a family that the Node lacks", "primary", "192.0.2.1 | 192.0.2.2 2001:db8::1", "192.0.2.1 ::"),
            ("primary: the node is not known yet", "primary", "", ""),
            ("primary and all",                    "primary 0.0.0.0/0", "192.0.2.1 2001:db8::1", "0.0.0.0 2001:db8::1"),
            ("primary and a CIDR",                 "primary 198.51.100.0/24", "192.0.2.1 198.51.100.1", "192.0.2.1 198.51.100.1"),
        ];
        for (name, cidrs, addresses, wanted) in CASES {
            let (setting, node, interfaces) = world(cidrs, addresses);
            assert_eq!(setting.listening(node.as_ref(), &interfaces), parse(wanted), "{name}");
        }
    }
}
