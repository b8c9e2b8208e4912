//! Judges limits that matter under load.

use super::super::facts::Facts;
use super::super::finding::Finding;

/// Fewer file descriptors than this run out soon: a TCP session takes two, or four while one side is slow.
const DESCRIPTORS: u64 = 65_536;

/// The backlog of the listeners, and the kernel's default since 5.4.
const BACKLOG: u64 = 4096;

/// Ports for connections to one endpoint address and port: each connection from the node's address takes one.
const LOCAL_PORTS: u64 = 16_384;

/// How long the kernel keeps the port of a connection that this side has closed, in seconds.
const TIME_WAIT: u64 = 60;

/// The range of nodePorts unless the apiserver has another (`--service-node-port-range`).
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![descriptors(facts), backlog(facts)];
    findings.extend(local_ports(facts));
    findings.extend(conntrack(facts));
    findings
}

fn descriptors(facts: &Facts) -> Finding {
    const ABOUT: &str = "open files";
    match facts.descriptors {
        Some(limit) if limit < DESCRIPTORS => Finding::warning(
            ABOUT,
            format!("at most {limit}, for about half as many connections"),
            format!("raise the hard limit to {DESCRIPTORS} or more (LimitNOFILE of the container runtime)"),
        ),
        Some(limit) => Finding::ok(ABOUT, format!("up to {limit}")),
        None => Finding::ok(ABOUT, "no limit"),
    }
}

fn backlog(facts: &Facts) -> Finding {
    const ABOUT: &str = "backlog";
    match facts.backlog {
        Some(backlog) if backlog < BACKLOG => Finding::warning(
            ABOUT,
            format!("{backlog} new connections may wait at a time; more that come at once have to try again"),
            format!("set net.core.somaxconn={BACKLOG}"),
        ),
        Some(backlog) => Finding::ok(ABOUT, format!("{backlog} new connections may wait at a time")),
        None => Finding::ok(ABOUT, "as the kernel has it"),
    }
}

fn local_ports(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "local ports";
    let Some((first, last)) = facts.local_ports else { return Vec::new() };
    let mut findings = Vec::new();
    let number = u64::from(last.saturating_sub(first)) + 1;
    if number < LOCAL_PORTS {
        findings.push(Finding::warning(
            ABOUT,
            format!("{first} to {last} are only {number}: as many connections to one endpoint, with the node's address"),
            "widen net.ipv4.ip_local_port_range (the default is 32768 60999)",
        ));
    }
    let (lowest, highest) = NODE_PORTS;
    let is_reserved = |port: u16| facts.reserved_ports.iter().any(|(from, to)| (*from..=*to).contains(&port));
    let is_shared = (lowest.max(first)..=highest.min(last)).any(|port| !is_reserved(port));
    if is_shared {
        findings.push(Finding::warning(
            ABOUT,
            format!(
                "{first} to {last} overlap the nodePorts {lowest} to {highest}: replies to a connection of this \
                 node from a port that is a nodePort too are taken for the Service's"
            ),
            format!("set net.ipv4.ip_local_reserved_ports={lowest}-{highest}"),
        ));
    }
    if facts.tw_reuse == Some(0) {
        findings.push(Finding::warning(
            ABOUT,
            format!(
                "none is taken again within a minute: {} new connections a second to one endpoint, with the node's \
                 address, use up all",
                number / TIME_WAIT
            ),
            "set net.ipv4.tcp_tw_reuse=1 (the agent leaves it alone where it is 0)",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(ABOUT, format!("{first} to {last}, apart from nodePorts")));
    }
    findings
}

/// Only reported if it is nearly full: captured traffic takes no entries, but everything else on the node does,
/// including packets to endpoints on other nodes.
fn conntrack(facts: &Facts) -> Option<Finding> {
    let (entries, limit) = facts.conntrack?;
    (entries.saturating_mul(10) >= limit.saturating_mul(9)).then(|| {
        Finding::warning(
            "conntrack",
            format!("{entries} of {limit} entries are taken; new connections are dropped when all are"),
            "raise net.netfilter.nf_conntrack_max; what kube-proxy has tracked goes within days",
        )
    })
}
