//! Changes of Services are changes of elements, and of nothing else.

use std::time::Instant;

use sluice_capture::Capture;
use sluice_capture::tproxy::{Config, Error, LocalPods, Tproxy, cleanup};
use sluice_model::FrontendKind;
use sluice_table::Verdict;

use crate::namespace::{Monitor, in_namespace, kernel_state, run, table};
use crate::services::{REFUSE, config, guarded, offer, serving, state, withdraw};

/// How many rules the table has.
fn rules() -> usize {
    let listing = run("nft --handle --terse list table inet sluice");
    // Tables, chains and sets have their handles on the line with the brace.
    listing.lines().filter(|line| line.contains("# handle") && !line.contains('{')).count()
}

#[test]
fn the_number_of_rules_does_not_depend_on_services() {
    in_namespace(|| {
        let tproxy = serving(config(), 10);
        let few = rules();
        assert!(few > 50, "{few}");
        drop(tproxy);
        let start = Instant::now();
        let tproxy = serving(config(), 5_000);
        println!("from 10 to 5,000 Services: {:?}, {:?}", start.elapsed(), tproxy.stats());
        assert_eq!(rules(), few);
    });
}

#[test]
fn five_thousand_services_in_one_transaction_and_away() {
    in_namespace(|| {
        let mut tproxy = Tproxy::start(config()).unwrap();
        let (states, cluster_addresses) = crate::services::services(5_000);
        let clock = |what: &str, tproxy: &mut Tproxy, change: sluice_capture::Change<'_>| {
            let start = Instant::now();
            tproxy.change(change, start);
            println!("{what}: {:?}", start.elapsed());
        };
        let cluster_addresses = &cluster_addresses;
        let offer = sluice_capture::Change { withdraw: &[], offer: &states, cluster_addresses };
        clock("5,000 Services, 30,000 frontends", &mut tproxy, offer);
        assert_eq!(tproxy.stats().transactions, 1);
        assert_eq!(tproxy.stats().elements, 20_000 + 10_000 + 2 + 2 + 10_000 + 2 + 1 + 2 + 2 + 2);

        let nothing = &sluice_table::ClusterAddressChange::default();
        let one = [state(FrontendKind::ExternalIp, "203.0.113.5".parse().unwrap(), 80, Verdict::Relay)];
        let offer = sluice_capture::Change { withdraw: &[], offer: &one, cluster_addresses: nothing };
        clock("one more", &mut tproxy, offer);
        let start = Instant::now();
        tproxy.keep(start);
        println!("a look when nothing has changed: {:?}", start.elapsed());
        run("nft add table inet other");
        let start = Instant::now();
        tproxy.keep(start);
        println!("a look when others have changed something: {:?}", start.elapsed());

        let cluster_addresses = &sluice_table::ClusterAddressChange {
            removed: cluster_addresses.added.clone(),
            ranges: Some(Vec::new()),
            ..Default::default()
        };
        let away = sluice_capture::Change { withdraw: &states, offer: &[], cluster_addresses };
        clock("5,000 Services away", &mut tproxy, away);
        assert_eq!(
            tproxy.stats().elements,
            1 + 1 + 1 + 2 + 2 + 2,
            "the external IP with its address, and where pods are"
        );
        assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (3, 0));
    });
}

#[test]
fn one_change_is_one_transaction_that_touches_its_elements_only() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 100);
        let mut monitor = Monitor::new();
        let ip = "10.96.0.7".parse().unwrap();

        offer(&mut tproxy, &[state(FrontendKind::ClusterIp, ip, 80, REFUSE)]);
        let refused = [
            "delete element inet sluice frontends4 { 10.96.0.7 . tcp . 80 : goto relay }",
            "add element inet sluice frontends4 { 10.96.0.7 . tcp . 80 : goto refuse }",
        ];
        assert_eq!(monitor.transactions(), [refused]);

        offer(&mut tproxy, &[state(FrontendKind::ClusterIp, ip, 80, REFUSE)]);
        assert!(monitor.transactions().is_empty(), "no change, no transaction");

        withdraw(&mut tproxy, &[state(FrontendKind::ClusterIp, ip, 80, REFUSE)]);
        let gone = ["delete element inet sluice frontends4 { 10.96.0.7 . tcp . 80 : goto refuse }"];
        assert_eq!(monitor.transactions(), [gone]);

        offer(&mut tproxy, &[state(FrontendKind::NodePort, "192.0.2.1".parse().unwrap(), 31_000, REFUSE)]);
        let node_port = ["add element inet sluice node_ports4 { tcp . 31000 : goto refuse }"];
        assert_eq!(monitor.transactions(), [node_port]);
        assert_eq!(tproxy.stats().failures, 0);
    });
}

