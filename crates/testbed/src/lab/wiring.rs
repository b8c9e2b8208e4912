//! The links of a lab: `ip` commands for interfaces, addresses and routes, and kernel settings. Pure text;
//! [`super::Lab`] runs it.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Namespace, RpFilter, Wiring};

/// Ranges of the tests' Service addresses. The router routes them to the node.
pub(crate) const SERVICE_RANGES: [&str; 4] =
    ["10.96.0.0/16", "fd00:96::/112", "203.0.113.0/24", "fd00:cb::/64"];

/// The router's addresses in the nodes' network.
const LAN: (Ipv4Addr, &str) = (Ipv4Addr::new(192, 168, 10, 1), "fd00:10::1");
/// The router's addresses in the outside network.
const WAN: (Ipv4Addr, &str) = (Ipv4Addr::new(192, 168, 20, 1), "fd00:20::1");

/// The hardware address of the host side of a routed pod's veth, as with Calico...
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// ...the link-local address that follows from it, which is the pods' gateway...
const GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";
/// ...and the IPv4 gateway, an address that no host has. Pods have a permanent neighbour entry, so nothing
/// has to answer ARP for it.
const GATEWAY_V4: &str = "169.254.1.1";

/// The pods' network of one node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodNetwork {
    /// The third byte of the IPv4 network, the third group of the IPv6 one.
    pub(crate) number: u8,
    /// How pods are connected.
    pub(crate) wiring: Wiring,
}

impl PodNetwork {
    /// The addresses of the `index`th pod. Both end in the same digits.
    pub(crate) fn addresses(self, index: usize) -> (Ipv4Addr, Ipv6Addr) {
        // [`super::Lab`] has no more pods than that.
        let last = u8::try_from(10 + index).unwrap_or(u8::MAX);
        // Hexadecimal 0x10 for 10: the same digits.
        let digits = u16::from(last / 10 * 16 + last % 10);
        let v4 = Ipv4Addr::new(10, 244, self.number, last);
        (v4, Ipv6Addr::new(0xfd00, 0x244, self.number.into(), 0, 0, 0, 0, digits))
    }

    /// The commands for the pods' node before the first pod.
    pub(crate) fn on_node(self) -> String {
        match self.wiring {
            Wiring::Routed => String::new(),
            Wiring::Bridged => format!(
                "link add cni0 type bridge mcast_snooping 0\n\
                 link set cni0 up\n\
                 address add 10.244.{0}.1/24 dev cni0\n\
                 address add fd00:244:{0}::1/64 dev cni0 nodad\n",
                self.number
            ),
        }
    }

    /// The commands for the pods' node for one pod: the veth, with its other end in the pod.
    pub(crate) fn host_side(self, index: usize, pod: &Namespace) -> String {
        let (v4, v6) = self.addresses(index);
        let peer = pod.path();
        let peer = peer.display();
        match self.wiring {
            Wiring::Routed => format!(
                "link add veth{index} address {GATEWAY_MAC} type veth peer name eth0 netns {peer}\n\
                 link set veth{index} up\n\
                 route add {v4}/32 dev veth{index}\n\
                 route add {v6}/128 dev veth{index}\n"
            ),
            Wiring::Bridged => format!(
                "link add veth{index} type veth peer name eth0 netns {peer}\n\
                 link set veth{index} master cni0 up\n"
            ),
        }
    }

    /// The commands for the pod itself.
    pub(crate) fn pod_side(self, index: usize) -> String {
        let (v4, v6) = self.addresses(index);
        let number = self.number;
        match self.wiring {
            Wiring::Routed => format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {v4}/32 dev eth0\n\
                 address add {v6}/128 dev eth0 nodad\n\
                 neighbor add {GATEWAY_V4} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
                 neighbor add {GATEWAY_V6} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_V4} dev eth0 onlink\n\
                 route add default via {GATEWAY_V6} dev eth0\n"
            ),
            Wiring::Bridged => format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {v4}/24 dev eth0\n\
                 address add {v6}/64 dev eth0 nodad\n\
                 route add default via 10.244.{number}.1\n\
                 route add default via fd00:244:{number}::1\n"
            ),
        }
    }

    /// The routes to these pods for the other hosts in the nodes' network.
    pub(crate) fn routes(self, via: (Ipv4Addr, Ipv6Addr)) -> String {
        format!(
            "route add 10.244.{0}.0/24 via {1}\nroute add fd00:244:{0}::/64 via {2}\n",
            self.number, via.0, via.1
        )
    }
}

