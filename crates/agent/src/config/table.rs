//! Every flag and every field of kube-proxy 1.36, and what becomes of it here. Only data; the modules beside it
//! use them.

use Kind::{Bool, Bools, Duration, Float, Flush, Int, Numbers, Quantity, Text, TextOrOff, Texts, Vmodule};
use Meaning::{As, BindAddress, Elsewhere, Meaningless, Mode, NotOffered};

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// Text that may be `off`, which YAML takes for a boolean.
    TextOrOff,
    Bool,
    Int,
    Float,
    /// A duration in Go's form, such as `1m30s`, or a number of seconds, as the flags take it.
    Duration,
    /// A list of strings; in a flag, separated by commas.
    Texts,
    /// A list of whole numbers, also as strings; in a flag, separated by commas.
    Numbers,
    /// A map of booleans.
    Bools,
    /// A duration, or a number of nanoseconds.
    Flush,
    /// `64Ki`, or a number.
    Quantity,
    /// A list of patterns with a verbosity.
    Vmodule,
}

/// What becomes of a setting here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is this flag of the agent.
    As(&'static str),
    /// kube-proxy's mode: every mode means to serve a node.
    Mode,
    /// kube-proxy's `bindAddress`: its family applies to addresses that are not given.
    BindAddress,
    /// There is another way to get the same.
    Elsewhere(&'static str),
    /// It has nothing to apply to.
    Meaningless(&'static str),
    /// kube-proxy supports it, and this agent does not.
    NotOffered(&'static str),
}

/// A setting of kube-proxy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Its flag, without dashes; empty if there is only a field.
    pub flag: &'static str,
    /// Its field's path; empty if there is only a flag.
    pub field: &'static str,
    pub kind: Kind,
    /// kube-proxy's default values: writing one of them changes nothing.
    pub defaults: &'static [&'static str],
    pub meaning: Meaning,
}

/// A setting of the agent's own: its field below [`OWN`], and its flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub field: &'static str,
    pub flag: &'static str,
    pub kind: Kind,
}

/// The field with the agent's own settings.
pub(crate) const OWN: &str = "sluice";

const TRACKED: &str = "connections to Services are not tracked";
const LIMIT: &str = "connections to Services are not tracked; of all others the node's sysctl net.netfilter.nf_conntrack_max is the limit";
const AT_ONCE: &str =
    "changes take effect at once, at any number of Services; nothing is written anew from time to time";
const IPVS: &str = "IPVS is not used; the annotation sluice.dev/balance chooses how a Service is balanced";
const WATCHED: &str = "the apiserver is watched; nothing is asked for from time to time";
const REQUESTS: &str = "the agent asks for a few lists and watches, and waits when the apiserver says so";
const JSON: &str = "the apiserver is asked for JSON";
const MARKS: &str = "nothing is masqueraded; the marks in use are 0x10/0x30 and 0x20/0x30";
const LOGS: &str =
    "logs go to standard error, one line at once for each event; RUST_LOG says how much of them";
const FILES: &str = "logs go to standard error";
const STREAM: &str = "four times --udp-idle-timeout, once a flow was answered";
const LOOPBACK: &str = "nodePorts are not served on loopback addresses, as in kube-proxy's nftables mode";
const WINDOWS: &str = "this is for Linux";
const GATES: &str = "the agent has no feature gates";
const GONE: &str = "kube-proxy does not know it any more";
const UNUSED: &str = "kube-proxy ignores it, too";

const fn row(
    flag: &'static str,
    field: &'static str,
    kind: Kind,
    defaults: &'static [&'static str],
    meaning: Meaning,
) -> Row {
    Row { flag, field, kind, defaults, meaning }
}

