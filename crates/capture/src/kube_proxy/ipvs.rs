//! The IPVS mode: virtual services in the kernel, an interface with their addresses, IP sets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use serde::Deserialize;

/// Has every Service address, so that packets to them are delivered locally and pass through IPVS.
pub(super) const INTERFACE: &str = "kube-ipvs0";

/// The default range of nodePorts (`--service-node-port-range` of the apiserver). Their virtual services are on
/// the node's own addresses.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// IP sets (`ipset.go`); those for IPv6 have [`V6`] after `KUBE-`.
const SETS: [&str; 17] = [
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
];
const V6: &str = "6-";

/// A virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VirtualService {
    /// The protocol's option of ipvsadm.
    pub option: &'static str,
    pub address: SocketAddr,
}

/// The virtual services of `/proc/net/ip_vs`; `None` for one that has a firewall mark instead of an address.
pub(super) fn virtual_services(proc: &str) -> Vec<Option<VirtualService>> {
    let services = proc.lines().filter_map(|line| {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let option = match words.next()? {
            "TCP" => "--tcp-service",
            "UDP" => "--udp-service",
            "SCTP" => "--sctp-service",
            "FWM" => return Some(None),
            _ => return None,
        };
        let (ip, port) = words.next()?.rsplit_once(':')?;
        let ip = match ip.strip_prefix('[') {
            Some(ip) => ip.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
            None => IpAddr::from(Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?)),
        };
        let address = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
        Some(Some(VirtualService { option, address }))
    });
    services.collect()
}

/// Whether a virtual service is kube-proxy's: its address is on [`INTERFACE`], or it is a nodePort's. Neither
/// applies to those of others (keepalived).
pub(super) fn is_kube_proxys(service: &VirtualService, interface: &BTreeSet<IpAddr>) -> bool {
    interface.contains(&service.address.ip()) || NODE_PORTS.contains(&service.address.port())
}

/// Whether an IP set is kube-proxy's.
pub(super) fn is_set_kube_proxys(set: &str) -> bool {
    let rest = set.strip_prefix("KUBE-").map(|rest| rest.strip_prefix(V6).unwrap_or(rest));
    rest.is_some_and(|rest| SETS.contains(&rest))
}

#[derive(Debug, Deserialize)]
struct Link {
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    local: Option<IpAddr>,
}

/// The addresses of `ip -json address show dev`.
///
/// # Errors
/// The output is not ip's.
pub(super) fn addresses(json: &[u8]) -> serde_json::Result<BTreeSet<IpAddr>> {
    let links: Vec<Link> = serde_json::from_slice(json)?;
    Ok(links.into_iter().flat_map(|link| link.addr_info).filter_map(|address| address.local).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROC: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr 
  -> C0A80102:192B      Masq    1      0          0         
UDP  [fd00:0010:0096:0000:0000:0000:0000:000a]:0035 rr 
  -> [fd00:0010:0244:0000:0000:0000:0000:0002]:0035      Masq    1      0          0         
TCP  C0A80101:7530 rr persistent 10800 FFFFFFFF
TCP  C0A80164:1F90 wlc 
FWM  00000001 rr 
";

    #[test]
    fn virtual_services_and_whose_they_are() {
        let interface = ["10.96.0.1", "fd00:10:96::a"].map(|ip| ip.parse().unwrap()).into();
        let found: Vec<_> = virtual_services(PROC)
            .into_iter()
            .map(|service| service.map(|s| (s.option, s.address.to_string(), is_kube_proxys(&s, &interface))))
            .collect();
        let (tcp, udp) = ("--tcp-service", "--udp-service");
        let wanted = [
            Some((tcp, "10.96.0.1:443".to_owned(), true)),
            Some((udp, "[fd00:10:96::a]:53".to_owned(), true)),
            Some((tcp, "192.168.1.1:30000".to_owned(), true)),
            Some((tcp, "192.168.1.100:8080".to_owned(), false)),
            None,
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn whose_ip_sets_are() {
        #[rustfmt::skip]
        let cases = [
            ("KUBE-CLUSTER-IP", true), ("KUBE-6-CLUSTER-IP", true), ("KUBE-NODE-PORT-SCTP-HASH", true),
            ("KUBE-6-6-CLUSTER-IP", false), ("KUBE-ROUTER-SETS", false), ("cali40all-ipam-pools", false), ("", false),
        ];
        for (set, wanted) in cases {
            assert_eq!(is_set_kube_proxys(set), wanted, "{set}");
        }
    }

    #[test]
    fn addresses_of_an_interface() {
        let json =
            br#"[{"ifname":"kube-ipvs0","addr_info":[{"family":"inet","local":"10.96.0.1","prefixlen":32},
            {"family":"inet6","local":"fd00::1","prefixlen":128}]},{}]"#;
        let wanted = ["10.96.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(addresses(json).unwrap(), wanted);
        assert!(addresses(b"Device does not exist").is_err());
    }
}
