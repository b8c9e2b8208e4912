//! Cases over all fields and flags, and over documents as people write them.

mod written;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::table::{Meaning, OWN, OWN_TABLE, Row, TABLE};
use super::*;
use crate::cli::{self, AgentArgs, Complaint};

/// As kubeadm 1.36 writes it into its ConfigMap.
const KUBEADM: &str = include_str!("tests/kubeadm.yaml");

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// All fields of kube-proxy 1.36 (`KubeProxyConfiguration`, `ClientConnectionConfiguration`, `LoggingConfiguration`).
const FIELDS: &str = "
    bindAddress bindAddressHardFail clientConnection.acceptContentTypes clientConnection.burst
    clientConnection.contentType clientConnection.kubeconfig clientConnection.qps clusterCIDR configSyncPeriod
    conntrack.maxPerCore conntrack.min conntrack.tcpBeLiberal conntrack.tcpCloseWaitTimeout
    conntrack.tcpEstablishedTimeout conntrack.udpStreamTimeout conntrack.udpTimeout detectLocal.bridgeInterface
    detectLocal.interfaceNamePrefix detectLocalMode enableProfiling featureGates healthzBindAddress hostnameOverride
    iptables.localhostNodePorts iptables.masqueradeAll iptables.masqueradeBit iptables.minSyncPeriod
    iptables.syncPeriod ipvs.excludeCIDRs ipvs.minSyncPeriod ipvs.scheduler ipvs.strictARP ipvs.syncPeriod
    ipvs.tcpFinTimeout ipvs.tcpTimeout ipvs.udpTimeout logging.flushFrequency logging.format
    logging.options.json.infoBufferSize logging.options.json.splitStream logging.options.text.infoBufferSize
    logging.options.text.splitStream logging.verbosity logging.vmodule metricsBindAddress mode
    nftables.masqueradeAll nftables.masqueradeBit nftables.minSyncPeriod nftables.syncPeriod nodePortAddresses
    oomScoreAdj portRange showHiddenMetricsForVersion windowsRunAsService winkernel.enableDSR
    winkernel.forwardHealthCheckVip winkernel.networkName winkernel.rootHnsEndpointName winkernel.sourceVip";

/// All flags of kube-proxy 1.36, as its `--help` has them, but for `--help` and `--version`.
const FLAGS: &str = "
    bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period conntrack-max-per-core
    conntrack-min conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait conntrack-tcp-timeout-established
    conntrack-udp-timeout conntrack-udp-timeout-stream detect-local-mode feature-gates healthz-bind-address
    healthz-port hostname-override init-only iptables-localhost-nodeports iptables-masquerade-bit
    iptables-min-sync-period iptables-sync-period ipvs-exclude-cidrs ipvs-min-sync-period ipvs-scheduler
    ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout kube-api-burst
    kube-api-content-type kube-api-qps kubeconfig log-flush-frequency log-json-info-buffer-size
    log-json-split-stream log-text-info-buffer-size log-text-split-stream logging-format masquerade-all master
    metrics-bind-address metrics-port nodeport-addresses oom-score-adj pod-bridge-interface
    pod-interface-name-prefix profiling proxy-mode show-hidden-metrics-for-version v vmodule write-config-to";

/// Flags that are about one run of the program and not in a document.
const NOT_WRITTEN: [&str; 6] =
    ["cleanup", "config", "healthz-port", "init-only", "metrics-port", "write-config-to"];

/// What the agent's arguments are with a document, after what is on the command line.
struct Case {
    _directory: TempDir,
    path: PathBuf,
}

impl Case {
    fn new(document: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("config.conf");
        fs::write(&path, document).unwrap();
        Self { _directory: directory, path }
    }

    fn parse(&self, flags: &str) -> Result<AgentArgs, Complaint> {
        parse(&format!("--config {} {flags}", self.path.display()))
    }
}

fn parse(flags: &str) -> Result<AgentArgs, Complaint> {
    let line = format!("sluice agent {flags}");
    let arguments: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
    cli::try_parse(&arguments).map(|cli| match cli.command {
        cli::Command::Agent(args) => *args,
        other => panic!("{other:?}"),
    })
}

fn with(document: &str, flags: &str) -> AgentArgs {
    Case::new(document).parse(flags).unwrap_or_else(|complaint| panic!("{document}\n{flags}\n{complaint}"))
}

