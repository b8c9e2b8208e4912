use sluice_model::{ObjectName, ServicePortName};
use sluice_table::Reason;

use super::super::elements::difference;
use super::super::script;
use super::*;

/// `clusterIP 10.96.0.1:80 tcp relay/drop 192.0.2.0/24 ...`: kind, address, protocol, verdicts for clients
/// inside and outside, and the allowed sources, or `nobody`, if not all are allowed.
fn state(text: &str) -> FrontendState {
    let mut words = text.split_whitespace();
    let mut word = || words.next().unwrap();
    let kinds = [
        FrontendKind::ClusterIp,
        FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer,
        FrontendKind::NodePort,
    ];
    let kind = word();
    let kind = kinds.into_iter().find(|known| known.to_string() == kind).unwrap();
    let address = word().parse().unwrap();
    let protocol = if word() == "tcp" { Protocol::Tcp } else { Protocol::Udp };
    let verdict = |verdict: &str| match verdict {
        "relay" => Verdict::Relay,
        "refuse" => Verdict::Refuse(Reason::NoEndpoints),
        "drop" => Verdict::Drop(Reason::NoLocalEndpoints),
        other => panic!("{other}"),
    };
    let (inside, outside) = word().split_once('/').unwrap();
    let (inside, outside) = (verdict(inside), verdict(outside));
    let sources: Vec<&str> = words.collect();
    let allowed_sources = match sources[..] {
        [] => None,
        ["nobody"] => Some([].into()),
        _ => Some(sources.iter().map(|source| source.parse().unwrap()).collect()),
    };
    FrontendState {
        frontend: Frontend { address, protocol },
        kind,
        port: ServicePortName { service: ObjectName::new("default", "web"), port: "".into(), protocol },
        inside,
        outside,
        allowed_sources,
    }
}

/// Each element on a line: its set, and the text for nft.
fn lines(wanted: &Wanted) -> Vec<String> {
    let line = |(key, value): (&Key, &Value)| {
        let set = key.place();
        match value {
            Value::Member => format!("{set} {key}"),
            Value::Goto(chain) => format!("{set} {key} : {}", chain.name()),
        }
    };
    wanted.elements().iter().map(line).collect()
}