#[rustfmt::skip]
pub(crate) const TABLE: &[Row] = &[
    row("bind-address",                      "bindAddress",                          Text,     &["0.0.0.0", "::"], BindAddress),
    row("bind-address-hard-fail",            "bindAddressHardFail",                  Bool,     &[],                As("bind-address-hard-fail")),
    row("boot-id-file",                      "",                                     Text,     &[],                Meaningless("nothing reads the boot's identity")),
    row("cleanup",                           "",                                     Bool,     &[],                As("cleanup")),
    row("cluster-cidr",                      "clusterCIDR",                          Text,     &[],                As("cluster-cidr")),
    row("config",                            "",                                     Text,     &[],                As("config")),
    row("config-sync-period",                "configSyncPeriod",                     Duration, &["15m"],           Meaningless(WATCHED)),
    row("conntrack-max-per-core",            "conntrack.maxPerCore",                 Int,      &["32768"],         Meaningless(LIMIT)),
    row("conntrack-min",                     "conntrack.min",                        Int,      &["131072"],        Meaningless(LIMIT)),
    row("conntrack-tcp-be-liberal",          "conntrack.tcpBeLiberal",               Bool,     &[],                Meaningless(TRACKED)),
    row("conntrack-tcp-timeout-close-wait",  "conntrack.tcpCloseWaitTimeout",        Duration, &["1h"],            As("tcp-half-closed-timeout")),
    row("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout",      Duration, &["24h"],           Meaningless("an idle connection stays open; a peer that is gone is noticed within two minutes")),
    row("conntrack-udp-timeout",             "conntrack.udpTimeout",                 Duration, &[],                As("udp-idle-timeout")),
    row("conntrack-udp-timeout-stream",      "conntrack.udpStreamTimeout",           Duration, &[],                Elsewhere(STREAM)),
    row("detect-local-mode",                 "detectLocalMode",                      Text,     &[],                As("detect-local-mode")),
    row("enable-dsr",                        "winkernel.enableDSR",                  Bool,     &[],                Meaningless(WINDOWS)),
    row("feature-gates",                     "featureGates",                         Bools,    &[],                Meaningless(GATES)),
    row("forward-healthcheck-vip",           "winkernel.forwardHealthCheckVip",      Bool,     &[],                Meaningless(WINDOWS)),
    row("healthz-bind-address",              "healthzBindAddress",                   Text,     &[],                As("healthz-bind-address")),
    row("healthz-port",                      "",                                     Int,      &[],                As("healthz-port")),
    row("hostname-override",                 "hostnameOverride",                     Text,     &[],                As("hostname-override")),
    row("init-only",                         "",                                     Bool,     &[],                As("init-only")),
    row("iptables-localhost-nodeports",      "iptables.localhostNodePorts",          Bool,     &[],                Meaningless(LOOPBACK)),
    row("iptables-masquerade-bit",           "iptables.masqueradeBit",               Int,      &["14"],            Meaningless(MARKS)),
    row("iptables-min-sync-period",          "iptables.minSyncPeriod",               Duration, &["1s"],            Meaningless(AT_ONCE)),
    row("iptables-sync-period",              "iptables.syncPeriod",                  Duration, &["30s"],           Meaningless(AT_ONCE)),
    row("ipvs-exclude-cidrs",                "ipvs.excludeCIDRs",                    Texts,    &[],                Meaningless(IPVS)),
    row("ipvs-min-sync-period",              "ipvs.minSyncPeriod",                   Duration, &["1s"],            Meaningless(IPVS)),
    row("ipvs-scheduler",                    "ipvs.scheduler",                       Text,     &[],                Elsewhere(IPVS)),
    row("ipvs-strict-arp",                   "ipvs.strictARP",                       Bool,     &[],                Meaningless("Service addresses are on no interface, so nobody answers ARP for them")),
    row("ipvs-sync-period",                  "ipvs.syncPeriod",                      Duration, &["30s"],           Meaningless(IPVS)),
    row("ipvs-tcp-timeout",                  "ipvs.tcpTimeout",                      Duration, &[],                Meaningless(IPVS)),
    row("ipvs-tcpfin-timeout",               "ipvs.tcpFinTimeout",                   Duration, &[],                Elsewhere("--tcp-half-closed-timeout is the same for relayed connections")),
    row("ipvs-udp-timeout",                  "ipvs.udpTimeout",                      Duration, &[],                Elsewhere("--udp-idle-timeout is the same for relayed flows")),
    row("kube-api-burst",                    "clientConnection.burst",               Int,      &["10"],            Meaningless(REQUESTS)),
    row("kube-api-content-type",             "clientConnection.contentType",         Text,     &["application/vnd.kubernetes.protobuf"], Meaningless(JSON)),
    row("kube-api-qps",                      "clientConnection.qps",                 Float,    &["5"],             Meaningless(REQUESTS)),
    row("kubeconfig",                        "clientConnection.kubeconfig",          Text,     &[],                As("kubeconfig")),
    row("log-flush-frequency",               "logging.flushFrequency",               Flush,    &["5s"],            Meaningless(LOGS)),
    row("log-json-info-buffer-size",         "logging.options.json.infoBufferSize",  Quantity, &["0"],             Meaningless(LOGS)),
    row("log-json-split-stream",             "logging.options.json.splitStream",     Bool,     &[],                NotOffered(FILES)),
    row("log-text-info-buffer-size",         "logging.options.text.infoBufferSize",  Quantity, &["0"],             Meaningless(LOGS)),
    row("log-text-split-stream",             "logging.options.text.splitStream",     Bool,     &[],                NotOffered(FILES)),
    row("logging-format",                    "logging.format",                       Text,     &["text"],          As("logging-format")),
    row("machine-id-file",                   "",                                     Text,     &[],                Meaningless("nothing reads the machine's identity")),
    row("masquerade-all",                    "iptables.masqueradeAll",               Bool,     &[],                As("masquerade-all")),
    row("master",                            "",                                     Text,     &[],                As("master")),
    row("metrics-bind-address",              "metricsBindAddress",                   Text,     &[],                As("metrics-bind-address")),
    row("metrics-port",                      "",                                     Int,      &[],                As("metrics-port")),
    row("network-name",                      "winkernel.networkName",                Text,     &[],                Meaningless(WINDOWS)),
    row("nodeport-addresses",                "nodePortAddresses",                    Texts,    &[],                As("nodeport-addresses")),
    row("oom-score-adj",                     "oomScoreAdj",                          Int,      &[],                As("oom-score-adj")),
    row("pod-bridge-interface",              "detectLocal.bridgeInterface",          Text,     &[],                As("pod-bridge-interface")),
    row("pod-interface-name-prefix",         "detectLocal.interfaceNamePrefix",      Text,     &[],                As("pod-interface-name-prefix")),
    row("profiling",                         "enableProfiling",                      Bool,     &[],                As("profiling")),
    row("proxy-mode",                        "mode",                                 Text,     &[],                Mode),
    row("proxy-port-range",                  "portRange",                            Text,     &[],                Meaningless(UNUSED)),
    row("root-hnsendpoint-name",             "winkernel.rootHnsEndpointName",        Text,     &[],                Meaningless(WINDOWS)),
    row("show-hidden-metrics-for-version",   "showHiddenMetricsForVersion",          Text,     &[],                Meaningless("no metric is hidden")),
    row("source-vip",                        "winkernel.sourceVip",                  Text,     &[],                Meaningless(WINDOWS)),
    row("v",                                 "logging.verbosity",                    Int,      &[],                As("v")),
    row("vmodule",                           "logging.vmodule",                      Vmodule,  &[],                NotOffered(LOGS)),
    row("windows-service",                   "windowsRunAsService",                  Bool,     &[],                Meaningless(WINDOWS)),
    row("write-config-to",                   "",                                     Text,     &[],                As("write-config-to")),

    row("",                                  "clientConnection.acceptContentTypes",  Text,     &[],                Meaningless(JSON)),
    row("",                                  "iptables.snatNodeInternalIP",          Bool,     &[],                NotOffered("endpoints see the address that the kernel chooses for the way to them")),
    row("",                                  "nftables.masqueradeAll",               Bool,     &[],                As("masquerade-all")),
    row("",                                  "nftables.masqueradeBit",               Int,      &["14"],            Meaningless(MARKS)),
    row("",                                  "nftables.minSyncPeriod",               Duration, &["1s"],            Meaningless(AT_ONCE)),
    row("",                                  "nftables.syncPeriod",                  Duration, &["30s"],           Meaningless(AT_ONCE)),

    // Fields of older versions.
    row("",                                  "conntrack.max",                        Int,      &[],                Meaningless(GONE)),
    row("",                                  "resourceContainer",                    Text,     &["/kube-proxy"],   Meaningless(GONE)),
    row("udp-timeout",                       "udpIdleTimeout",                       Duration, &["250ms"],         Meaningless(GONE)),
    row("cleanup-ipvs",                      "",                                     Bool,     &[],                Meaningless(GONE)),
    row("add-dir-header",                    "",                                     Bool,     &[],                Meaningless(FILES)),
    row("alsologtostderr",                   "",                                     Bool,     &[],                Meaningless(FILES)),
    row("log-backtrace-at",                  "",                                     Text,     &[],                Meaningless(FILES)),
    row("log-dir",                           "",                                     Text,     &[],                NotOffered(FILES)),
    row("log-file",                          "",                                     Text,     &[],                NotOffered(FILES)),
    row("log-file-max-size",                 "",                                     Int,      &[],                Meaningless(FILES)),
    row("logtostderr",                       "",                                     Bool,     &[],                Meaningless(FILES)),
    row("one-output",                        "",                                     Bool,     &[],                Meaningless(FILES)),
    row("skip-headers",                      "",                                     Bool,     &[],                Meaningless(FILES)),
    row("skip-log-headers",                  "",                                     Bool,     &[],                Meaningless(FILES)),
    row("stderrthreshold",                   "",                                     Text,     &[],                Meaningless(FILES)),
];

