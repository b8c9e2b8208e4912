//! Each case changes one thing on a node where all is well.

use sluice_capture::kube_proxy::{Found, Trace};
use sluice_capture::tproxy::MarkRule;
use sluice_model::Family;

use super::super::facts::{
    Bridge, Capabilities, ClosedChain, Enforcer, Feature, Hook, Interface, Lacking, NodeObject, OthersChains,
};
use super::super::finding::Level;
use super::*;
use crate::running::{Process, Sign};

const TPROXY: Feature = Feature { name: "TPROXY", option: "CONFIG_NFT_TPROXY", ruleset: "" };

/// A node where all is well.
fn good() -> Facts {
    let interface =
        |name: &str| Interface { name: name.to_owned(), src_valid_mark: false, route_localnet: false };
    Facts {
        capabilities: Capabilities { net_admin: true, net_bind_service: true, net_raw: true },
        first_free_port: Some(1024),
        kernel: "6.1.0-28-amd64".to_owned(),
        nft: Ok("nftables v1.0.6 (Lester Gooch #5)".to_owned()),
        features: vec![(TPROXY, Ok(()))],
        transparent: vec![(Family::V4, Ok(())), (Family::V6, Ok(()))],
        kube_proxy: Vec::new(),
        sees_all_processes: true,
        leftovers: Ok(Found::default()),
        interfaces: vec![interface("all"), interface("eth0")],
        forwarding: vec![(Family::V4, true), (Family::V6, true)],
        conntrack: Some((100, 262_144)),
        descriptors: Some(1_048_576),
        backlog: Some(4096),
        local_ports: Some((32_768, 60_999)),
        reserved_ports: Vec::new(),
        tw_reuse: Some(2),
        bridges: Vec::new(),
        bridge_rules: Vec::new(),
        mark_rules: Ok(Vec::new()),
        others_chains: Some(Ok(OthersChains::default())),
        legacy_tables: Vec::new(),
        node: Some(("node-1".to_owned(), NodeObject::There(Vec::new()))),
    }
}

fn mark_rule(mark: u32) -> MarkRule {
    MarkRule { family: Family::V6, priority: 100, mark, mask: u32::MAX }
}

fn closed(hook: Hook, name: &str, accepts_mark: bool) -> OthersChains {
    OthersChains {
        closed: vec![ClosedChain { hook, name: name.to_owned(), accepts_mark }],
        ..OthersChains::default()
    }
}

fn enforced(has_policies: bool) -> OthersChains {
    let enforcer = Enforcer { name: "Calico", chain: "ip filter cali-FORWARD".to_owned(), has_policies };
    OthersChains { enforcers: vec![enforcer], ..OthersChains::default() }
}

/// Name; what is different; what is said other than that all is well: level, about, part of what.
type Case = (&'static str, fn(&mut Facts), &'static [(Level, &'static str, &'static str)]);

