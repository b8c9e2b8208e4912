//! The kernel's DNAT, with rules structured like kube-proxy's in nftables mode: a map of Services, a chain
//! for each Service and for each endpoint, and masquerading only for hairpin connections.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use sluice_testbed::lab::Lab;

use crate::site::{TCP, UDP};

pub(super) fn dnat(lab: &Lab, service: Ipv4Addr, server: Ipv4Addr) -> Result<()> {
    let ports = TCP.map(|port| ("tcp", port)).into_iter().chain(UDP.map(|port| ("udp", port)));
    let (mut chains, mut elements) = (String::new(), Vec::new());
    for (protocol, port) in ports {
        let name = format!("{protocol}-{port}");
        let _ = writeln!(
            chains,
            "chain endpoint-{name} {{\n\
             ip saddr {server} meta mark set mark or 0x4000\n\
             meta l4proto {protocol} dnat to {server}:{port}\n}}\n\
             chain service-{name} {{ numgen random mod 1 vmap {{ 0 : goto endpoint-{name} }}; }}"
        );
        elements.push(format!("{service} . {protocol} . {port} : goto service-{name}"));
    }
    let ruleset = format!(
        "table ip services {{\n{chains}\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {} }}; }}\n\
         chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n\
         chain prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain output {{ type nat hook output priority -100; jump services; }}\n\
         chain postrouting {{ type nat hook postrouting priority 100;\n\
         meta mark & 0x4000 == 0 return\nmeta mark set mark xor 0x4000\nmasquerade fully-random\n}}\n}}\n",
        elements.join(", ")
    );
    Ok(lab.node().ns.nft_file(&ruleset)?)
}