const fn own(field: &'static str, flag: &'static str, kind: Kind) -> Own {
    Own { field, flag, kind }
}

#[rustfmt::skip]
pub(crate) const OWN_TABLE: &[Own] = &[
    own("adminSocket",            "admin-socket",             Text),
    own("capture",                "capture",                  Text),
    own("clientShare",            "client-share",             Int),
    own("connectionLog",          "connection-log",           TextOrOff),
    own("context",                "context",                  Text),
    own("disableBridgeNetfilter", "disable-bridge-netfilter", Bool),
    own("gracePeriod",            "grace-period",             Duration),
    own("manifests",              "manifests",                Texts),
    own("master",                 "master",                   Texts),
    own("passiveHealth",          "passive-health",           Bool),
    own("serviceMetrics",         "service-metrics",          TextOrOff),
    own("socketCgroup",           "socket-cgroup",            Text),
    own("socketEndpoints",        "socket-endpoints",         Int),
    own("socketHostOnly",         "socket-host-only",         Bool),
    own("socketNamespaces",       "socket-namespaces",        Texts),
    own("socketPins",             "socket-pins",              Text),
    own("socketPodAnnotations",   "socket-pod-annotations",   Bool),
    own("socketSidecarPorts",     "socket-sidecar-ports",     Numbers),
    own("statusPage",             "status-page",              TextOrOff),
    own("tcpHalfClosedTimeout",   "tcp-half-closed-timeout",  Duration),
    own("tproxyPort",             "tproxy-port",              Int),
    own("trackConnections",       "track-connections",        Bool),
    own("udpIdleTimeout",         "udp-idle-timeout",         Duration),
    own("workers",                "workers",                  Int),
];

/// The setting of a field, by its path.
pub(crate) fn by_field(field: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| !row.field.is_empty() && row.field == field)
}

/// The agent's own setting of a field below [`OWN`].
pub(crate) fn own_by_field(field: &str) -> Option<&'static Own> {
    OWN_TABLE.iter().find(|own| own.field == field)
}

/// kube-proxy's flags that the agent does not have itself.
pub(crate) fn foreign_flags() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(|row| !row.flag.is_empty() && row.meaning != As(row.flag))
}