use Level::{Problem, Warning};

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("all is well", |_| {}, &[]),

    ("no CAP_NET_ADMIN: nothing could be looked at", |f| {
        f.capabilities.net_admin = false;
        f.features.clear();
        f.others_chains = None;
        f.leftovers = Err("not permitted".to_owned());
    }, &[(Problem, "capabilities", "CAP_NET_ADMIN")]),
    ("no CAP_NET_BIND_SERVICE", |f| f.capabilities.net_bind_service = false,
        &[(Problem, "capabilities", "below 1024")]),
    ("no CAP_NET_RAW", |f| f.capabilities.net_raw = false,
        &[(Warning, "capabilities", "UDP client")]),
    ("anybody may bind any port", |f| {
        f.capabilities.net_bind_service = false;
        f.first_free_port = Some(0);
    }, &[]),
    ("an old kernel", |f| f.kernel = "4.19.0-27-amd64".to_owned(), &[(Problem, "kernel", "4.19.0")]),
    ("a kernel that is a little too old", |f| f.kernel = "5.9.16".to_owned(), &[(Problem, "kernel", "5.9.16")]),
    ("the oldest kernel that does", |f| f.kernel = "5.10.0".to_owned(), &[]),
    ("no nft", |f| f.nft = Err("not found".to_owned()), &[(Problem, "nft", "not found")]),
    ("an old nft", |f| f.nft = Ok("nftables v0.9.8 (E.D.S.)".to_owned()), &[(Problem, "nft", "too old")]),
    ("the kernel lacks something", |f| f.features[0].1 = Err(Lacking::Refused("No such file or directory".to_owned())),
        &[(Problem, "nftables", "no TPROXY: No such file")]),
    ("nft is killed while it asks", |f| f.features[0].1 = Err(Lacking::Unknown("nft was ended by signal 9".to_owned())),
        &[(Problem, "nftables", "could not be asked whether it has TPROXY: nft was ended")]),
    ("no transparent sockets for IPv6", |f| f.transparent[1].1 = Err("not permitted".to_owned()),
        &[(Problem, "sockets", "IPv6: not permitted")]),
    ("a kernel without IPv6", |f| { f.transparent.pop(); f.forwarding.pop(); }, &[]),

    ("ports are not taken again", |f| f.tw_reuse = Some(0), &[(Warning, "local ports", "470 new connections a second")]),
    ("ports are taken again", |f| f.tw_reuse = Some(1), &[]),

    ("kube-proxy runs", |f| f.kube_proxy = vec![Sign::Process(42)], &[(Problem, "kube-proxy", "process 42")]),
    ("kube-proxy answers", |f| f.kube_proxy = vec![Sign::Answers { mode: "ipvs".to_owned() }],
        &[(Problem, "kube-proxy", "mode ipvs"), (Warning, "nodePorts", "all addresses")]),
    ("kube-proxy answers that serves nodePorts as the agent does", |f| {
        f.kube_proxy = vec![Sign::Answers { mode: "nftables".to_owned() }];
    }, &[(Problem, "kube-proxy", "mode nftables")]),
    ("kube-proxy may be inside of k3s", |f| {
        let process = Process { id: 7, name: "k3s-agent".to_owned(), arguments: Vec::new() };
        f.kube_proxy = vec![Sign::Inside(process)];
    }, &[(Warning, "kube-proxy", "k3s-agent (process 7)")]),
    ("in a container that cannot see", |f| f.sees_all_processes = false, &[(Warning, "kube-proxy", "could not be seen")]),
    ("kube-proxy's table is there", |f| {
        f.leftovers = Ok(Found { traces: vec![Trace::NftTable(Family::V4)], unseen: Vec::new() });
    }, &[(Problem, "rules of kube-proxy", "nftables table ip kube-proxy")]),
    ("something could not be looked at", |f| {
        f.leftovers = Ok(Found { traces: Vec::new(), unseen: vec!["the tables of iptables-legacy".to_owned()] });
    }, &[(Warning, "rules of kube-proxy", "iptables-legacy")]),
    ("nothing could be looked at", |f| f.leftovers = Err("nft failed".to_owned()),
        &[(Warning, "rules of kube-proxy", "nft failed")]),

    ("the mark counts on one interface", |f| f.interfaces[1].src_valid_mark = true,
        &[(Problem, "reverse path", "on eth0")]),
    ("the mark counts on all", |f| f.interfaces[0].src_valid_mark = true, &[(Problem, "reverse path", "on all")]),
    ("a bridge without pods", |f| {
        f.bridges = vec![Bridge { name: "docker0".to_owned(), has_pods: false }];
        f.bridge_rules = vec![(Family::V4, true)];
    }, &[]),
    ("a pod on a bridge", |f| {
        f.bridges = vec![Bridge { name: "cni0".to_owned(), has_pods: true }];
        f.bridge_rules = vec![(Family::V4, false), (Family::V6, false)];
    }, &[]),
    ("a rule for a mark of ours", |f| f.mark_rules = Ok(vec![mark_rule(0x20), mark_rule(0x310)]),
        &[(Problem, "packet marks", "(fwmark 0x20/0xffffffff, IPv6 priority 100), (fwmark 0x310/0xffffffff")]),
    ("a rule of wg-quick, whose mark has more bits than ours", |f| f.mark_rules = Ok(vec![mark_rule(0xca6c)]), &[]),
    ("rules that cannot be listed", |f| f.mark_rules = Err("no answer".to_owned()),
        &[(Warning, "packet marks", "no answer")]),
    ("a pod on a bridge whose packets pass the rules too early", |f| {
        f.bridges = vec![Bridge { name: "cni0".to_owned(), has_pods: true }];
        f.bridge_rules = vec![(Family::V4, true), (Family::V6, false)];
    }, &[(Warning, "bridges", "net.bridge.bridge-nf-call-iptables=1: IPv4")]),
    ("the same for IPv6", |f| {
        f.bridges = vec![Bridge { name: "cni0".to_owned(), has_pods: true }];
        f.bridge_rules = vec![(Family::V4, false), (Family::V6, true)];
    }, &[(Warning, "bridges", "net.bridge.bridge-nf-call-ip6tables=1: IPv6")]),
    ("forwarding is off", |f| f.forwarding[0].1 = false, &[(Warning, "forwarding", "off for IPv4")]),
    ("a firewall", |f| {
        f.others_chains = Some(Ok(closed(Hook::Input, "ip filter INPUT", false)));
    }, &[(Warning, "firewall", "refused by ip filter INPUT")]),
    ("a firewall for what leaves", |f| {
        f.others_chains = Some(Ok(closed(Hook::Output, "ip filter OUTPUT", false)));
    }, &[(Warning, "firewall", "refused by ip filter OUTPUT")]),
    ("one that knows the mark", |f| {
        f.others_chains = Some(Ok(closed(Hook::Output, "ip filter OUTPUT", true)));
    }, &[]),
    ("a firewall that knows the mark", |f| {
        f.others_chains = Some(Ok(closed(Hook::Input, "ip filter INPUT", true)));
    }, &[]),
    ("chains that cannot be looked at", |f| f.others_chains = Some(Err("nft failed".to_owned())),
        &[(Warning, "firewall", "could not be looked for: nft failed")]),
    ("a CNI that may enforce policies", |f| f.others_chains = Some(Ok(enforced(false))),
        &[(Warning, "network policies", "Calico would enforce them where relayed traffic does not pass (ip filter cali-FORWARD)")]),
    ("a CNI that enforces some", |f| f.others_chains = Some(Ok(enforced(true))),
        &[(Problem, "network policies", "Calico enforces some for pods of this node (ip filter cali-FORWARD)")]),
    ("tables of iptables-legacy", |f| f.legacy_tables = vec![("ip6tables-legacy", "filter".to_owned())],
        &[(Warning, "firewall", "tables of ip6tables-legacy (filter) were not looked at")]),
    ("kube-proxy has left route_localnet", |f| f.interfaces[0].route_localnet = true,
        &[(Warning, "localnet", "CVE-2020-8558")]),

    ("few descriptors", |f| f.descriptors = Some(65_535), &[(Warning, "open files", "at most 65535")]),
    ("just enough descriptors", |f| f.descriptors = Some(65_536), &[]),
    ("no limit on descriptors", |f| f.descriptors = None, &[]),
    ("short queues", |f| f.backlog = Some(128), &[(Warning, "backlog", "128")]),
    ("few ports", |f| f.local_ports = Some((50_000, 59_999)), &[(Warning, "local ports", "only 10000")]),
    ("one port", |f| f.local_ports = Some((50_000, 50_000)), &[(Warning, "local ports", "only 1:")]),
    ("ports that are nodePorts too", |f| f.local_ports = Some((1_024, 65_535)),
        &[(Warning, "local ports", "overlap the nodePorts")]),
    ("one port that is a nodePort too", |f| f.local_ports = Some((32_767, 60_999)),
        &[(Warning, "local ports", "overlap the nodePorts")]),
    ("nodePorts are reserved", |f| {
        f.local_ports = Some((1_024, 65_535));
        f.reserved_ports = vec![(8_080, 8_080), (30_000, 31_000), (31_001, 32_767)];
    }, &[]),
    ("nodePorts are reserved in part", |f| {
        f.local_ports = Some((1_024, 65_535));
        f.reserved_ports = vec![(30_000, 32_000)];
    }, &[(Warning, "local ports", "overlap the nodePorts")]),
    ("connection tracking is nearly full", |f| f.conntrack = Some((9_000, 10_000)),
        &[(Warning, "conntrack", "9000 of 10000")]),
    ("connection tracking is nearly nearly full", |f| f.conntrack = Some((8_999, 10_000)), &[]),
    ("no connection tracking", |f| f.conntrack = None, &[]),

    ("no such Node", |f| f.node = Some(("node-2".to_owned(), NodeObject::Missing)),
        &[(Warning, "node", "no Node \"node-2\"")]),
    ("an address of the Node that Services may get", |f| {
        f.node = Some(("node-1".to_owned(), NodeObject::There(vec![([10, 96, 0, 9].into(), "10.96.0.0/16".parse().unwrap())])));
    }, &[(Warning, "node", "10.96.0.9 lies in the ServiceCIDR 10.96.0.0/16")]),
    ("an apiserver that refuses", |f| f.node = Some(("node-2".to_owned(), NodeObject::Unknown("401".to_owned()))),
        &[(Problem, "node", "\"node-2\": 401")]),
    ("no apiserver", |f| f.node = Some(("node-2".to_owned(), NodeObject::NobodyToAsk)), &[]),
    ("an agent looks by itself", |f| f.node = None, &[]),
];