/// Name of the case, frontends offered one after another (withdrawn with `-`), elements.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("a frontend that is relayed",
        &["clusterIP 10.96.0.1:80 tcp relay/relay"],
        &["frontends4 10.96.0.1 . tcp . 80 : relay"]),
    ("IPv6 and UDP",
        &["externalIP [2001:db8::1]:53 udp refuse/refuse"],
        &["frontends6 2001:db8::1 . udp . 53 : refuse", "external_ips6 2001:db8::1"]),
    ("a frontend that is dropped",
        &["clusterIP 10.96.0.1:80 tcp drop/drop"],
        &["frontends4 10.96.0.1 . tcp . 80 : discard"]),
    ("policy Local without a local endpoint",
        &["loadBalancer 203.0.113.5:80 tcp relay/drop"],
        &["frontends4 203.0.113.5 . tcp . 80 : inside_only", "external_ips4 203.0.113.5"]),
    ("relayed inside, refused outside: silence outside",
        &["loadBalancer 203.0.113.5:80 tcp relay/refuse"],
        &["frontends4 203.0.113.5 . tcp . 80 : inside_only", "external_ips4 203.0.113.5"]),
    ("relayed outside only: a worker refuses those inside",
        &["loadBalancer 203.0.113.5:80 tcp refuse/relay"],
        &["frontends4 203.0.113.5 . tcp . 80 : relay", "external_ips4 203.0.113.5"]),
    ("never relayed: what goes for those outside",
        &["loadBalancer 203.0.113.5:80 tcp refuse/drop", "loadBalancer 203.0.113.5:81 tcp drop/refuse"],
        &["frontends4 203.0.113.5 . tcp . 80 : discard", "frontends4 203.0.113.5 . tcp . 81 : refuse",
          "external_ips4 203.0.113.5"]),
    ("another verdict takes the place of the first",
        &["clusterIP 10.96.0.1:80 tcp relay/relay", "clusterIP 10.96.0.1:80 tcp refuse/refuse"],
        &["frontends4 10.96.0.1 . tcp . 80 : refuse"]),
    ("withdrawn",
        &["clusterIP 10.96.0.1:80 tcp relay/relay", "-clusterIP 10.96.0.1:80 tcp relay/relay"],
        &[]),
    ("withdrawn without having been there",
        &["-nodePort 192.0.2.1:30080 tcp relay/relay"],
        &[]),

    ("source ranges",
        &["loadBalancer 203.0.113.5:80 tcp relay/relay 192.0.2.0/24 198.51.100.0/24"],
        &["frontends4 203.0.113.5 . tcp . 80 : guarded_relay",
          "external_ips4 203.0.113.5", "allowed_sources4 203.0.113.5 . tcp . 80 . 192.0.2.0/24",
          "allowed_sources4 203.0.113.5 . tcp . 80 . 198.51.100.0/24"]),
    ("source ranges that overlap, touch, repeat themselves and have host bits",
        &["loadBalancer 203.0.113.5:80 tcp relay/relay 10.0.0.0/8 10.1.0.0/16 10.0.0.0/8 192.0.2.0/25 192.0.2.129/25"],
        &["frontends4 203.0.113.5 . tcp . 80 : guarded_relay",
          "external_ips4 203.0.113.5", "allowed_sources4 203.0.113.5 . tcp . 80 . 10.0.0.0/8",
          "allowed_sources4 203.0.113.5 . tcp . 80 . 192.0.2.0/24"]),
    ("the other family's ranges do not count, and nobody is allowed",
        &["loadBalancer 203.0.113.5:80 tcp relay/relay 2001:db8::/32"],
        &["frontends4 203.0.113.5 . tcp . 80 : guarded_relay", "external_ips4 203.0.113.5"]),
    ("an empty list allows nobody",
        &["loadBalancer [2001:db8::5]:80 tcp relay/relay nobody"],
        &["frontends6 2001:db8::5 . tcp . 80 : guarded_relay", "external_ips6 2001:db8::5"]),
    ("refused to those allowed, silence for the others",
        &["loadBalancer 203.0.113.5:80 tcp refuse/refuse 192.0.2.1/32"],
        &["frontends4 203.0.113.5 . tcp . 80 : guarded_refuse", "external_ips4 203.0.113.5",
          "allowed_sources4 203.0.113.5 . tcp . 80 . 192.0.2.1/32"]),
    ("policy Local with source ranges",
        &["loadBalancer 203.0.113.5:80 tcp relay/drop 192.0.2.0/24"],
        &["frontends4 203.0.113.5 . tcp . 80 : guarded_inside_only",
          "external_ips4 203.0.113.5", "allowed_sources4 203.0.113.5 . tcp . 80 . 192.0.2.0/24"]),
    ("silence for all needs no ranges",
        &["loadBalancer 203.0.113.5:80 tcp drop/drop 192.0.2.0/24"],
        &["frontends4 203.0.113.5 . tcp . 80 : discard", "external_ips4 203.0.113.5"]),
    ("source ranges change",
        &["loadBalancer 203.0.113.5:80 tcp relay/relay 192.0.2.0/24 10.0.0.0/8",
          "loadBalancer 203.0.113.5:80 tcp relay/relay 192.0.2.0/23"],
        &["frontends4 203.0.113.5 . tcp . 80 : guarded_relay", "external_ips4 203.0.113.5",
          "allowed_sources4 203.0.113.5 . tcp . 80 . 192.0.2.0/23"]),
    ("source ranges go",
        &["loadBalancer 203.0.113.5:80 tcp relay/relay 192.0.2.0/24", "loadBalancer 203.0.113.5:80 tcp relay/relay"],
        &["frontends4 203.0.113.5 . tcp . 80 : relay", "external_ips4 203.0.113.5"]),
    ("source ranges go with their frontend",
        &["loadBalancer 203.0.113.5:80 tcp relay/relay 192.0.2.0/24", "-loadBalancer 203.0.113.5:80 tcp relay/relay"],
        &[]),

    ("a nodePort on two addresses is one element",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.2:30080 tcp relay/relay"],
        &["node_ports4 tcp . 30080 : relay", "node_ips4 192.0.2.1", "node_ips4 192.0.2.2",
          "external_ips4 192.0.2.1", "external_ips4 192.0.2.2"]),
    ("a nodePort leaves one address",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.2:30080 tcp relay/relay",
          "-nodePort 192.0.2.1:30080 tcp relay/relay"],
        &["node_ports4 tcp . 30080 : relay", "node_ips4 192.0.2.2", "external_ips4 192.0.2.2"]),
    ("one of two nodePorts goes, the address stays",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.1:30081 udp refuse/refuse",
          "-nodePort 192.0.2.1:30080 tcp relay/relay"],
        &["node_ports4 udp . 30081 : refuse", "node_ips4 192.0.2.1", "external_ips4 192.0.2.1"]),
    ("the last nodePort goes, and the address",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "-nodePort 192.0.2.1:30080 tcp relay/relay"],
        &[]),
    ("families are apart",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort [2001:db8::1]:30080 tcp refuse/refuse"],
        &["node_ports4 tcp . 30080 : relay", "node_ports6 tcp . 30080 : refuse", "node_ips4 192.0.2.1",
          "node_ips6 2001:db8::1",
          "external_ips4 192.0.2.1", "external_ips6 2001:db8::1"]),
    ("a nodePort's verdict changes, address by address",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.2:30080 tcp relay/relay",
          "nodePort 192.0.2.2:30080 tcp refuse/refuse", "nodePort 192.0.2.1:30080 tcp refuse/refuse"],
        &["node_ports4 tcp . 30080 : refuse", "node_ips4 192.0.2.1", "node_ips4 192.0.2.2",
          "external_ips4 192.0.2.1", "external_ips4 192.0.2.2"]),
    ("addresses that differ, which the rules never say: a frontend for what differs",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.2:30080 tcp drop/drop"],
        &["frontends4 192.0.2.2 . tcp . 30080 : discard", "node_ports4 tcp . 30080 : relay", "node_ips4 192.0.2.1",
          "node_ips4 192.0.2.2",
          "external_ips4 192.0.2.1", "external_ips4 192.0.2.2"]),
    ("addresses that differ, and the one that did goes",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.2:30080 tcp drop/drop",
          "-nodePort 192.0.2.2:30080 tcp drop/drop"],
        &["node_ports4 tcp . 30080 : relay", "node_ips4 192.0.2.1", "external_ips4 192.0.2.1"]),
    ("addresses that differ, and the first one goes",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "nodePort 192.0.2.2:30080 tcp drop/drop",
          "-nodePort 192.0.2.1:30080 tcp relay/relay"],
        &["node_ports4 tcp . 30080 : discard", "node_ips4 192.0.2.2", "external_ips4 192.0.2.2"]),
    ("an external IP that is the node's, with a nodePort's number, is looked up first",
        &["nodePort 192.0.2.2:30080 tcp relay/relay", "nodePort 192.0.2.1:31000 tcp relay/relay",
          "externalIP 192.0.2.1:30080 tcp refuse/refuse"],
        &["frontends4 192.0.2.1 . tcp . 30080 : refuse", "node_ports4 tcp . 30080 : relay",
          "node_ports4 tcp . 31000 : relay", "node_ips4 192.0.2.1", "node_ips4 192.0.2.2",
          "external_ips4 192.0.2.1", "external_ips4 192.0.2.2"]),
    ("a frontend passes from a nodePort to an external IP and back",
        &["nodePort 192.0.2.1:30080 tcp relay/relay", "externalIP 192.0.2.1:30080 tcp refuse/refuse",
          "nodePort 192.0.2.1:30080 tcp drop/drop"],
        &["node_ports4 tcp . 30080 : discard", "node_ips4 192.0.2.1", "external_ips4 192.0.2.1"]),
];

