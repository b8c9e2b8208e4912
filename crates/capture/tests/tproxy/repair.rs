//! What somebody else changes is noticed and undone; what fails is tried again.

use std::time::{Duration, Instant};

use sluice_capture::tproxy::{Error, Stats, Tproxy};
use sluice_capture::{Capture, program};
use sluice_model::FrontendKind;
use sluice_table::Verdict;

use crate::namespace::{BrokenNft, Monitor, in_namespace, kernel_state, run, table, try_run};
use crate::services::{config, guarded, offer, serving, state, withdraw};

/// Longer than any pause of a retry or between two looks.
const LATER: Duration = Duration::from_secs(60);

/// What it has done, whatever packets do meanwhile.
fn acts(stats: Stats) -> [u64; 4] {
    [stats.transactions, stats.failures, stats.repairs, stats.elements]
}

#[test]
fn damage_of_every_kind_is_repaired_at_the_next_look() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 20);
        offer(&mut tproxy, &[guarded("203.0.113.5", "192.0.2.0/24 10.0.0.0/8")]);
        let whole = table();
        let mut now = Instant::now();
        tproxy.keep(now);
        assert_eq!(tproxy.stats().repairs, 0);
        let damages = [
            "nft flush ruleset",
            "nft delete table inet sluice",
            "nft flush table inet sluice",
            "nft flush chain inet sluice prerouting",
            "nft flush chain bridge sluice output",
            "nft delete table bridge sluice",
            "nft insert rule inet sluice prerouting accept",
            "nft flush set inet sluice cluster_ips4",
            "nft flush map inet sluice frontends6",
            "nft delete element inet sluice frontends4 { 10.96.0.3 . tcp . 80 }",
            "nft add element inet sluice frontends4 { 192.0.2.7 . udp . 53 : goto refuse }",
            "nft add element inet sluice service_cidrs4 { 192.0.2.1-192.0.2.7 }",
            "nft delete element inet sluice allowed_sources4 { 203.0.113.5 . tcp . 80 . 10.0.0.0/8 }",
        ];
        for (before, damage) in damages.into_iter().enumerate() {
            now += LATER;
            run(damage);
            tproxy.keep(now);
            assert_eq!(table(), whole, "{damage}");
            let stats = tproxy.stats();
            assert_eq!((stats.repairs, stats.failures), (before as u64 + 1, 0), "{damage}");
            // And that was it.
            tproxy.keep(now + LATER / 2);
            assert_eq!(acts(tproxy.stats()), acts(stats), "{damage}");
        }
    });
}

#[test]
fn a_change_finds_what_others_did_in_between() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 3);
        let one = [state(FrontendKind::ExternalIp, "203.0.113.5".parse().unwrap(), 80, Verdict::Relay)];
        offer(&mut tproxy, &one);
        let whole = table();
        withdraw(&mut tproxy, &one);
        run("nft flush ruleset");
        offer(&mut tproxy, &one);
        assert_eq!(table(), whole);

        run("nft flush map inet sluice frontends4");
        withdraw(&mut tproxy, &one);
        offer(&mut tproxy, &one);
        assert_eq!(table(), whole);
        assert_eq!((tproxy.stats().repairs, tproxy.stats().failures), (2, 0));
    });
}

#[test]
fn others_may_change_their_tables_as_often_as_they_like() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 20);
        let mut now = Instant::now();
        let mut monitor = Monitor::new();
        let directory = tempfile::tempdir().unwrap();
        let stats = tproxy.stats();
        for number in 0..20 {
            run(&format!("nft add table inet other{number}"));
            let broken = BrokenNft::new(directory.path());
            now += Duration::from_millis(250);
            tproxy.keep(now);
            assert_eq!(acts(tproxy.stats()), acts(stats), "without a look at our table");
            drop(broken);
        }
        assert_eq!(monitor.transactions().len(), 20, "all of them others'");

        // Nor after a change of ours that came before the look.
        run("nft add table inet other");
        offer(&mut tproxy, &[guarded("203.0.113.5", "192.0.2.0/24")]);
        let broken = BrokenNft::new(directory.path());
        tproxy.keep(now);
        assert_eq!(tproxy.stats().failures, 0);
        drop(broken);
    });
}

