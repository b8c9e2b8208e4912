//! What an earlier run left is taken over without a gap.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sluice_capture::Capture;
use sluice_capture::tproxy::{Config, Tproxy};
use sluice_model::{FrontendKind, Protocol};
use sluice_table::Verdict;

use crate::namespace::{Monitor, in_namespace, kernel_state, run, table};
use crate::services::{REFUSE, config, guarded, offer, serving, state};

#[test]
fn the_same_again_changes_nothing() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 50);
        offer(
            &mut tproxy,
            &[guarded("203.0.113.5", "192.0.2.0/24 10.0.0.0/8"), guarded("fd00:cb::5", "fd00::/8")],
        );
        drop(tproxy);
        let before = kernel_state();
        let mut monitor = Monitor::new();
        let mut tproxy = Tproxy::start(config()).unwrap();
        let (states, addresses) = crate::services::services(50);
        let states = [
            states,
            vec![guarded("203.0.113.5", "10.0.0.0/8 192.0.2.0/24"), guarded("fd00:cb::5", "fd00::/8")],
        ]
        .concat();
        let change = sluice_capture::Change { withdraw: &[], offer: &states, cluster_addresses: &addresses };
        tproxy.change(change, Instant::now());
        assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (0, 0));
        assert!(monitor.transactions().is_empty());
        assert_eq!(kernel_state(), before);

        offer(
            &mut tproxy,
            &[state(FrontendKind::ClusterIp, "10.96.0.1".parse().unwrap(), 81, Verdict::Relay)],
        );
        let added = ["add element inet sluice frontends4 { 10.96.0.1 . tcp . 81 : goto relay }"];
        assert_eq!(monitor.transactions(), [added], "and it goes on by difference");
    });
}

#[test]
fn of_another_state_the_difference_is_changed() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 3);
        offer(
            &mut tproxy,
            &[state(FrontendKind::ExternalIp, "203.0.113.5".parse().unwrap(), 80, Verdict::Relay)],
        );
        drop(tproxy);
        let mut monitor = Monitor::new();
        let tproxy = serving(config(), 3);
        let gone = [
            "delete element inet sluice frontends4 { 203.0.113.5 . tcp . 80 : goto relay }",
            "delete element inet sluice external_ips4 { 203.0.113.5 }",
        ];
        assert_eq!(monitor.transactions(), [gone]);
        assert_eq!(tproxy.stats().repairs, 0, "nobody has changed anything");
    });
}

#[test]
fn another_structure_is_replaced_in_one_transaction() {
    in_namespace(|| {
        drop(serving(Config { track: true, ..config() }, 3));
        let mut monitor = Monitor::new();
        let mut tproxy = serving(config(), 3);
        let transactions = monitor.transactions();
        assert_eq!(transactions.len(), 1);
        assert!(transactions.concat().contains(&"delete chain inet sluice structure".to_owned()));
        let fresh = table();
        assert_eq!(tproxy.stats().repairs, 0);
        offer(&mut tproxy, &[]);
        run("nft delete table inet sluice");
        drop(serving(config(), 3));
        assert_eq!(table(), fresh, "the same as without an earlier run");
    });
}