/// The complaint, without the name of the file.
fn complaint(document: &str) -> String {
    let case = Case::new(document);
    let said = case.parse("").expect_err(document).to_string();
    said.replace(&format!("{}: ", case.path.display()), "")
}

fn value<'a>(args: &'a AgentArgs, flag: &str) -> &'a [String] {
    args.said.effective.flags.get(flag).map_or(&[], Vec::as_slice)
}

/// What is said of settings without effect.
fn without_effect(args: &AgentArgs) -> Option<String> {
    args.said.notes.iter().find(|note| note.contains("no effect")).cloned()
}

/// A document with one field.
fn one_field(path: &str, value: &str) -> String {
    let mut text = HEAD.to_owned();
    let names: Vec<&str> = path.split('.').collect();
    for (depth, name) in names.iter().enumerate() {
        let value = if depth + 1 == names.len() { value } else { "" };
        text += &format!("{}{name}: {value}\n", "  ".repeat(depth));
    }
    text
}

/// A value that says something, as YAML and as a flag.
fn example(name: &str, kind: Kind) -> (&'static str, &'static str) {
    match name {
        "bindAddress" | "bind-address" => ("192.0.2.1", "192.0.2.1"),
        "clusterCIDR" | "cluster-cidr" => ("10.0.0.0/8", "10.0.0.0/8"),
        "detectLocalMode" | "detect-local-mode" => ("NodeCIDR", "NodeCIDR"),
        "nodePortAddresses" | "nodeport-addresses" => ("[192.0.2.0/24]", "192.0.2.0/24"),
        "mode" | "proxy-mode" => ("nftables", "nftables"),
        "healthzBindAddress" | "metricsBindAddress" | "healthz-bind-address" | "metrics-bind-address" => {
            ("192.0.2.1:7", "192.0.2.1:7")
        }
        "capture" => ("bind", "bind"),
        "serviceMetrics" => ("off", "off"),
        "statusPage" => ("off", "off"),
        "connectionLog" => ("off", "off"),
        "logging.format" | "logging-format" => ("json", "json"),
        "master" => ("[https://192.0.2.1]", "https://192.0.2.1"),
        "socketSidecarPorts" => ("[7]", "7"),
        _ => match kind {
            Kind::Text | Kind::TextOrOff => ("some", "some"),
            Kind::Bool => ("true", "true"),
            Kind::Int => ("7", "7"),
            Kind::Float => ("1.5", "1.5"),
            Kind::Duration | Kind::Flush => ("7s", "7s"),
            Kind::Texts => ("[some, more]", "some"),
            Kind::Numbers => ("[7, 8]", "7"),
            Kind::Bools => ("{some: true}", "some=true"),
            Kind::Quantity => ("64Ki", "64Ki"),
            Kind::Vmodule => ("[{filePattern: some, verbosity: 2}]", "some=2"),
        },
    }
}

#[test]
fn every_field_and_flag_of_1_36_is_in_the_table_once() {
    for (of, wanted) in [("fields", FIELDS), ("flags", FLAGS)] {
        let name = |row: &Row| if of == "fields" { row.field } else { row.flag };
        let all: Vec<_> = TABLE.iter().map(name).filter(|name| !name.is_empty()).collect();
        let known: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(all.len(), known.len(), "{of} are there once");
        let missing: Vec<_> = wanted.split_whitespace().filter(|name| !known.contains(name)).collect();
        assert!(missing.is_empty(), "{of}: {missing:?}");
    }
}

#[test]
fn every_field_has_an_effect_or_is_named_in_the_one_warning() {
    for row in TABLE.iter().filter(|row| !row.field.is_empty()) {
        let (yaml, word) = example(row.field, row.kind);
        let mode = if row.field.starts_with("nftables.") { "mode: nftables\n" } else { "" };
        let args = with(&(one_field(row.field, yaml) + mode), "");
        let named = without_effect(&args).unwrap_or_default();
        match row.meaning {
            Meaning::As(flag) => {
                assert_eq!(value(&args, flag)[0], word, "{}", row.field);
                assert_eq!(named, "", "{}", row.field);
            }
            Meaning::Mode => assert_eq!(value(&args, "capture"), ["auto"]),
            _ => assert!(named.contains(&format!(": {} (", row.field)), "{}: {named}", row.field),
        }
        let nothing = with(&one_field(row.field, "null"), "");
        assert_eq!(without_effect(&nothing), None, "{}", row.field);
        for default in row.defaults {
            let text = if row.kind == Kind::Text { format!("{default:?}") } else { (*default).to_owned() };
            assert_eq!(
                without_effect(&with(&one_field(row.field, &text), "")),
                None,
                "{} {default}",
                row.field
            );
        }
    }
}