#[test]
fn cases() {
    for (name, steps, elements) in CASES {
        let mut wanted = Wanted::default();
        let mut settled = Elements::new();
        for step in *steps {
            match step.strip_prefix('-') {
                Some(step) => wanted.withdraw(state(step).frontend),
                None => wanted.offer(&state(step)),
            }
            assert_eq!(wanted.delta(), difference(&settled, wanted.elements()), "{name}: after {step}");
            wanted.settle();
            assert!(wanted.delta().is_empty(), "{name}: settled");
            settled.clone_from(wanted.elements());
        }
        assert_eq!(lines(&wanted), *elements, "{name}");

        let mut at_once = Wanted::default();
        for step in *steps {
            match step.strip_prefix('-') {
                Some(step) => at_once.withdraw(state(step).frontend),
                None => at_once.offer(&state(step)),
            }
        }
        assert_eq!(at_once.delta(), difference(&Elements::new(), wanted.elements()), "{name}: in one step");
    }
}

#[test]
fn what_comes_and_goes_in_one_step_is_no_change() {
    let mut wanted = Wanted::default();
    let frontend = state("loadBalancer 203.0.113.5:80 tcp relay/relay 192.0.2.0/24");
    let node_port = state("nodePort 192.0.2.1:30080 tcp relay/relay");
    wanted.offer(&frontend);
    wanted.offer(&node_port);
    wanted.settle();
    for state in [&frontend, &node_port] {
        wanted.withdraw(state.frontend);
        wanted.offer(state);
        wanted.offer(state);
    }
    assert!(wanted.delta().is_empty(), "{:?}", wanted.delta());
}