#[test]
fn cases() {
    for (name, change, wanted) in CASES {
        let mut facts = good();
        change(&mut facts);
        let findings = judge(&facts);
        let bad: Vec<_> = findings.iter().filter(|finding| finding.level > Level::Ok).collect();
        assert_eq!(bad.len(), wanted.len(), "{name}: {bad:#?}");
        for (finding, (level, about, part)) in bad.iter().zip(*wanted) {
            assert_eq!((finding.level, finding.about), (*level, *about), "{name}");
            assert!(finding.what.contains(part), "{name}: {}", finding.what);
            assert!(!finding.fix.is_empty(), "{name}: no fix");
        }
    }
}

#[test]
fn where_all_is_well_everything_is_said_once() {
    let mut about: Vec<&str> = judge(&good()).iter().map(|finding| finding.about).collect();
    let number = about.len();
    about.sort_unstable();
    about.dedup();
    assert_eq!((about.len(), number), (17, 17), "{about:?}");
}

#[test]
fn the_fix_for_a_firewall_is_the_rule_of_the_documentation_and_no_more() {
    for (hook, rules) in [
        (
            Hook::Input,
            &[
                "meta mark & 0x30 == 0x10 accept",
                "-I INPUT -m mark --mark 0x10/0x30 -j ACCEPT",
                HEALTH_CHECKS,
                "-I INPUT -p tcp -m multiport --dports 10256,30000:32767 -j ACCEPT",
            ][..],
        ),
        (
            Hook::Output,
            &["meta mark & 0xffef == 0x20 accept", "-I OUTPUT -m mark --mark 0x20/0xffef -j ACCEPT"][..],
        ),
    ] {
        let mut facts = good();
        facts.others_chains = Some(Ok(closed(hook, "inet firewall a", false)));
        let findings = judge(&facts);
        let fix = &findings.iter().find(|finding| finding.about == "firewall").unwrap().fix;
        assert!(rules.iter().all(|rule| fix.contains(rule)), "{fix}");
        assert!(!fix.to_lowercase().contains("untracked"), "{fix}");
        assert_eq!(fix.contains("health checks"), hook == Hook::Input, "{fix}");
    }
}

/// What load balancers ask without the mark.
const HEALTH_CHECKS: &str = "tcp dport { 10256, 30000-32767 } accept";

#[test]
fn a_firewall_that_knows_the_mark_may_still_refuse_health_checks() {
    let said = |chains: OthersChains| {
        let mut facts = good();
        facts.others_chains = Some(Ok(chains));
        judge(&facts).into_iter().find(|finding| finding.about == "firewall").unwrap()
    };
    let knowing = said(closed(Hook::Input, "inet firewall a", true));
    assert_eq!(knowing.level, Level::Ok);
    assert!([HEALTH_CHECKS, "inet firewall a"].iter().all(|part| knowing.what.contains(part)), "{knowing:?}");
    for open in [OthersChains::default(), closed(Hook::Output, "inet firewall a", true)] {
        assert!(!said(open).what.contains("health"), "nobody is in the way");
    }
}