/// A packet that is in the old rules meanwhile finds what it would have found, and is in each hook once.
#[test]
fn under_another_structure_chains_stay_and_elements_but_for_their_difference() {
    in_namespace(|| {
        let mut old = serving(Config { track: true, ..config() }, 3);
        let gone = [state(FrontendKind::ExternalIp, "203.0.113.5".parse().unwrap(), 80, Verdict::Relay)];
        offer(&mut old, &gone);
        let guarded = guarded("203.0.113.6", "192.0.2.0/24 10.0.0.0/8");
        offer(&mut old, std::slice::from_ref(&guarded));
        drop(old);
        let mut monitor = Monitor::new();
        let mut tproxy = Tproxy::start(config()).unwrap();
        let (mut states, addresses) = crate::services::services(3);
        states.push(guarded);
        (states[0].inside, states[0].outside) = (REFUSE, REFUSE);
        let change = sluice_capture::Change { withdraw: &[], offer: &states, cluster_addresses: &addresses };
        tproxy.change(change, Instant::now());
        assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (1, 0));
        let transactions = monitor.transactions();
        // Sets without a name go and come with their rules.
        let of = |verb: &str| {
            let lines = transactions[0].iter().filter(|line| line.starts_with(verb));
            let lines = lines.filter(|line| !line.contains(" rule ") && !line.contains(" __"));
            lines.map(|line| line.replace("inet sluice ", "")).collect::<Vec<_>>()
        };
        let deleted = [
            "delete chain structure",
            "delete element frontends4 { 10.96.0.0 . tcp . 80 : goto relay }",
            "delete element frontends4 { 203.0.113.5 . tcp . 80 : goto relay }",
            "delete element external_ips4 { 203.0.113.5 }",
        ];
        assert_eq!(of("delete"), deleted);
        assert_eq!(of("add element"), ["add element frontends4 { 10.96.0.0 . tcp . 80 : goto refuse }"]);
        let fresh = table();
        run("nft delete table inet sluice");
        tproxy.keep(Instant::now());
        assert_eq!(table(), fresh, "the same as without an earlier run");
    });
}

/// Connections of the agent that it takes the place of go on, and their packets find them in these sets.
#[test]
fn what_packets_have_put_into_sets_outlives_another_structure() {
    const FLOW: &str = "10.244.0.7 . tcp . 8080 . 192.0.2.1 . 40000 timeout 3m";
    const SETS: [&str; 3] = ["inet sluice host_flows4", "inet sluice node_flows4", "bridge sluice answers4"];
    in_namespace(|| {
        drop(serving(Config { track: true, ..config() }, 3));
        for set in SETS {
            run(&format!("nft add element {set} {{ {FLOW} }}"));
        }
        run("nft add element bridge sluice ports { lo timeout 3m : 02:00:00:00:00:01 }");
        run("nft flush chain bridge sluice structure");
        run("nft delete chain bridge sluice structure");
        drop(serving(config(), 3));
        assert!(run("nft list table bridge sluice").contains("chain structure"));
        for set in SETS {
            let listed = run(&format!("nft list set {set}"));
            assert!(
                listed.contains("10.244.0.7 . tcp . 8080 . 192.0.2.1 . 40000 timeout 3m expires"),
                "{listed}"
            );
        }
        assert!(run("nft list map bridge sluice ports").contains("02:00:00:00:00:01"));
    });
}

/// Of an earlier version, which had other sizes.
#[test]
fn what_packets_have_put_into_sets_outlives_another_size() {
    const FLOW: &str = "10.244.0.7 . tcp . 8080 . 192.0.2.1 . 40000 timeout 3m";
    const SETS: [(&str, &str, u32); 3] =
        [("inet", "host_flows4", 7), ("inet", "node_flows4", 1_000_000), ("bridge", "answers4", 7)];
    in_namespace(|| {
        for (family, set, size) in SETS {
            run(&format!(
                "nft add table {family} sluice {{ comment \"Sluice keeps it: edits are undone\"; }}"
            ));
            let kind = "type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service";
            run(&format!(
                "nft add set {family} sluice {set} {{ {kind}; size {size}; flags dynamic,timeout; }}"
            ));
            run(&format!("nft add element {family} sluice {set} {{ {FLOW} }}"));
        }
        let structure = "comment \"Kubernetes Services. Sluice 0.0.1, structure 1\";";
        run(&format!("nft add chain inet sluice structure {{ {structure} }}"));
        let tproxy = serving(config(), 3);
        assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (1, 0));
        let changes_sizes = kernel() >= (6, 5);
        for (family, set, size) in SETS {
            let listed = run(&format!("nft list set {family} sluice {set}"));
            assert!(listed.contains(&format!("{FLOW} expires")), "{listed}");
            let size = if changes_sizes { 262_144 } else { size };
            assert!(listed.contains(&format!("size {size}\n")), "{listed}");
        }
    });
}