fn cidrs(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect()
}

#[test]
fn ranges_never_overlap() {
    let mut wanted = Wanted::default();
    wanted.change_cluster_addresses(&ClusterAddressChange {
        added: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        removed: Vec::new(),
        ranges: Some(cidrs("10.96.0.0/16 10.96.0.0/12 10.112.0.0/12 fd00::/108")),
    });
    wanted.set_local_pods(&cidrs("10.244.1.0/24 10.244.0.0/16"));
    wanted.set_untracked(&cidrs("10.244.0.0/16 fd00:244::/48 fd00:244:0:1::/64"));
    let all = [
        "cluster_ips4 10.96.0.1",
        "cluster_ips6 fd00::1",
        "service_cidrs4 10.96.0.0/11",
        "service_cidrs6 fd00::/108",
        "local_pods4 10.244.0.0/16",
        "untracked4 10.244.0.0/16",
        "untracked6 fd00:244::/48",
    ];
    assert_eq!(lines(&wanted), all);

    wanted.settle();
    wanted.set_local_pods(&cidrs("10.244.0.0/16"));
    wanted.set_untracked(&cidrs("fd00:244::/48 10.244.0.0/16"));
    wanted.change_cluster_addresses(&ClusterAddressChange::default());
    assert!(wanted.delta().is_empty(), "the same in other words");

    wanted.change_cluster_addresses(&ClusterAddressChange {
        added: Vec::new(),
        removed: vec!["10.96.0.1".parse().unwrap()],
        ranges: Some(Vec::new()),
    });
    wanted.set_local_pods(&[]);
    wanted.set_untracked(&[]);
    assert_eq!(lines(&wanted), ["cluster_ips6 fd00::1"]);
}