#[test]
fn every_flag_has_an_effect_or_is_named_in_the_one_warning() {
    for row in TABLE.iter().filter(|row| !row.flag.is_empty() && row.flag != "config") {
        let (_, word) = example(row.flag, row.kind);
        let spelled = row.flag.replace('-', "_");
        let capture = if row.flag == "proxy-mode" { "" } else { "--capture=tproxy" };
        for flag in [format!("--{}={word}", row.flag), format!("--{spelled}={word}")] {
            let args =
                parse(&format!("{capture} {flag}")).unwrap_or_else(|complaint| panic!("{flag}: {complaint}"));
            let named = without_effect(&args).unwrap_or_default();
            match row.meaning {
                Meaning::As(ours) => {
                    assert_eq!((value(&args, ours)[0].as_str(), &*named), (word, ""), "{flag}")
                }
                Meaning::Mode => assert_eq!(value(&args, "capture"), ["auto"]),
                _ => assert!(named.contains(&format!(": --{} (", row.flag)), "{flag}: {named}"),
            }
        }
    }
    let args = parse("-v=4 --conntrack-min 0 --iptables-sync-period 30s --vmodule a=2").unwrap();
    assert_eq!(args.v, Some(4));
    let named = without_effect(&args).unwrap();
    assert!(named.contains("--vmodule (") && !named.contains("conntrack-min"), "{named}");
    assert!(parse("--conntrack-min some").is_err() && parse("--proxy-mode userspace").is_err());
}

#[test]
fn every_flag_of_the_agents_can_be_written_in_a_document() {
    let command = cli::command();
    let agent = command.find_subcommand("agent").unwrap();
    for (flag, _) in own_flags(agent) {
        let is_as = |row: &Row| matches!(row.meaning, Meaning::As(ours) if ours == flag);
        let row = TABLE.iter().any(|row| is_as(row) && !row.field.is_empty());
        let own = OWN_TABLE.iter().any(|own| own.flag == flag);
        assert_ne!(row || own, NOT_WRITTEN.contains(&flag), "{flag}");
    }
    for own in OWN_TABLE {
        let (yaml, word) = example(own.field, own.kind);
        let args = with(&one_field(&format!("{OWN}.{}", own.field), yaml), "");
        assert_eq!(value(&args, own.flag)[0], word, "{}", own.field);
    }
    let args = with(&one_field("sluice.passiveHealth", "false"), "");
    assert!(!args.passive_health, "its own false counts");
}