/// The router: a bridge for the nodes' network, and a veth to the outside host.
pub(crate) fn router(nodes: [&Namespace; 2], outside: &Namespace) -> String {
    let mut commands = format!(
        "link set lo up\n\
         link add lan type bridge mcast_snooping 0\n\
         link set lan up\n\
         address add {}/24 dev lan\n\
         address add {}/64 dev lan nodad\n\
         link add wan type veth peer name eth0 netns {}\n\
         link set wan up\n\
         address add {}/24 dev wan\n\
         address add {}/64 dev wan nodad\n",
        LAN.0,
        LAN.1,
        outside.path().display(),
        WAN.0,
        WAN.1,
    );
    for node in nodes {
        let (name, peer) = (node.name(), node.path());
        let _ = writeln!(commands, "link add {name} type veth peer name eth0 netns {}", peer.display());
        let _ = writeln!(commands, "link set {name} master lan up");
    }
    commands
}

/// The router's routes to the Services, via the node.
pub(crate) fn service_routes(node: (Ipv4Addr, Ipv6Addr)) -> String {
    let mut commands = String::new();
    for range in SERVICE_RANGES {
        let via = if range.contains(':') { node.1.to_string() } else { node.0.to_string() };
        let _ = writeln!(commands, "route add {range} via {via}");
    }
    commands
}

/// A host of the nodes' network.
pub(crate) fn node(addresses: (Ipv4Addr, Ipv6Addr)) -> String {
    single(addresses, LAN)
}

/// The host outside.
pub(crate) fn outside(addresses: (Ipv4Addr, Ipv6Addr)) -> String {
    single(addresses, WAN)
}

fn single((v4, v6): (Ipv4Addr, Ipv6Addr), gateway: (Ipv4Addr, &str)) -> String {
    format!(
        "link set lo up\n\
         link set eth0 up\n\
         address add {v4}/24 dev eth0\n\
         address add {v6}/64 dev eth0 nodad\n\
         route add default via {}\n\
         route add default via {}\n",
        gateway.0, gateway.1
    )
}

/// The settings of every namespace before it has interfaces. A new namespace inherits some of these from the
/// machine, so they are set even if they are the kernel's defaults.
pub(crate) fn settings(rp_filter: RpFilter) -> Vec<(&'static str, &'static str)> {
    let rp_filter = match rp_filter {
        RpFilter::Off => "0",
        RpFilter::Strict => "1",
        RpFilter::Loose => "2",
    };
    vec![
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        // Addresses, including link-local ones, are usable at once.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        // The maximum of `all` and the interface's own value counts; systemd sets it for each interface.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", rp_filter),
        ("net/ipv4/conf/lo/rp_filter", rp_filter),
        // The router sends packets for Service addresses back into the network that they came from.
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        // Tests that expect a refusal must not be affected by rate limits. These masks select the ICMP
        // message types that are limited, per client and in total: none (for IPv6, a type that does not
        // exist).
        ("net/ipv4/icmp_ratemask", "0"),
        ("net/ipv6/icmp/ratemask", "0"),
    ]
}

/// The settings of every host but the node, where the agent has to care for it: a load generator needs its
/// ports again within a minute.
pub(crate) const LOAD: [(&str, &str); 1] = [("net/ipv4/tcp_tw_reuse", "1")];

/// The additional settings of a namespace that forwards packets.
pub(crate) const FORWARDING: [(&str, &str); 2] =
    [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// The settings of every namespace at the end. The kernel retransmits a closed connection's remaining data
/// for minutes, which keeps the namespace alive; with this, it gives up after the first attempt.
pub(crate) const LAST_SETTINGS: [(&str, &str); 1] = [("net/ipv4/tcp_orphan_retries", "1")];
