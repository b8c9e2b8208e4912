//! Collects the facts from files of the kernel and from programs. Changes nothing.

mod again;
mod firewall;
mod nft;
mod policies;

use std::fs;
use std::path::Path;
use std::str::FromStr;

use rustix::process::{Resource, getrlimit};
use rustix::system::uname;
use sluice_capture::{kube_proxy, tproxy};
use sluice_model::Family;
use socket2::{Domain, Socket, Type};

pub(super) use again::again;

use super::facts::{Bridge, Capabilities, Facts, Interface, NodeObject};
use crate::running;

/// Bits of a capability set (capabilities(7)).
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// All facts, except those of the cluster.
pub(super) fn facts(node: Option<(String, NodeObject)>) -> Facts {
    let capabilities = capabilities(&text("/proc/thread-self/status").unwrap_or_default());
    let processes = running::processes();
    let families = families();
    Facts {
        first_free_port: setting("net/ipv4/ip_unprivileged_port_start"),
        kernel: uname().release().to_string_lossy().into_owned(),
        nft: nft::version(),
        // Without the capability everything fails, which tells nothing.
        features: if capabilities.net_admin { nft::features(&families) } else { Vec::new() },
        transparent: families.iter().map(|family| (*family, make_transparent(*family))).collect(),
        kube_proxy: running::kube_proxy(&processes),
        sees_all_processes: running::sees_all_processes(),
        leftovers: kube_proxy::find().map_err(|error| error.to_string()),
        interfaces: interfaces(),
        forwarding: forwarding(&text("/proc/thread-self/net/if_inet6").unwrap_or_default()),
        conntrack: setting("net/netfilter/nf_conntrack_count").zip(setting("net/netfilter/nf_conntrack_max")),
        descriptors: getrlimit(Resource::Nofile).maximum,
        backlog: setting("net/core/somaxconn"),
        local_ports: text("/proc/sys/net/ipv4/ip_local_port_range")
            .and_then(|range| ports(&range, char::is_whitespace)),
        reserved_ports: reserved_ports(
            &text("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
        ),
        tw_reuse: setting("net/ipv4/tcp_tw_reuse"),
        bridges: bridges(),
        bridge_rules: bridge_rules(),
        mark_rules: tproxy::others_mark_rules().map_err(|error| error.to_string()),
        others_chains: capabilities.net_admin.then(firewall::chains),
        legacy_tables: legacy_tables(),
        capabilities,
        node,
    }
}

/// A small file's text; `None` if it is missing or unreadable.
fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A number in `/proc/sys`. Network settings are those of this thread's namespace.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    text(Path::new("/proc/sys").join(name))?.trim().parse().ok()
}

fn is_set(name: &str) -> bool {
    setting::<u8>(name) == Some(1)
}

fn capabilities(status: &str) -> Capabilities {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let has = |capability: u32| bits & (1 << capability) != 0;
    Capabilities {
        net_admin: has(CAP_NET_ADMIN),
        net_bind_service: has(CAP_NET_BIND_SERVICE),
        net_raw: has(CAP_NET_RAW),
    }
}

/// The families that the kernel has; IPv6 may be switched off.
fn families() -> Vec<Family> {
    let has_v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    [Family::V4].into_iter().chain(has_v6.then_some(Family::V6)).collect()
}

fn make_transparent(family: Family) -> Result<(), String> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, None).map_err(|error| error.to_string())?;
    let made = match family {
        Family::V4 => socket.set_ip_transparent_v4(true),
        Family::V6 => socket.set_ip_transparent_v6(true),
    };
    made.map_err(|error| error.to_string())
}

/// `all` and each interface except loopback, whose packets are not checked twice.
pub(super) fn interfaces() -> Vec<Interface> {
    let entries = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name != "lo" && name != "default").collect();
    names.sort_unstable();
    let interface = |name: String| Interface {
        src_valid_mark: is_set(&format!("net/ipv4/conf/{name}/src_valid_mark")),
        route_localnet: is_set(&format!("net/ipv4/conf/{name}/route_localnet")),
        name,
    };
    names.into_iter().map(interface).collect()
}

