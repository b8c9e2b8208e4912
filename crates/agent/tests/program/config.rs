//! kube-proxy's configuration, as kubeadm writes it and as people change it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use sluice_testbed::apiserver::Apiserver;
use tempfile::TempDir;

use crate::apiserver::Cluster;
use crate::common::{Agent, address, ask, backend, free_port, get, on_a_node, service, slice, until};

/// `config.conf` of kubeadm 1.36.
const KUBEADM: &str = include_str!("../../src/config/tests/kubeadm.yaml");

/// Its `kubeconfig.conf`.
fn kubeconfig(server: &str, account: &Path) -> String {
    let account = account.display();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: {account}/ca.crt\n    \
         server: {server}\n  name: default\ncontexts:\n- context:\n    cluster: default\n    namespace: default\n    \
         user: default\n  name: default\ncurrent-context: default\nusers:\n- name: default\n  user:\n    \
         tokenFile: {account}/token\n"
    )
}

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).env_remove("RUST_LOG").output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubeadm_writes_starts_the_agent() {
    let cluster = Cluster::start(Apiserver::builder().token("secret")).await;
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    // What kubelet gives a pod.
    write("token", "secret");
    write("ca.crt", &cluster.apiserver.ca_pem());
    write("kubeconfig.conf", &kubeconfig(&cluster.apiserver.url(), directory.path()));
    write("config.conf", &KUBEADM.replace("/var/lib/kube-proxy", directory.path().to_str().unwrap()));
    let frontend = free_port(address());
    cluster.kubectl("create -f -", &(service("web", frontend) + &slice("web", &[backend(1)])));
    // Only this is not as kube-proxy's DaemonSet has it: the node is not one of kubeadm's.
    let config = directory.path().join("config.conf").to_str().unwrap().to_owned();
    let config = format!("--config={config}");
    let arguments =
        [&config, "--hostname-override=node-1", "--capture=bind", "--metrics-bind-address", "127.0.0.1:0"];
    let mut agent = Agent::start(&arguments);
    assert_eq!(ask(frontend).unwrap(), 1);
    let metrics = agent.port("serving metrics");
    let answer = get(metrics, "/configz");
    let (_, json) = answer.split_once("\r\n\r\n").unwrap();
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["kubeproxy.config.k8s.io"]["clusterCIDR"], "10.244.0.0/16", "{json:#}");
    assert_eq!(json["kubeproxy.config.k8s.io"]["sluice"]["capture"], "bind", "{json:#}");
    agent.signal(Signal::TERM);
    assert!(agent.wait().success());
    assert!(!agent.heard().iter().any(|line| line.contains("no effect")), "{:#?}", agent.heard());
}

#[test]
fn a_change_is_made_whole_or_not_at_all_and_configz_has_what_is_in_effect() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.conf");
    let put = |text: &str| {
        let new = directory.path().join("new");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let manifests = directory.path().join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        let own = format!("  capture: bind\n  manifests: [{}]\n", manifests.display());
        fs::write(&new, format!("{head}sluice:\n{own}{text}")).unwrap();
        fs::rename(new, &file).unwrap();
    };
    put("  gracePeriod: 9s\n");
    let mut agent = Agent::start(&["--config", file.to_str().unwrap(), "--metrics-bind-address=127.0.0.1:0"]);
    let metrics = agent.port("serving metrics");
    let configz = |field: &str| {
        let answer = get(metrics, "/configz");
        let json: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        json.pointer(&format!("/kubeproxy.config.k8s.io/{field}")).unwrap().to_string()
    };
    // The grace period is good, the ports are not.
    put("  gracePeriod: 8s\n  socketSidecarPorts: [\"1\", \"2\", \"3\"]\n");
    let line = agent.wait_for("stays in force");
    assert!(line.contains("two at the most"), "{line}");
    assert!(!agent.heard().iter().any(|line| line.contains("take effect")), "{:#?}", agent.heard());
    assert_eq!(configz("sluice/gracePeriod"), "\"9s\"");

    put("  gracePeriod: 7s\n  workers: 1\nnodePortAddresses: [localhost, primary, 192.0.2.0/24]\n");
    agent.wait_for("nodePorts are not served on loopback");
    agent.wait_for("these take effect: --grace-period, --nodeport-addresses");
    until("what is in effect is shown", || configz("sluice/gracePeriod") == "\"7s\"");
    assert_eq!(configz("nodePortAddresses"), "[\"localhost\",\"primary\",\"192.0.2.0/24\"]");
    agent.signal(Signal::TERM);
    assert!(agent.wait_for("stopping").contains("grace=7s"));
}

#[test]
fn what_the_agent_refuses_is_not_written() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.conf");
    for flags in [["--socket-sidecar-ports", "1,2,3"], ["--nodeport-addresses", "10.0.0.1"]] {
        let to = ["--write-config-to", file.to_str().unwrap()];
        let output = sluice(&[&["agent", "--capture", "tproxy"][..], &flags, &to].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", said(&output));
        assert!(!file.exists(), "{flags:?}");
    }
}

