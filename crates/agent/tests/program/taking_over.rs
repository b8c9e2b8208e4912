//! `sluice check` and `sluice cleanup` in network namespaces that are a node each.

use std::process::Output;

use crate::common::on_a_node;

/// Exit status, and everything that was said.
fn outcome(output: &Output) -> (Option<i32>, String) {
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output.status.code(), said)
}

/// What kube-proxy leaves: a table, and iptables chains as nft shows them.
const KUBE_PROXY: &str = "
nft -f - <<END
table ip kube-proxy { chain services { }; }
table ip nat {
  chain KUBE-SERVICES { }
  chain OUTPUT { type nat hook output priority -100; jump KUBE-SERVICES; }
}
END
";

/// A process with this name, for as long as the script runs.
fn running(name: &str) -> String {
    format!(
        "
directory=$(mktemp -d)
cp \"$(command -v sleep)\" \"$directory/{name}\"
\"$directory/{name}\" 60 & process=$!
trap 'kill $process; rm -r \"$directory\"' EXIT
until [ \"$(cat /proc/$process/comm)\" = {name} ]; do :; done
"
    )
}

#[test]
fn a_plain_node_is_ready() {
    let (status, said) = outcome(&on_a_node("\"$sluice\" check"));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.lines().any(|line| line.starts_with("ok") && line.contains("nftables v")), "{said}");
    assert!(!said.contains("problem"), "{said}");
}

#[test]
fn checking_changes_nothing() {
    let script = "nft list ruleset; ip rule; ip route show table all; \"$sluice\" check >/dev/null; echo ===; \
                  nft list ruleset; ip rule; ip route show table all";
    let (status, said) = outcome(&on_a_node(script));
    let (before, after) =
        said.split_once("===\n").unwrap_or_else(|| panic!("the script did not end: {said}"));
    assert_eq!((status, before), (Some(0), after));
}

#[test]
fn what_is_in_the_way_is_said_with_the_fix() {
    let running = running("kube-proxy");
    let script = format!(
        "{KUBE_PROXY}{running}
        ip link add cni0 type bridge
        ip link add veth0 type veth peer name eth0 && ip link set veth0 master cni0
        sysctl -qw net.ipv4.conf.eth0.src_valid_mark=1
        nft 'table ip filter {{ chain INPUT {{ type filter hook input priority 0; policy drop; }}; }}'
        nft -f - <<END
        table inet fw {{ chain input {{ type filter hook input priority 0; tcp dport 22 accept; counter reject; }}; }}
        table inet ok {{ chain input {{ type filter hook input priority 0; policy drop;
            meta mark & 0x30 == 0x10 accept; }}; }}
END
        \"$sluice\" check"
    );
    let (status, said) = outcome(&on_a_node(&script));
    assert_eq!(status, Some(1), "{said}");
    for (level, part) in [
        ("problem", "kube-proxy it runs (process"),
        ("problem", "nftables table ip kube-proxy, which"),
        ("problem", "1 chain of iptables-nft in table nat, 1 rule leading to them"),
        ("problem", "on eth0: the kernel drops every captured packet"),
        ("warning", "refused by inet fw input, ip filter INPUT;"),
    ] {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = said.lines().find(|line| words(line).contains(part));
        let line = line.unwrap_or_else(|| panic!("{part} is not in\n{said}"));
        assert!(line.starts_with(level) && line.contains("Fix: "), "{line}");
    }
    assert!(said.lines().any(|line| line.contains("bridges") && line.contains("cni0")), "{said}");
}

#[test]
fn programs_read_json() {
    let output = on_a_node(&format!("{KUBE_PROXY}\"$sluice\" check -o json"));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &json["ready"]), (Some(1), &serde_json::Value::from(false)));
    let findings = json["findings"].as_array().unwrap();
    let is_table = |finding: &&serde_json::Value| {
        finding["level"] == "problem"
            && finding["fix"].as_str().unwrap().contains("sluice cleanup --kube-proxy")
    };
    assert_eq!(findings.iter().filter(is_table).count(), 2, "{json:#}");
}

#[test]
fn without_privileges_that_is_what_is_said() {
    let script = "setpriv --reuid 65534 --clear-groups --inh-caps=-all --bounding-set=-all \"$sluice\" check";
    let (status, said) = outcome(&on_a_node(script));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN") && said.contains("CAP_NET_BIND_SERVICE"), "{said}");
    assert!(!said.contains("the kernel has no"), "what could not be asked for is not missing: {said}");
}

#[test]
fn kube_proxys_rules_are_removed_and_a_second_time_there_are_none() {
    let script = format!(
        "{KUBE_PROXY}
        \"$sluice\" cleanup --kube-proxy; \"$sluice\" cleanup --kube-proxy; echo ===; nft list ruleset"
    );
    let (status, said) = outcome(&on_a_node(&script));
    let (said, ruleset) = said.split_once("===\n").unwrap_or_else(|| panic!("one failed: {said}"));
    assert_eq!(status, Some(0));
    let wanted = "removed: nftables table ip kube-proxy\n\
                  removed: 1 chain of iptables-nft in table nat, 1 rule leading to them\n\
                  nothing of kube-proxy's is here\n";
    assert_eq!(said, wanted);
    assert!(ruleset.contains("chain OUTPUT") && !ruleset.contains("KUBE") && !ruleset.contains("kube-proxy"));
}

