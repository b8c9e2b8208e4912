//! Tests with kube-proxy's real rules, in network namespaces of their own.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// Tells this program, started again in a namespace, that it is inside.
const INSIDE: &str = "SLUICE_TEST_NAMESPACE";

/// Runs a test in a network namespace of its own, which ends with the test: starts this test program again for
/// that one test.
fn in_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let program = std::env::current_exe().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let as_root: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
    let output = Command::new("unshare")
        .args(as_root)
        .args(["--net", "--"])
        .arg(program)
        .args(["--exact", &format!("kube_proxy::tests::{name}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (of util-linux) is here");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a program; returns its output.
fn run(program: &str, arguments: &str, input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("the test needs {program} (package iptables, nftables or ipset): {error}")
        });
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

/// Rules of kubelet, Docker and a CNI plugin.
const OTHERS: &str = include_str!("tests/others.iptables");
/// Rules that kube-proxy adds in its iptables mode.
const KUBE_PROXY: &str = include_str!("tests/kube_proxy.iptables");
/// Some rules of kube-proxy's nftables mode.
const NFTABLES_MODE: &str = include_str!("tests/kube_proxy.nft");

/// The same rules for IPv6, with the same numbers in the addresses.
fn for_v6(rules: &str) -> String {
    let mut v6 =
        rules.replace("icmp-port-unreachable", "icmp6-port-unreachable").replace("127.0.0.0/8", "::1/128");
    for v4 in ["10.96.", "10.244.", "172.17."] {
        v6 = v6.replace(v4, &format!("fd00::{v4}"));
    }
    for endpoint in ["fd00::10.244.0.5", "fd00::10.244.1.6"] {
        v6 = v6.replace(
            &format!("--to-destination {endpoint}:80"),
            &format!("--to-destination [{endpoint}]:80"),
        );
    }
    let mask = "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    v6.replace("/32", "/128").replace("/16", "/112").replace("--mask 255.255.255.255", mask)
}

/// All rules, without counters. Those of iptables-nft also in its own program's output, because nft shows less
/// of them.
fn everything() -> Vec<String> {
    let dumps = ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
    let dumps = dumps.map(|program| {
        let dump = run(program, "", "");
        let is_rule = |line: &&str| !line.starts_with('#');
        let lines = dump.lines().filter(is_rule).map(|line| line.split(" [").next().unwrap_or_default());
        lines.collect::<Vec<_>>().join("\n")
    });
    [run("nft", "--stateless list ruleset", "")].into_iter().chain(dumps).collect()
}

fn shown(traces: &[Trace]) -> Vec<String> {
    traces.iter().map(Trace::to_string).collect()
}

#[test]
fn where_nothing_is_nothing_is_done() {
    in_namespace("where_nothing_is_nothing_is_done", || {
        assert_eq!(find().unwrap(), Found::default());
        assert_eq!(remove().unwrap(), Removed::default());
        assert_eq!(run("nft", "list ruleset", ""), "", "not even empty tables");
    });
}

#[test]
fn every_mode_goes_and_what_others_made_stays() {
    in_namespace("every_mode_goes_and_what_others_made_stays", || {
        for variant in ["nft", "legacy"] {
            run(&format!("iptables-{variant}-restore"), "--noflush", OTHERS);
            run(&format!("ip6tables-{variant}-restore"), "--noflush", &for_v6(OTHERS));
        }
        run(
            "nft",
            "-f -",
            "table inet filter { chain input { type filter hook input priority 0; policy drop; }; }",
        );
        let before = everything();

        for variant in ["nft", "legacy"] {
            run(&format!("iptables-{variant}-restore"), "--noflush", KUBE_PROXY);
            run(&format!("ip6tables-{variant}-restore"), "--noflush", &for_v6(KUBE_PROXY));
        }
        run("nft", "-f -", NFTABLES_MODE);
        run("nft", "-f -", &NFTABLES_MODE.replace("table ip ", "table ip6 "));
        // Not every kernel has dummy interfaces, and the type does not matter.
        run("ip", "link add kube-ipvs0 type bridge", "");
        run("ip", "address add 10.96.0.1/32 dev kube-ipvs0", "");

        let found = find().unwrap();
        let wanted = [
            "interface kube-ipvs0",
            "nftables table ip kube-proxy",
            "nftables table ip6 kube-proxy",
            "1 chain of iptables-nft in table mangle, 0 rules leading to them",
            "6 chains of iptables-nft in table filter, 9 rules leading to them",
            "10 chains of iptables-nft in table nat, 3 rules leading to them",
            "1 chain of ip6tables-nft in table mangle, 0 rules leading to them",
            "6 chains of ip6tables-nft in table filter, 9 rules leading to them",
            "10 chains of ip6tables-nft in table nat, 3 rules leading to them",
            "1 chain of iptables-legacy in table mangle, 0 rules leading to them",
            "6 chains of iptables-legacy in table filter, 9 rules leading to them",
            "10 chains of iptables-legacy in table nat, 3 rules leading to them",
            "1 chain of ip6tables-legacy in table mangle, 0 rules leading to them",
            "6 chains of ip6tables-legacy in table filter, 9 rules leading to them",
            "10 chains of ip6tables-legacy in table nat, 3 rules leading to them",
        ];
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        assert_eq!(sorted(shown(&found.traces)), sorted(wanted.map(str::to_owned).to_vec()));
        assert_eq!(found.unseen, Vec::<String>::new());

        let removed = remove().unwrap();
        assert_eq!(shown(&removed.removed), shown(&found.traces));
        assert_eq!((removed.kept, removed.failed), (Vec::new(), Vec::new()));
        assert_eq!(everything(), before);
        assert!(!run("ip", "-brief link", "").contains("kube-ipvs0"));
        assert_eq!(remove().unwrap(), Removed::default(), "nothing is left for a second time");
    });
}

#[test]
fn ip_sets_go_with_the_rules_that_look_at_them() {
    in_namespace("ip_sets_go_with_the_rules_that_look_at_them", || {
        for set in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "of-somebody-else"] {
            run("ipset", &format!("create {set} hash:ip,port"), "");
        }
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                     -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
        run("iptables-nft-restore", "--noflush", rules);
        let removed = remove().unwrap();
        assert_eq!(removed.removed.last(), Some(&Trace::IpSets(2)), "{removed:?}");
        assert_eq!(run("ipset", "list -name", ""), "of-somebody-else\n");
    });
}

#[test]
fn a_chain_that_a_cni_plugin_uses_stays_whole() {
    in_namespace("a_chain_that_a_cni_plugin_uses_stays_whole", || {
        run("iptables-nft-restore", "--noflush", KUBE_PROXY);
        let plugin =
            "*nat\n:CNI-HOSTPORT-SETMARK - [0:0]\n-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT\n";
        run("iptables-nft-restore", "--noflush", plugin);
        let removed = remove().unwrap();
        assert_eq!(removed.failed, Vec::<String>::new());
        let wanted = "chains of ip nat: KUBE-MARK-MASQ, KUBE-POSTROUTING: CNI-HOSTPORT-SETMARK needs them";
        assert_eq!(removed.kept, [wanted]);
        let left = run("iptables-nft-save", "-t nat", "");
        let rules: Vec<_> = left.lines().filter(|line| line.starts_with("-A")).collect();
        assert_eq!(rules.len(), 6, "{left}");
        assert!(left.contains(
            "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING"
        ));
        assert!(!left.contains("KUBE-SVC-"), "{left}");
    });
}