#[test]
fn source_ranges_that_overlap_in_every_way() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 1);
        let empty = table();
        // Each list after the one before: ranges grow, shrink, split and merge.
        for sources in [
            "10.0.0.0/9 192.0.2.0/24",
            "10.0.0.0/8 10.1.0.0/16 192.0.2.0/25",
            "10.0.0.0/9 10.128.0.0/10 192.0.2.128/25 192.0.2.0/25",
            "0.0.0.0/1 128.0.0.0/1",
            "0.0.0.0/1",
            "127.0.0.0/8 128.0.0.0/2 198.51.100.7/32",
        ] {
            for ip in ["203.0.113.5", "203.0.113.6"] {
                offer(&mut tproxy, &[guarded(ip, sources)]);
            }
            assert_eq!(tproxy.stats().failures, 0, "{sources}");
        }
        for sources in ["2001:db8::/32 2001:db8:1::/48", "2001:db8:1::/48 2001:db8:2::/47", "::/1 8000::/1"] {
            offer(&mut tproxy, &[guarded("fd00:cb::5", sources)]);
            assert_eq!(tproxy.stats().failures, 0, "{sources}");
        }
        let listed = run("nft list set inet sluice allowed_sources4");
        assert_eq!(listed.matches("203.0.113.5 . tcp . 80 . ").count(), 3, "{listed}");
        withdraw(
            &mut tproxy,
            &["203.0.113.5", "203.0.113.6", "fd00:cb::5"].map(|ip| guarded(ip, "192.0.2.0/24")),
        );
        assert_eq!(table(), empty);
        assert_eq!((tproxy.stats().failures, tproxy.stats().repairs), (0, 0));
    });
}

#[test]
fn every_configuration_loads() {
    in_namespace(|| {
        let interface = |pattern: &str| LocalPods::Interface { pattern: pattern.to_owned() };
        for local_pods in [LocalPods::None, LocalPods::NodeCidrs, interface("cni0"), interface("veth*")] {
            for track in [false, true] {
                let config = Config { local_pods: local_pods.clone(), track, ..config() };
                let tproxy = serving(config, 1);
                assert_eq!(tproxy.stats().transactions, 1, "each takes the place of the one before");
                assert_eq!(run("nft list table inet sluice").contains("notrack"), !track);
            }
        }
        for pattern in ["", "*", "a b", "\"", "a\" accept", "*a", "a-name-that-is-too-long"] {
            let refused = Tproxy::start(Config { local_pods: interface(pattern), ..config() });
            assert!(matches!(refused, Err(Error::Interface(_))), "{pattern}");
        }
    });
}

#[test]
fn pod_networks_of_the_node_are_learnt_later() {
    in_namespace(|| {
        let config = Config { local_pods: LocalPods::NodeCidrs, ..config() };
        let mut tproxy = Tproxy::start(config).unwrap();
        let cidrs = |text: &str| text.split(' ').map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>();
        tproxy.set_node_pod_cidrs(&cidrs("10.244.1.0/24"));
        assert_eq!(tproxy.stats().transactions, 0, "nothing before it is known what there is to be");
        offer(&mut tproxy, &[]);
        let set = |name: &str| run(&format!("nft list set inet sluice {name}"));
        assert!(set("local_pods4").contains("elements = { 10.244.1.0/24 }"), "{}", set("local_pods4"));
        assert!(set("untracked4").contains("elements = { 10.244.0.0/16 }"), "{}", set("untracked4"));
        tproxy.set_node_pod_cidrs(&cidrs("10.245.0.0/24 fd00:245::/64"));
        assert!(set("local_pods4").contains("elements = { 10.245.0.0/24 }"), "{}", set("local_pods4"));
        assert!(set("local_pods6").contains("elements = { fd00:245::/64 }"), "{}", set("local_pods6"));
        let untracked = set("untracked6");
        assert!(untracked.contains("fd00:244::/48") && untracked.contains("fd00:245::/64"), "{untracked}");
        assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (2, 0));
    });
}

#[test]
fn cleanup_removes_what_is_ours_and_nothing_else() {
    in_namespace(|| {
        run("nft add table inet other");
        run("nft add table ip sluice");
        run("ip rule add fwmark 0x10/0x30 lookup 100 priority 91");
        run("ip route add local default dev lo table 7584");
        let before = kernel_state();
        let tproxy = serving(config(), 10);
        drop(tproxy);
        let during = kernel_state();
        assert!(during.contains("table inet sluice") && during.contains("7583"), "{during}");
        let cleaned = cleanup().unwrap();
        assert_eq!(cleaned.removed.len(), 8, "{cleaned:?}");
        assert_eq!(kernel_state(), before);
        assert!(cleanup().unwrap().removed.is_empty(), "there is nothing left to remove");
        assert_eq!(kernel_state(), before);
    });
}