/// Forwarding for IPv4, and for IPv6 if an interface has a global address: `if_inet6` has the scope in its
/// fourth column, 0 for global.
fn forwarding(if_inet6: &str) -> Vec<(Family, bool)> {
    let has_v6 = if_inet6.lines().any(|line| line.split_whitespace().nth(3) == Some("00"));
    let v4 = (Family::V4, is_set("net/ipv4/ip_forward"));
    let v6 = has_v6.then(|| (Family::V6, is_set("net/ipv6/conf/all/forwarding")));
    [v4].into_iter().chain(v6).collect()
}

/// Parses two ports with a separator.
fn ports(range: &str, between: impl Fn(char) -> bool) -> Option<(u16, u16)> {
    let mut numbers = range.trim().split(between).filter(|number| !number.is_empty());
    let first = numbers.next()?.parse().ok()?;
    Some((first, numbers.next().map_or(Some(first), |last| last.parse().ok())?))
}

/// Parses a list such as `8080,30000-32767`.
fn reserved_ports(list: &str) -> Vec<(u16, u16)> {
    list.trim().split(',').filter_map(|range| ports(range, |c| c == '-')).collect()
}

fn bridges() -> Vec<Bridge> {
    let net = Path::new("/sys/class/net");
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    // An interface whose peer is another interface, for example a pod's, has that one's index here.
    let index = |port: &str, file: &str| text(net.join(port).join(file));
    let is_pods = |port: &String| index(port, "ifindex") != index(port, "iflink");
    let mut bridges: Vec<Bridge> = names(net)
        .into_iter()
        .filter(|name| net.join(name).join("bridge").exists())
        .map(|name| {
            let has_pods = names(&net.join(&name).join("brif")).iter().any(is_pods);
            Bridge { name, has_pods }
        })
        .collect();
    bridges.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    bridges
}

/// Empty if br_netfilter is not loaded.
fn bridge_rules() -> Vec<(Family, bool)> {
    let settings = [
        (Family::V4, "net/bridge/bridge-nf-call-iptables"),
        (Family::V6, "net/bridge/bridge-nf-call-ip6tables"),
    ];
    settings.into_iter().filter_map(|(family, name)| Some((family, setting::<u8>(name)? == 1))).collect()
}

/// The tables of iptables-legacy in the kernel, with the program for their family. Empty tables stay until the
/// kernel restarts.
fn legacy_tables() -> Vec<(&'static str, String)> {
    let names = [("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")];
    let tables = names.into_iter().map(|(program, file)| {
        let names = text(Path::new("/proc/thread-self/net").join(file)).unwrap_or_default();
        (program, names.split_whitespace().collect::<Vec<_>>().join(", "))
    });
    tables.filter(|(_, names)| !names.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_status() {
        #[rustfmt::skip]
        let cases = [
            ("Name:\tsluice\nCapInh:\t0\nCapEff:\t000001ffffffffff\n", (true, true, true)),
            ("CapEff:\t0000000000001000\n", (true, false, false)),
            ("CapEff:\t0000000000002000\n", (false, false, true)),
            ("CapEff:\t0000000000000400\n", (false, true, false)),
            ("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n", (false, false, false)),
            ("CapEff:\tnothing\n", (false, false, false)),
            ("", (false, false, false)),
        ];
        for (status, wanted) in cases {
            let found = capabilities(status);
            assert_eq!((found.net_admin, found.net_bind_service, found.net_raw), wanted, "{status}");
        }
    }

    #[test]
    fn ranges_of_ports() {
        assert_eq!(ports("32768\t60999\n", char::is_whitespace), Some((32_768, 60_999)));
        assert_eq!(ports("", char::is_whitespace), None);
        assert_eq!(reserved_ports("8080,30000-32767\n"), [(8_080, 8_080), (30_000, 32_767)]);
        assert_eq!(reserved_ports("\n"), []);
    }

    #[test]
    fn forwarding_of_ipv6_matters_where_there_are_addresses() {
        let local = "fe800000000000000000000000000001 02 40 20 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        let global = "20010db8000000000000000000000001 02 40 00 80     eth0\n";
        let families =
            |text: &str| forwarding(text).into_iter().map(|(family, _)| family).collect::<Vec<_>>();
        assert_eq!(families(local), [Family::V4]);
        assert_eq!(families(global), [Family::V4, Family::V6]);
    }

    #[test]
    fn whatever_this_machine_is_like_facts_are_gathered() {
        let facts = facts(None);
        assert!(!facts.kernel.is_empty());
        assert!(facts.interfaces.iter().any(|interface| interface.name == "all"));
        assert!(!facts.transparent.is_empty());
    }
}