#[test]
fn elements_are_not_compared_all_the_time_but_before_long() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 20);
        let whole = table();
        let now = Instant::now();
        run("nft flush map inet sluice frontends4");
        tproxy.keep(now);
        assert_eq!(table(), whole, "the first time at once");
        run("nft flush map inet sluice frontends4");
        tproxy.keep(now);
        assert_ne!(table(), whole, "then it waits");
        tproxy.keep(now + LATER);
        assert_eq!(table(), whole);
        // The structure is looked at each time.
        for _ in 0..3 {
            run("nft flush ruleset");
            tproxy.keep(now + LATER);
            assert_eq!(table(), whole);
        }
        assert_eq!((tproxy.stats().repairs, tproxy.stats().failures), (5, 0));
    });
}

#[test]
fn more_changes_than_the_kernel_can_tell_of() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 20);
        let whole = table();
        let stats = tproxy.stats();
        let directory = tempfile::tempdir().unwrap();
        let others = directory.path().join("others");
        let elements: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        let set = format!("elements = {{ {} }}", elements.join(", "));
        std::fs::write(&others, format!("table ip other {{ set large {{ type mark; {set}; }}\n}}\n"))
            .unwrap();
        run(&format!("nft -f {}", others.display()));
        let now = Instant::now();
        tproxy.keep(now);
        assert_eq!(acts(tproxy.stats()), acts(stats));

        // The second one is not told any more.
        run("nft flush set ip other large");
        run("nft flush map inet sluice frontends6");
        tproxy.keep(now + LATER);
        assert_eq!(table(), whole);
        assert_eq!((tproxy.stats().repairs, tproxy.stats().failures), (1, 0));
    });
}

#[test]
fn a_look_starts_no_program_as_long_as_nothing_changes() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 3);
        let directory = tempfile::tempdir().unwrap();
        let broken = BrokenNft::new(directory.path());
        for _ in 0..100 {
            tproxy.keep(Instant::now() + LATER);
        }
        assert_eq!(tproxy.stats().failures, 0);
        drop(broken);
    });
}

#[test]
fn a_failing_nft_is_tried_again_and_nothing_is_lost() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 3);
        let directory = tempfile::tempdir().unwrap();
        let ip = |text: &str| text.parse().unwrap();
        let first = state(FrontendKind::ExternalIp, ip("203.0.113.5"), 80, Verdict::Relay);
        let second = state(FrontendKind::ExternalIp, ip("203.0.113.6"), 80, Verdict::Relay);
        let gone = state(FrontendKind::ClusterIp, ip("10.96.0.0"), 80, Verdict::Relay);

        let broken = BrokenNft::new(directory.path());
        let mut now = Instant::now();
        offer(&mut tproxy, &[first]);
        let failed_once = tproxy.stats();
        assert!(failed_once.failures >= 1, "{failed_once:?}");
        // Not while it waits.
        offer(&mut tproxy, &[second]);
        withdraw(&mut tproxy, &[gone]);
        tproxy.keep(now);
        assert_eq!(tproxy.stats().failures, failed_once.failures);
        // With growing pauses.
        for _ in 0..400 {
            now += Duration::from_millis(250);
            tproxy.keep(now);
        }
        let failures = tproxy.stats().failures - failed_once.failures;
        assert!((7..=9).contains(&failures), "{failures} retries in 100 s");
        drop(broken);

        tproxy.keep(now + LATER);
        let stats = tproxy.stats();
        let listed = run("nft list map inet sluice frontends4");
        assert!(
            listed.contains("203.0.113.5 . tcp . 80") && listed.contains("203.0.113.6 . tcp . 80"),
            "{listed}"
        );
        assert!(!listed.contains("10.96.0.0 . tcp . 80 "), "{listed}");
        tproxy.keep(now + 2 * LATER);
        assert_eq!(acts(tproxy.stats()), acts(stats), "and all is well");
        assert_eq!(stats.repairs, 0, "nobody else has done anything");
    });
}

#[test]
fn what_settings_were_is_written_down_once_it_can_be() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        run("sysctl -qw net.ipv4.tcp_tw_reuse=2");
        let broken = BrokenNft::killed_at_changes(directory.path());
        let mut tproxy = Tproxy::start(config()).unwrap();
        assert_eq!(run("sysctl -n net.ipv4.tcp_tw_reuse").trim(), "1");
        let address = "203.0.113.5".parse().unwrap();
        offer(&mut tproxy, &[state(FrontendKind::ExternalIp, address, 80, Verdict::Relay)]);
        assert!(tproxy.stats().failures >= 1);
        drop(broken);
        assert!(!run("nft list tables").contains("sluice_settings"));

        tproxy.keep(Instant::now() + LATER);
        let listed = run("nft list table inet sluice_settings");
        assert!(listed.contains("net.ipv4.tcp_tw_reuse") && listed.contains("was 2,"), "{listed}");
    });
}