#[test]
fn what_kubeadm_writes_is_taken_as_it_is() {
    let args = with(KUBEADM, "--hostname-override=node-1");
    assert_eq!(without_effect(&args), None);
    assert_eq!(args.source.apiserver.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    assert_eq!(value(&args, "cluster-cidr"), ["10.244.0.0/16"]);
    assert_eq!(value(&args, "capture"), ["auto"]);
    // Nothing else is another than without it.
    let plain = parse("--hostname-override=node-1 --capture auto").unwrap();
    let difference = args.said.effective.difference(&plain.said.effective);
    assert_eq!(difference, ["cluster-cidr", "config", "kubeconfig"]);
    assert_eq!(without_effect(&with(&KUBEADM.replace("10.244.0.0/16", "\"\""), "")), None);
}

#[test]
fn flags_win_over_the_agents_own_fields_and_these_over_kube_proxys() {
    let text = format!(
        "{HEAD}conntrack: {{udpTimeout: 1m}}\nclusterCIDR: 10.0.0.0/8\nsluice: {{udpIdleTimeout: 2m, master: [http://a, http://b]}}\n"
    );
    let args = with(&text, "");
    assert_eq!(value(&args, "udp-idle-timeout"), ["2m"]);
    assert_eq!(args.source.apiserver.master, ["http://a", "http://b"]);
    let args = with(&text, "--conntrack-udp-timeout 3m --cluster-cidr 192.0.2.0/24 --master http://c");
    assert_eq!(value(&args, "udp-idle-timeout"), ["3m"]);
    assert_eq!(value(&args, "cluster-cidr"), ["192.0.2.0/24"]);
    assert_eq!(args.source.apiserver.master, ["http://c"]);
    let args = with(&text, "--conntrack-udp-timeout 3m --udp-idle-timeout 4m --capture bind");
    assert_eq!(
        (value(&args, "udp-idle-timeout"), value(&args, "capture")),
        (&["4m".to_owned()][..], &["bind".to_owned()][..])
    );
    let args = with(KUBEADM, "--manifests a");
    assert_eq!((args.source.apiserver.kubeconfig, args.source.manifests), (None, vec!["a".into()]));
    let bound = with(&text, "--capture bind");
    assert_eq!(without_effect(&bound), None, "what is said of nodes in general does no harm");
}

#[test]
fn what_belongs_to_another_mode_counts_for_nothing() {
    for (mode, field, wanted) in [
        ("", "iptables", true),
        ("ipvs", "iptables", true),
        ("nftables", "iptables", false),
        ("nftables", "nftables", true),
        ("", "nftables", false),
    ] {
        let text = format!("{HEAD}mode: {mode:?}\n{field}: {{masqueradeAll: true}}\n");
        assert_eq!(with(&text, "").capture.masquerade_all, wanted, "{mode} {field}");
    }
}

#[test]
fn a_v6_bind_address_is_the_family_of_the_rest() {
    let args = with(&format!("{HEAD}bindAddress: '::'\n"), "");
    assert_eq!(args.ports.metrics().unwrap().to_string(), "[::1]:10249");
    let args = with(&format!("{HEAD}bindAddress: '::'\nmetricsBindAddress: 0.0.0.0:7\n"), "");
    assert_eq!(args.ports.metrics().unwrap().to_string(), "port 7", "of both families");
}

#[test]
fn numbers_are_written_as_numbers_or_as_text() {
    for ports in ["[15001, 4140]", "['15001', \"4140\"]", "[15001, '4140']"] {
        let args = with(&format!("{HEAD}sluice: {{socketSidecarPorts: {ports}}}\n"), "");
        let given: Vec<_> =
            args.capture.socket.socket_sidecar_ports.iter().filter_map(|port| port.0).collect();
        assert_eq!(given, [15001, 4140], "{ports}");
    }
    let args = with(&format!("{HEAD}sluice: {{socketSidecarPorts: ['']}}\n"), "");
    assert_eq!(args.capture.socket.socket_sidecar_ports.iter().filter_map(|port| port.0).count(), 0);
    for seconds in ["90", "90s", "1m30s"] {
        let args = with(&format!("{HEAD}sluice: {{udpIdleTimeout: {seconds}}}\n"), "");
        assert_eq!(args.dataplane.udp_idle_timeout, std::time::Duration::from_secs(90), "{seconds}");
    }
}

#[test]
fn mistakes_are_said_with_line_and_field() {
    #[rustfmt::skip]
    let cases = [
        ("clusterCIRD: 10.0.0.0/8\n",              "line 3: clusterCIRD: there is no such field; clusterCIDR is meant?"),
        ("clustercidr: 10.0.0.0/8\n",              "line 3: clustercidr: there is no such field; clusterCIDR is meant?"),
        ("conntrack:\n  minimum: 1\n",             "line 4: conntrack.minimum: there is no such field"),
        ("ipTables:\n  masqueradeBit: 1\n",        "line 3: ipTables: there is no such field; iptables is meant?"),
        ("sluice:\n  worker: 1\n",                 "line 4: sluice.worker: there is no such field; workers is meant?"),
        ("sluice:\n  workers: many\n",             "line 4: sluice.workers: text is to be a whole number"),
        ("conntrack: 7\n",                         "line 3: conntrack: a number is to be a map"),
        ("conntrack:\n  min: \"7\"\n",             "line 4: conntrack.min: text is to be a whole number"),
        ("hostnameOverride: 7\n",                  "line 3: hostnameOverride: a number is to be text: write it in quotes"),
        ("enableProfiling: \"true\"\n",            "line 3: enableProfiling: text is to be true or false"),
        ("nodePortAddresses: primary\n",           "line 3: nodePortAddresses: text is to be a list of texts"),
        ("configSyncPeriod: soon\n",               "line 3: configSyncPeriod: \"soon\" is to be a duration, as \"30s\" or \"1h30m\", or a number of seconds"),
        ("sluice:\n  socketSidecarPorts: [mesh]\n", "line 4: sluice.socketSidecarPorts: each element is to be a whole number, and one is \"mesh\""),
        ("sluice:\n  socketSidecarPorts: 7\n", "line 4: sluice.socketSidecarPorts: a number is to be a list of whole numbers"),
        ("sluice:\n  gracePeriod: -7\n",        "line 4: sluice.gracePeriod: \"-7\" is to be a duration, as \"30s\" or \"1h30m\", or a number of seconds"),
        ("mode: userspace\n",                      "line 3: mode: \"userspace\" is to be one of iptables, ipvs, nftables"),
        ("clusterCIDR: [10.0.0.0/8]\n",            "line 3: clusterCIDR: a list is to be one text, comma-separated: \"10.0.0.0/8\""),
        ("clusterCIDR: [10.0.0.0/8, fd00::/48]\n", "line 3: clusterCIDR: a list is to be one text, comma-separated: \"10.0.0.0/8,fd00::/48\""),
        ("bindAddress: here\n",                    "line 3: bindAddress: \"here\" is to be an IP address"),
    ];
    for (text, wanted) in cases {
        assert_eq!(complaint(&format!("{HEAD}{text}")), wanted, "{text}");
    }
    let both =
        complaint(&format!("{HEAD}clusterCIDR: pods\ndetectLocalMode: Mine\nmetricsBindAddress: here\n"));
    let lines: Vec<_> = both.lines().collect();
    assert!(lines[0].starts_with("line 3: clusterCIDR: invalid value 'pods'"), "{both}");
    assert!(lines[1].starts_with("line 4: detectLocalMode:") && lines[1].contains("NodeCIDR"), "{both}");
    assert!(lines[2].starts_with("line 5: metricsBindAddress:") && lines.len() == 3, "{both}");
}

#[test]
fn of_several_documents_the_one_that_is_the_configuration_counts() {
    let ours = format!("{HEAD}clusterCIDR: 10.0.0.0/8\n");
    let other = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let cases = [
        (format!("{ours}---\n"), None),
        (format!("---\n{ours}"), None),
        (format!("# Of the node.\n---\n---\n{ours}---\n# Nothing.\n---\nnull\n...\n"), None),
        (format!("{ours}---\n{other}---\n- a\n"), Some("line 5: KubeletConfiguration, line 8: a list")),
        (format!("{other}---\n{ours}---\na: b\n"), Some("line 1: KubeletConfiguration, line 8: a map")),
    ];
    for (text, ignored) in cases {
        let args = with(&text, "");
        assert_eq!(value(&args, "cluster-cidr"), ["10.0.0.0/8"], "{text}");
        let note = args.said.notes.iter().find(|note| note.contains("ignored"));
        assert_eq!(note.is_some(), ignored.is_some(), "{text}: {note:?}");
        assert!(note.is_none_or(|note| note.contains(ignored.unwrap())), "{text}: {note:?}");
    }
    let said = complaint(&format!("{ours}---\n{other}---\n{ours}"));
    assert_eq!(said, "line 8: a second KubeProxyConfiguration: leave one in the file");
    let said = complaint(&format!("{other}---\n{other}"));
    assert_eq!(said, "line 1: none of 2 documents is a KubeProxyConfiguration");
    let flaw = complaint(&format!("{other}---\n{HEAD}mode: userspace\n"));
    assert!(flaw.starts_with("line 6: mode: "), "{flaw}");
}

#[test]
fn what_is_no_such_document_is_said() {
    for (text, wanted) in [
        ("", "nothing is to be a KubeProxyConfiguration"),
        ("- a\n", "a list is to be a KubeProxyConfiguration"),
        (
            "kind: KubeProxyConfiguration\n",
            "apiVersion: missing: write apiVersion: kubeproxy.config.k8s.io/v1alpha1",
        ),
        ("apiVersion: v1\nkind: Pod\n", "line 2: kind: is to be KubeProxyConfiguration"),
        ("mode: [\n", "line 1: "),
        (&format!("{HEAD}mode: ''\nmode: ''\n"), "mode"),
    ] {
        let said = complaint(text);
        assert!(said.contains(wanted), "{text}: {said}");
    }
    let said = complaint(
        "apiVersion: v1\ndata: {config.conf: 'a: b'}\nkind: ConfigMap\nmetadata: {name: kube-proxy}\n",
    );
    assert!(said.starts_with("line 3: kind: this is a ConfigMap: ") && said.lines().count() == 1, "{said}");
    assert!(said.contains("{.data.config\\.conf}"), "{said}");
    let large = Case::new(&format!("{HEAD}# {}\n", "x".repeat(1 << 20)));
    assert!(large.parse("").unwrap_err().to_string().contains("1048576 bytes"));
}

/// A row of the documentation.
fn documented(row: &Row) -> String {
    use Meaning::{As, BindAddress, Elsewhere, Meaningless, Mode, NotOffered};
    let quoted = |before: &str, name: &str| match name {
        "" => String::new(),
        name => format!("`{before}{name}`"),
    };
    let here = match row.meaning {
        As("profiling") => "its effect: `/debug/flags/v`; there is no pprof".to_owned(),
        As(flag) if flag == row.flag => "its effect".to_owned(),
        As(flag) => format!("`--{flag}`"),
        Mode => "each means `--capture auto`".to_owned(),
        BindAddress => "its family is that of addresses that are not given".to_owned(),
        Elsewhere(why) => format!("elsewhere: {why}"),
        Meaningless(why) => format!("no meaning: {why}"),
        NotOffered(why) => format!("not offered: {why}"),
    };
    format!("| {} | {} | {here} |", quoted("--", row.flag), quoted("", row.field))
}

#[test]
fn the_documentation_has_every_flag_and_field_and_what_becomes_of_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| `") || line.starts_with("|  |")).collect();
    let own = OWN_TABLE.iter().map(|own| format!("| `{}` | `--{}` |", own.field, own.flag));
    let wanted: Vec<String> = own.chain(TABLE.iter().map(documented)).collect();
    assert_eq!(lines, wanted);
}

#[test]
fn what_cannot_be_read_is_said_with_the_mend() {
    let directory = TempDir::new().unwrap();
    let binary = directory.path().join("binary");
    fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    let missing = directory.path().join("missing");
    for (path, wanted) in [
        (binary.as_path(), "write it as UTF-8"),
        (directory.path(), "name the file in it"),
        (missing.as_path(), "see that it is there"),
    ] {
        let said = parse(&format!("--config {}", path.display())).unwrap_err().to_string();
        assert!(said.contains(&*path.to_string_lossy()) && said.contains(wanted), "{said}");
    }
}

#[test]
fn where_kube_proxy_serves_node_ports_on_more_addresses_it_is_said_once() {
    let notes = |args: &AgentArgs| {
        args.said
            .notes
            .iter()
            .filter(|note| note.contains("--nodeport-addresses=all"))
            .cloned()
            .collect::<Vec<_>>()
    };
    for (mode, is_on_loopback) in [("\"\"", true), ("iptables", true), ("ipvs", false)] {
        let said = notes(&with(&KUBEADM.replace("mode: \"\"", &format!("mode: {mode}")), ""));
        assert_eq!((said.len(), said[0].contains("127.0.0.1")), (1, is_on_loopback), "{mode}: {said:?}");
        assert!(said[0].contains("health check node ports"), "{said:?}");
    }
    assert_eq!(notes(&parse("--proxy-mode iptables").unwrap()).len(), 1);
    for flags in [
        "--capture bind",
        "--proxy-mode nftables",
        "--nodeport-addresses primary",
        "--nodeport-addresses all",
    ] {
        assert!(notes(&with(KUBEADM, flags)).is_empty(), "{flags}");
    }
    for (from, to) in [
        ("mode: \"\"", "mode: nftables"),
        ("nodePortAddresses: null", "nodePortAddresses: [primary]"),
        ("nodePortAddresses: null", "nodePortAddresses: [all]"),
    ] {
        assert!(notes(&with(&KUBEADM.replace(from, to), "")).is_empty(), "{to}");
    }
    assert!(parse("--capture tproxy").unwrap().said.notes.is_empty(), "nobody speaks of kube-proxy");
    let args = parse("--capture tproxy --nodeport-addresses localhost,all").unwrap();
    assert!(args.said.notes[0].contains("not served on loopback"), "{:?}", args.said.notes);
}