#[test]
fn a_file_that_changes_is_followed_and_a_bad_one_is_not() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    fs::write(directory.path().join("a.yaml"), service("a", frontend) + &slice("a", &[backend(1)])).unwrap();
    let file = directory.path().join("config.conf");
    let head = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nipvs: {{scheduler: rr}}\n\
         sluice:\n  capture: bind\n  manifests: [{}]\n",
        directory.path().join("a.yaml").display()
    );
    // As a ConfigMap is written: renamed into its place.
    let put = |text: &str| {
        let new = directory.path().join("new");
        fs::write(&new, format!("{head}{text}")).unwrap();
        fs::rename(new, &file).unwrap();
    };
    put("");
    let mut agent = Agent::start(&["--config", file.to_str().unwrap()]);
    let named = agent.wait_for("no effect");
    assert!(named.contains("ipvs.scheduler (IPVS is not used"), "{named}");

    put("  graceperiod: 1s\n");
    let line = agent.wait_for("stays in force");
    assert!(line.contains("line 7: sluice.graceperiod") && line.contains("gracePeriod is meant?"), "{line}");
    assert_eq!(ask(frontend).unwrap(), 1);

    put(
        "  gracePeriod: 1s\n  workers: 1\nlogging: {verbosity: 4, vmodule: [{filePattern: a, verbosity: 2}]}\n",
    );
    let named = agent.wait_for("logging.vmodule");
    assert!(named.contains("not offered: logging.vmodule") && named.contains("ipvs.scheduler"), "{named}");
    let line = agent.wait_for("take effect only when");
    assert!(line.contains("again: --workers"), "{line}");
    let line = agent.wait_for("these take effect: ");
    assert!(line.contains("--grace-period, --v"), "{line}");
    fs::write(directory.path().join("a.yaml"), service("a", frontend)).unwrap();
    agent.wait_for("DEBUG");

    // The grace period is the new one: nobody waits for a connection for long.
    fs::write(directory.path().join("a.yaml"), service("a", frontend) + &slice("a", &[backend(2)])).unwrap();
    until("it is served again", || ask(frontend).is_ok());
    let _open = std::net::TcpStream::connect(frontend).unwrap();
    agent.signal(Signal::TERM);
    let line = agent.wait_for("stopping");
    assert!(line.contains("grace=1s"), "{line}");
}

#[test]
fn a_bad_configuration_is_one_line_and_ends_with_1() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.conf");
    fs::write(&file, KUBEADM.replace("clusterCIDR", "clusterCIDRs")).unwrap();
    let file = file.to_str().unwrap();
    let output = sluice(&["agent", "--config", file]);
    assert_eq!(output.status.code(), Some(1));
    let wanted =
        format!("error: {file}: line 10: clusterCIDRs: there is no such field; clusterCIDR is meant?\n");
    assert_eq!(said(&output), wanted);
    assert_eq!(sluice(&["agent", "--no-such-flag"]).status.code(), Some(2));
}

#[test]
fn a_configuration_is_written_and_read_again() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.conf");
    let file = file.to_str().unwrap();
    let output = sluice(&["agent", "--masquerade-all", "--capture=tproxy", "--write-config-to", file]);
    assert!(output.status.success(), "{}", said(&output));
    let text = fs::read_to_string(file).unwrap();
    for line in [
        "kind: \"KubeProxyConfiguration\"\n",
        "iptables:\n  masqueradeAll: true\n",
        "  capture: \"tproxy\"\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let output = sluice(&["agent", "--config", file, "--write-config-to", file]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read_to_string(file).unwrap(), text);
    let output = sluice(&["agent", "--write-config-to", "/nonexistent/config.conf"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("/nonexistent/config.conf"));
}

#[test]
fn the_kernels_settings_are_made_beforehand() {
    let output = on_a_node(
        "\"$sluice\" agent --init-only; cat /proc/sys/net/ipv4/tcp_tw_reuse /proc/sys/net/ipv4/tcp_migrate_req
         \"$sluice\" agent --init-only",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.code(), &*text), (Some(0), "1\n1\n"), "{}", said(&output));
    let output = on_a_node(
        "mount -o remount,ro,bind /proc/sys 2>/dev/null || mount -o bind,ro /proc/sys /proc/sys
        echo 0 > /proc/sys/net/ipv4/tcp_migrate_req && exit 7
        \"$sluice\" agent --init-only",
    );
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("net.ipv4.tcp_migrate_req cannot be set to 1"), "{}", said(&output));
}

#[test]
fn who_may_not_change_the_kernels_settings_is_told_what_to_do() {
    let output = on_a_node("setpriv --inh-caps=-all --bounding-set=-all \"$sluice\" agent --init-only");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("run this as root, with CAP_NET_ADMIN"), "{}", said(&output));
}

#[test]
fn what_an_agent_has_made_is_removed_by_kube_proxys_flag() {
    let output = on_a_node(
        "nft add table inet sluice; \"$sluice\" agent --cleanup --proxy-mode iptables; nft list tables",
    );
    let said = said(&output);
    assert_eq!((output.status.code(), &*said), (Some(0), "removed: the nftables table inet sluice\n"));
}

#[test]
fn the_oom_score_is_what_is_asked_for() {
    let directory = TempDir::new().unwrap();
    let agent = Agent::start(&["--manifests", directory.path().to_str().unwrap(), "--oom-score-adj", "321"]);
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", agent.child.id())).unwrap();
    assert_eq!(score.trim(), "321");
}

#[test]
fn a_file_that_becomes_something_else_holds_nothing_up() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.conf");
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nsluice:\n  capture: bind\n  \
         manifests: [{}]\n",
        manifests.display()
    );
    fs::write(&file, &text).unwrap();
    let mut agent = Agent::start(&["--config", file.to_str().unwrap()]);
    // Whoever opens it to read waits for a writer.
    let fifo = directory.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::rename(&fifo, &file).unwrap();
    let line = agent.wait_for("cannot be read");
    assert!(line.contains("no regular file") && line.contains("stays in force"), "{line}");
    fs::write(&fifo, format!("{text}  gracePeriod: 7s\n")).unwrap();
    fs::rename(&fifo, &file).unwrap();
    agent.wait_for("these take effect: --grace-period");
    agent.signal(Signal::TERM);
    assert!(agent.wait().success());
}