#[test]
fn without_nft_there_is_no_start() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let before = kernel_state();
        let broken = BrokenNft::new(directory.path());
        let error = Tproxy::start(config()).unwrap_err();
        assert!(matches!(error, Error::Nft(program::Error::Failed { .. })), "{error}");
        drop(broken);
        assert_eq!(kernel_state(), before);
    });
}

#[test]
fn policy_rules_and_routes_come_back() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 1);
        let mut now = Instant::now();
        tproxy.keep(now);
        let whole = kernel_state();
        let damages = [
            "ip rule del priority 90",
            "ip -6 rule del priority 90",
            "ip route flush table 7583",
            "ip -6 route flush table 7583",
            "ip rule flush",
            "ip link set lo down",
        ];
        for (before, damage) in damages.into_iter().enumerate() {
            run(damage);
            if damage == "ip rule flush" {
                run("ip rule add priority 32766 lookup main");
                run("ip rule add priority 32767 lookup default");
            }
            now += LATER;
            tproxy.keep(now);
            if damage == "ip link set lo down" {
                assert!(tproxy.stats().failures > 0, "no routes while it is down");
                run("ip link set lo up");
                now += LATER;
                tproxy.keep(now);
            }
            let whole: Vec<&str> = whole.lines().filter(|line| line.contains("7583")).collect();
            let now_there = kernel_state();
            let now_there: Vec<&str> = now_there.lines().filter(|line| line.contains("7583")).collect();
            assert_eq!(now_there, whole, "{damage}");
            assert_eq!(tproxy.stats().repairs, before as u64 + 1, "{damage}");
            tproxy.keep(now);
            tproxy.keep(now);
            assert_eq!(tproxy.stats().repairs, before as u64 + 1, "{damage}");
        }
    });
}

#[test]
fn what_others_do_about_routing_is_left_alone() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 1);
        tproxy.keep(Instant::now());
        run("ip rule add from 192.0.2.1 lookup 100 priority 50");
        run("ip route add local 192.0.2.0/24 dev lo table 100");
        run("ip address add 192.0.2.1/32 dev lo");
        let before = kernel_state();
        tproxy.keep(Instant::now());
        assert_eq!(kernel_state(), before);
        assert_eq!((tproxy.stats().repairs, tproxy.stats().failures), (0, 0));
    });
}

#[test]
fn a_machine_without_ipv6_is_served_over_ipv4() {
    in_namespace(|| {
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        let mut tproxy = serving(config(), 1);
        tproxy.keep(Instant::now());
        assert_eq!(tproxy.stats().failures, 0);
        assert!(run("ip route list table 7583").contains("local default"));
        assert!(try_run("ip -6 route list table 7583").is_ok_and(|routes| routes.is_empty()));
        // And over IPv6 once it has it.
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        run("sysctl -qw net.ipv6.conf.lo.disable_ipv6=0");
        tproxy.keep(Instant::now() + LATER);
        assert!(run("ip -6 route list table 7583").contains("local default"));
        assert!(run("ip -6 rule list").contains("lookup 7583"));
    });
}

#[test]
fn without_a_loopback_interface_there_is_no_start() {
    in_namespace(|| {
        run("ip link set lo down");
        let error = Tproxy::start(config()).unwrap_err();
        assert!(error.to_string().contains("ip link set lo up"), "{error}");
    });
}

/// As in the DaemonSet's container, whose /proc/sys cannot be written: only what is started before it may.
#[test]
fn br_netfilter_that_cannot_be_switched_off_is_said_for_as_long_as_it_is_on() {
    const SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    in_namespace(|| {
        if let Err(error) = std::fs::write(SETTING, "1") {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            sluice_sys::skipped("this kernel has no br_netfilter");
            return;
        }
        let mut tproxy = serving(config(), 3);
        assert_eq!(std::fs::read_to_string(SETTING).unwrap().trim(), "0");
        let mut now = Instant::now();
        // Whoever sets it does so on the node.
        let look = |value: &str| {
            run("mount --bind /proc/sys /proc/sys");
            if !value.is_empty() {
                std::fs::write(SETTING, value).unwrap();
            }
            run("mount -o remount,bind,ro /proc/sys");
            now += Duration::from_secs(2);
            tproxy.keep(now);
            run("umount /proc/sys");
            tproxy.stats().bridge_netfilter
        };
        assert_eq!(["1", "", "0", "1"].map(look), [true, true, false, true]);
        tproxy.keep(now + Duration::from_secs(2));
        assert!(!tproxy.stats().bridge_netfilter, "it may again");
        assert_eq!(std::fs::read_to_string(SETTING).unwrap().trim(), "0");
    });
}