/// Its version and the one below it.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A packet that is in the old rules when they are replaced finds their maps empty.
#[test]
fn nobody_is_refused_while_the_table_is_written_anew() {
    const ROUNDS: usize = 30;
    in_namespace(|| {
        run("ip route add 10.96.0.0/16 dev lo");
        let (mut states, addresses) = crate::services::services(3);
        let mut udp = state(FrontendKind::ClusterIp, "10.96.0.1".parse().unwrap(), 80, Verdict::Relay);
        udp.frontend.protocol = Protocol::Udp;
        states.push(udp);
        let serve = |config| {
            let mut tproxy = Tproxy::start(config).unwrap();
            let change =
                sluice_capture::Change { withdraw: &[], offer: &states, cluster_addresses: &addresses };
            tproxy.change(change, Instant::now());
            assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (1, 0));
        };
        serve(config());
        let is_over = AtomicBool::new(false);
        // Threads that a thread starts are in its namespace.
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let mut failures = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    failures.extend(socket.send_to(b"a", "10.96.0.1:80").err());
                }
                failures
            });
            for round in 0..ROUNDS {
                serve(Config { track: round % 2 == 0, ..config() });
            }
            is_over.store(true, Ordering::Relaxed);
            let failures = sender.join().unwrap();
            assert!(failures.is_empty(), "{} failures: {:?}", failures.len(), failures.first());
        });
    });
}

/// nft takes 19 s to list a set that packets have filled, and the next agent has to know what is its own only.
#[test]
fn what_packets_have_put_into_sets_is_not_listed() {
    const FLOWS: usize = 20_000;
    in_namespace(|| {
        drop(serving(config(), 50));
        let script = tempfile::NamedTempFile::new().unwrap();
        let flows: Vec<String> = (0..FLOWS)
            .map(|flow| {
                format!("10.244.{}.{} . tcp . 8080 . 192.0.2.1 . 40000 timeout 1h", flow / 250, flow % 250)
            })
            .collect();
        let elements = format!("add element inet sluice host_flows4 {{ {} }}", flows.join(", "));
        fs::write(script.path(), elements).unwrap();
        run(&format!("nft --file {}", script.path().display()));
        let before = bytes_read();
        let mut tproxy = serving(config(), 50);
        assert_eq!((tproxy.stats().transactions, tproxy.stats().failures), (0, 0));
        run("nft delete element inet sluice frontends4 { 10.96.0.1 . tcp . 80 }");
        tproxy.keep(Instant::now());
        assert_eq!(tproxy.stats().repairs, 1);
        let read = bytes_read() - before;
        assert!(read < 30 * FLOWS as u64, "{read} bytes: no more than a part of each flow's addresses");
        assert!(run("nft list set inet sluice host_flows4").contains("10.244.79.249"), "they are kept");
    });
}

/// What this thread has read so far: the output of programs, for one.
fn bytes_read() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/io").unwrap();
    counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_table_that_only_says_it_is_ours_is_replaced() {
    in_namespace(|| {
        drop(serving(config(), 3));
        let whole = table();
        for damage in [
            "nft flush chain inet sluice relay",
            "nft add rule inet sluice prerouting accept",
            "nft insert rule inet sluice services4 drop",
            "nft add chain inet sluice more",
            "nft add set inet sluice more { type ipv4_addr; }",
            "nft add element inet sluice service_cidrs4 { 192.0.2.1-192.0.2.7 }",
            "nft add element inet sluice frontends4 { 192.0.2.1 . sctp . 7 : goto relay }",
        ] {
            run(damage);
            assert_ne!(table(), whole, "{damage}");
            let tproxy = serving(config(), 3);
            assert_eq!(table(), whole, "{damage}");
            assert_eq!(tproxy.stats().transactions, 1, "{damage}");
        }
    });
}