#[test]
fn nothing_is_removed_while_kube_proxy_runs_unless_it_is_insisted_on() {
    let running = running("kube-proxy");
    let script = format!(
        "{KUBE_PROXY}{running}
        \"$sluice\" cleanup --kube-proxy && exit 7
        nft list table ip kube-proxy; echo ===
        \"$sluice\" cleanup --kube-proxy --force"
    );
    let output = on_a_node(&script);
    let (status, said) = outcome(&output);
    assert_eq!(status, Some(0), "{said}");
    let (before, after) = said.split_once("===\n").unwrap_or_else(|| panic!("the table is gone: {said}"));
    assert!(
        before.contains("chain services") && after.contains("removed: nftables table ip kube-proxy"),
        "{said}"
    );
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        complaint.contains("kube-proxy runs here (process") && complaint.contains("--force"),
        "{complaint}"
    );
}

#[test]
fn a_program_that_may_have_a_kube_proxy_inside_is_a_note() {
    let running = running("k3s-server");
    let script = format!("{KUBE_PROXY}{running}\"$sluice\" cleanup --kube-proxy");
    let (status, said) = outcome(&on_a_node(&script));
    assert_eq!(status, Some(0), "{said}");
    let note = said.lines().find(|line| line.starts_with("note: ")).unwrap_or_default();
    assert!(note.contains("inside k3s-server") && note.contains("disable-kube-proxy: true"), "{said}");
    assert!(said.contains("removed: nftables table ip kube-proxy") && !said.contains("daemonset"), "{said}");
}

#[test]
fn what_an_agent_has_made_is_removed_and_kube_proxys_is_not() {
    let script = format!(
        "{KUBE_PROXY}
        \"$sluice\" cleanup
        nft add table inet sluice
        \"$sluice\" cleanup; echo ===; nft list tables"
    );
    let (status, said) = outcome(&on_a_node(&script));
    assert_eq!(status, Some(0), "{said}");
    let wanted = "nothing of an agent's is here\nremoved: the nftables table inet sluice\n===\n\
                  table ip kube-proxy\ntable ip nat\n";
    assert_eq!(said, wanted);
}

/// A bpffs with two directories of pins, of which another agent holds the first one.
const PINS: &str = "
mount -t bpf bpf /sys/fs/bpf
mkdir -p /sys/fs/bpf/sluice /sys/fs/bpf/theirs/v1
ln -s nothing /sys/fs/bpf/theirs/v1/link_sluice_connect4
exec 9</sys/fs/bpf/sluice
flock --nonblock 9
nft add table inet sluice
";

#[test]
fn pins_that_another_agent_holds_do_not_keep_what_else_there_is() {
    let script =
        format!("{PINS} \"$sluice\" cleanup && exit 7\n echo ===; nft list tables; ls -d /sys/fs/bpf/*/");
    let output = on_a_node(&script);
    let (status, said) = outcome(&output);
    assert_eq!(status, Some(0), "{said}");
    let wanted = "removed: programs and maps at /sys/fs/bpf/theirs\nremoved: the nftables table inet sluice\n\
                  ===\n/sys/fs/bpf/sluice/\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), wanted, "{said}");
    let complaint = String::from_utf8_lossy(&output.stderr);
    for part in ["not all could be removed", "at /sys/fs/bpf/sluice: another agent holds", "stop it, or wait"]
    {
        assert!(complaint.contains(part), "{part} is not in {complaint}");
    }
}

#[test]
fn pins_that_are_named_are_the_only_ones_that_are_removed() {
    let script = format!(
        "{PINS} mkdir /sys/fs/bpf/named
        \"$sluice\" cleanup --socket-pins /sys/fs/bpf/named; echo ===; nft list tables; ls -d /sys/fs/bpf/*/"
    );
    let (status, said) = outcome(&on_a_node(&script));
    assert_eq!(status, Some(0), "{said}");
    let wanted = "removed: programs and maps at /sys/fs/bpf/named\nremoved: the nftables table inet sluice\n\
                  ===\n/sys/fs/bpf/sluice/\n/sys/fs/bpf/theirs/\n";
    assert_eq!(said, wanted);
}

#[test]
fn what_cannot_be_written_does_not_stop_the_work() {
    // It is named first, before anything is removed.
    let running = running("k3s-server");
    let script = format!(
        "{KUBE_PROXY}{running}
        \"$sluice\" cleanup --kube-proxy >/dev/full && exit 7
        echo ===; nft list tables"
    );
    let output = on_a_node(&script);
    let (status, said) = outcome(&output);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("===\ntable ip nat\n"), "{said}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to standard output"), "{said}");
}
