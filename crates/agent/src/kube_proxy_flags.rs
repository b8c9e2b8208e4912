//! kube-proxy's flags that the agent has not: each gets an answer, so that nobody who moves a command line over has to
//! guess. As of kube-proxy 1.36.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The same is had in another way.
    Elsewhere(&'static str),
    /// There is nothing that it could be about.
    Meaningless(&'static str),
    /// kube-proxy can do that, and this cannot.
    NotOffered(&'static str),
}

use Answer::{Elsewhere, Meaningless, NotOffered};

const NO_CONFIG: &str = "everything is a flag of its own; there is no configuration file";
const NO_RULES_PER_SERVICE: &str =
    "changes take effect at once, at any number of Services; nothing is written anew from time to time";
const NO_IPVS: &str = "IPVS is not used; the annotation sluice.dev/balance chooses how a Service is balanced";
const NO_CONNTRACK: &str = "connections to Services are not tracked";
const LOGS: &str = "logs go to standard error; -v, -vv and RUST_LOG say how much of them";
const WINDOWS: &str = "this is for Linux";

#[rustfmt::skip]
const FLAGS: &[(&str, Answer)] = &[
    ("add_dir_header",                    Elsewhere(LOGS)),
    ("alsologtostderr",                   Elsewhere(LOGS)),
    ("bind-address",                      Meaningless("the node's addresses are those of its Node object")),
    ("cleanup",                           Elsewhere("`sluice cleanup` removes what the agent has made, `sluice cleanup --kube-proxy` what kube-proxy has")),
    ("cleanup-ipvs",                      Elsewhere("`sluice cleanup --kube-proxy` removes what kube-proxy has made, IPVS included")),
    ("config",                            NotOffered(NO_CONFIG)),
    ("config-sync-period",                Meaningless("the apiserver is watched; nothing is asked for from time to time")),
    ("conntrack-max-per-core",            Meaningless(NO_CONNTRACK)),
    ("conntrack-min",                     Meaningless(NO_CONNTRACK)),
    ("conntrack-tcp-be-liberal",          Meaningless(NO_CONNTRACK)),
    ("conntrack-tcp-timeout-close-wait",  Elsewhere("--tcp-half-closed-timeout is the same for relayed connections")),
    ("conntrack-tcp-timeout-established", Meaningless("an idle connection stays open; a peer that is gone is noticed within two minutes")),
    ("conntrack-udp-timeout",             Elsewhere("--udp-idle-timeout is the same for relayed flows")),
    ("conntrack-udp-timeout-stream",      Elsewhere("--udp-idle-timeout is the same for relayed flows")),
    ("enable-dsr",                        Meaningless(WINDOWS)),
    ("feature-gates",                     Meaningless("the agent has no feature gates")),
    ("forward-healthcheck-vip",           Meaningless(WINDOWS)),
    ("init-only",                         Meaningless("the agent needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, and nothing before")),
    ("iptables-localhost-nodeports",      Meaningless("nodePorts are not served on loopback addresses, as in kube-proxy's nftables mode")),
    ("iptables-masquerade-bit",           Meaningless("nothing is masqueraded; the marks in use are 0x10/0x30 and 0x20/0x30")),
    ("iptables-min-sync-period",          Meaningless(NO_RULES_PER_SERVICE)),
    ("iptables-sync-period",              Meaningless(NO_RULES_PER_SERVICE)),
    ("ipvs-exclude-cidrs",                Meaningless(NO_IPVS)),
    ("ipvs-min-sync-period",              Meaningless(NO_IPVS)),
    ("ipvs-scheduler",                    Elsewhere(NO_IPVS)),
    ("ipvs-strict-arp",                   Meaningless("Service addresses are on no interface, so nobody answers ARP for them")),
    ("ipvs-sync-period",                  Meaningless(NO_IPVS)),
    ("ipvs-tcp-timeout",                  Meaningless(NO_IPVS)),
    ("ipvs-tcpfin-timeout",               Elsewhere("--tcp-half-closed-timeout is the same for relayed connections")),
    ("ipvs-udp-timeout",                  Elsewhere("--udp-idle-timeout is the same for relayed flows")),
    ("kube-api-burst",                    Meaningless("the agent asks for a few lists and watches, and waits when the apiserver says so")),
    ("kube-api-content-type",             Meaningless("the apiserver is asked for JSON")),
    ("kube-api-qps",                      Meaningless("the agent asks for a few lists and watches, and waits when the apiserver says so")),
    ("log-flush-frequency",               Elsewhere(LOGS)),
    ("log-json-info-buffer-size",         NotOffered(LOGS)),
    ("log-json-split-stream",             NotOffered(LOGS)),
    ("log-text-info-buffer-size",         Elsewhere(LOGS)),
    ("log-text-split-stream",             NotOffered(LOGS)),
    ("log_backtrace_at",                  NotOffered(LOGS)),
    ("log_dir",                           NotOffered(LOGS)),
    ("log_file",                          NotOffered(LOGS)),
    ("log_file_max_size",                 NotOffered(LOGS)),
    ("logging-format",                    NotOffered(LOGS)),
    ("logtostderr",                       Elsewhere(LOGS)),
    ("network-name",                      Meaningless(WINDOWS)),
    ("one_output",                        Elsewhere(LOGS)),
    ("oom-score-adj",                     Elsewhere("whoever starts the agent sets it: OOMScoreAdjust of systemd, or `choom`; in a pod it is the kubelet's")),
    ("profiling",                         NotOffered("perf(1) works as it is")),
    ("proxy-mode",                        Elsewhere("--capture tproxy is what a node needs")),
    ("proxy-port-range",                  Meaningless("kube-proxy ignores it, too")),
    ("root-hnsendpoint-name",             Meaningless(WINDOWS)),
    ("show-hidden-metrics-for-version",   Meaningless("no metric is hidden")),
    ("skip_headers",                      Elsewhere(LOGS)),
    ("skip_log_headers",                  Elsewhere(LOGS)),
    ("source-vip",                        Meaningless(WINDOWS)),
    ("stderrthreshold",                   Elsewhere(LOGS)),
    ("udp-timeout",                       Elsewhere("--udp-idle-timeout is the same for relayed flows")),
    ("v",                                 Elsewhere(LOGS)),
    ("vmodule",                           Elsewhere(LOGS)),
    ("windows-service",                   Meaningless(WINDOWS)),
    ("write-config-to",                   NotOffered(NO_CONFIG)),
];

/// What is said instead of `error`: if it is about a flag of kube-proxy's, an answer for each such flag among
/// `arguments`.
pub(crate) fn answers(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    answer(unknown)?;
    let words = arguments.iter().filter_map(|argument| argument.to_str()).take_while(|word| *word != "--");
    let mut lines: Vec<String> = words.filter_map(answer).collect();
    lines.dedup();
    Some(lines.join("\n"))
}

/// The answer to `--flag`, with or without a value.
fn answer(word: &str) -> Option<String> {
    let name = word.strip_prefix("--")?.split('=').next()?;
    // As pflag has it.
    let spelled = |flag: &&(&str, Answer)| flag.0 == name || flag.0.replace('_', "-") == name;
    let (name, answer) = FLAGS.iter().find(spelled)?;
    Some(match answer {
        Elsewhere(how) => format!("--{name} of kube-proxy is had in another way: {how}"),
        Meaningless(why) => format!("--{name} of kube-proxy has no meaning here: {why}"),
        NotOffered(why) => format!("--{name} of kube-proxy is not offered: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn no_flag_of_ours_has_an_answer_and_each_name_is_there_once() {
        let mut command = Cli::command();
        command.build();
        let agent = command.find_subcommand("agent").unwrap();
        for argument in agent.get_arguments() {
            let name = argument.get_long().unwrap_or_default();
            assert!(!FLAGS.iter().any(|(flag, _)| *flag == name), "{name}");
        }
        let mut names: Vec<&str> = FLAGS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FLAGS.len());
    }
}