#[test]
fn where_only_pods_are_is_known_once_the_nodes_addresses_are_and_follows_all_that_changes() {
    let ips = |text: &str| text.split_whitespace().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
    let mut wanted = Wanted::default();
    let pods = |wanted: &mut Wanted| {
        wanted.settle_pods();
        let all = lines(wanted);
        let rules = all.iter().filter_map(|line| line.strip_prefix("to_pods4 ip daddr "));
        rules.collect::<Vec<_>>().join(", ")
    };
    let services = |added: &str, removed: &str, ranges: Option<&str>| ClusterAddressChange {
        added: ips(added),
        removed: ips(removed),
        ranges: ranges.map(cidrs),
    };
    wanted.set_untracked(&cidrs("10.244.0.0/30"));
    wanted.change_cluster_addresses(&services("10.96.0.1", "", Some("10.96.0.0/16")));
    assert_eq!(pods(&mut wanted), "");
    wanted.set_node_addresses(&ips("127.0.0.1 192.0.2.1"));
    assert_eq!(pods(&mut wanted), "10.244.0.0/30 goto between_pods");
    assert!(lines(&wanted).contains(&"from_pods4 ip saddr 10.244.0.0/30 goto time_wait4".to_owned()));
    wanted.set_node_addresses(&ips("127.0.0.1 10.244.0.1"));
    assert_eq!(pods(&mut wanted), "10.244.0.1/32 return, 10.244.0.0/30 goto between_pods");
    wanted.change_cluster_addresses(&services("", "", Some("10.96.0.0/16 10.244.0.2/31")));
    assert_eq!(
        pods(&mut wanted),
        "10.244.0.1/32 return, 10.244.0.2/31 return, 10.244.0.0/30 goto between_pods"
    );
    wanted.set_untracked(&[]);
    assert_eq!(pods(&mut wanted), "");
}

#[test]
fn however_many_addresses_services_have_among_pods_they_are_one_rule() {
    let mut wanted = Wanted::default();
    let pods = |wanted: &mut Wanted| {
        wanted.settle_pods();
        let edits = wanted.delta();
        wanted.settle();
        let all = lines(wanted);
        let rules = all.iter().filter_map(|line| line.strip_prefix("to_pods4 ip daddr "));
        (rules.collect::<Vec<_>>().join(", "), script::changes_rules(&edits))
    };
    let services = |added: &str, removed: &str| {
        let ips = |text: &str| text.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        ClusterAddressChange { added: ips(added), removed: ips(removed), ranges: None }
    };
    wanted.set_untracked(&cidrs("10.244.0.0/24"));
    wanted.set_node_addresses(&["10.244.0.1".parse().unwrap()]);
    // The node's own address, one in another network, one of the other family: none would be taken for a pod's.
    for address in ["10.244.0.1", "192.0.2.1", "[fd00:244::1]"] {
        wanted.offer(&state(&format!("externalIP {address}:80 tcp relay/relay")));
    }
    let (without, is_changed) = pods(&mut wanted);
    assert_eq!((&*without, is_changed), ("10.244.0.1/32 return, 10.244.0.0/24 goto between_pods", true));
    for last in 10..100 {
        wanted.offer(&state(&format!("externalIP 10.244.0.{last}:80 tcp relay/relay")));
        let (rules, is_changed) = pods(&mut wanted);
        let wanted = "10.244.0.1/32 return, @external_ips4 return, 10.244.0.0/24 goto between_pods";
        assert_eq!((&*rules, is_changed), (wanted, last == 10));
    }
    // Adding and removing them changes no rules.
    for last in 10..100 {
        wanted.withdraw(state(&format!("externalIP 10.244.0.{last}:80 tcp relay/relay")).frontend);
        assert!(!pods(&mut wanted).1);
    }
    wanted.change_cluster_addresses(&services("10.244.0.2", ""));
    assert!(pods(&mut wanted).0.contains("@cluster_ips4 return"));
    wanted.change_cluster_addresses(&services("", "10.244.0.2"));
    assert!(!pods(&mut wanted).1);
    // Another change is applied, and unneeded rules are removed.
    wanted.set_node_addresses(&["10.244.0.1".parse().unwrap()]);
    assert_eq!(pods(&mut wanted), (without, true));
}

#[test]
fn what_comes_and_goes_while_nothing_takes_effect_leaves_nothing() {
    let mut wanted = Wanted::default();
    let stays = state("clusterIP 10.96.0.1:80 tcp relay/relay");
    wanted.offer(&stays);
    wanted.settle();
    for n in 2..=100 {
        let comes = state(&format!("clusterIP 10.96.0.{n}:80 tcp relay/relay 192.0.2.{n}/32"));
        wanted.offer(&comes);
        wanted.withdraw(comes.frontend);
        wanted.withdraw(stays.frontend);
        wanted.offer(&stays);
    }
    assert!(wanted.touched.is_empty(), "{:?}", wanted.touched);
}
