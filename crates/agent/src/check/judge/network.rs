//! Judges network settings and others' rules that packets meet on their way to the agent.

use sluice_capture::tproxy::marks;
use sluice_model::Family;

use super::super::facts::{ClosedChain, Enforcer, Facts, Hook};
use super::super::finding::Finding;

/// Subjects of findings that may appear while an agent runs.
pub(in super::super) const REVERSE_PATH: &str = "reverse path";
pub(in super::super) const FIREWALL: &str = "firewall";
pub(super) const PACKET_MARKS: &str = "packet marks";
pub(super) const POLICIES: &str = "network policies";

/// Findings that may appear while an agent runs.
pub(super) fn again(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![reverse_path(facts), packet_marks(facts)];
    findings.extend(firewalls(facts));
    findings.extend(policies(facts));
    findings
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![reverse_path(facts)];
    findings.push(packet_marks(facts));
    findings.extend(bridges(facts));
    findings.push(forwarding(facts));
    findings.extend(firewalls(facts));
    findings.extend(policies(facts));
    findings.extend(localnet(facts));
    findings
}

pub(super) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// If the mark counts, the return path of a captured packet is looked up in our own routing table, in which
/// every address is local. A packet from a local address is a martian in every mode of `rp_filter`, even if it
/// is off (`__fib_validate_source`). If the mark does not count, no mode is a problem.
fn reverse_path(facts: &Facts) -> Finding {
    const ABOUT: &str = REVERSE_PATH;
    let marked = names(facts.interfaces.iter().filter(|i| i.src_valid_mark).map(|i| i.name.as_str()));
    if marked.is_empty() {
        return Finding::ok(ABOUT, "is looked up without the packet's mark");
    }
    Finding::problem(
        ABOUT,
        format!("is looked up with the packet's mark on {marked}: the kernel drops every captured packet"),
        "set net.ipv4.conf.INTERFACE.src_valid_mark=0 on each of these, and rp_filter=2 where it is 1 (WireGuard's \
         wg-quick, which sets the former, needs either)",
    )
}

/// The kernel shows others' marks only in policy rules that match them.
fn packet_marks(facts: &Facts) -> Finding {
    const ABOUT: &str = PACKET_MARKS;
    let rules = match &facts.mark_rules {
        Ok(rules) => rules,
        Err(error) => {
            return Finding::warning(
                ABOUT,
                error.as_str(),
                "see that the kernel has policy routing: ip rule",
            );
        }
    };
    let clashing: Vec<String> =
        rules.iter().filter(|rule| rule.clashes()).map(|rule| format!("({rule})")).collect();
    if clashing.is_empty() {
        return Finding::ok(ABOUT, "no policy rule of others goes by one that is taken for the agent's");
    }
    Finding::problem(
        ABOUT,
        format!(
            "policy rules of others go by marks that are taken for the agent's: {}; packets that have these get lost",
            clashing.join(", ")
        ),
        format!("have them use a mark that has none of the bits {:#x}", marks::MASK),
    )
}

/// A packet that br_netfilter has passed through the rules of the IP layer on a bridge does not pass them again
/// above it, and has lost the socket that TPROXY gave it by then.
fn bridges(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "bridges";
    let with_pods: Vec<_> = facts.bridges.iter().filter(|bridge| bridge.has_pods).collect();
    if with_pods.is_empty() {
        return vec![Finding::ok(ABOUT, "none with pods")];
    }
    let bridges = names(with_pods.iter().map(|bridge| bridge.name.as_str()));
    let caught = |(family, is_on): &(Family, bool)| {
        let setting = match family {
            Family::V4 => "net.bridge.bridge-nf-call-iptables",
            Family::V6 => "net.bridge.bridge-nf-call-ip6tables",
        };
        is_on.then(|| {
            Finding::warning(
                ABOUT,
                format!(
                    "{setting}=1: {} packets of pods on {bridges} pass the rules before they reach the node's \
                     IP layer, and Services do not work for these pods; the agent sets it to 0 where it may",
                    family_name(*family)
                ),
                format!("set {setting}=0 for good"),
            )
        })
    };
    let mut findings: Vec<Finding> = facts.bridge_rules.iter().filter_map(caught).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(ABOUT, format!("packets of pods on {bridges} reach the IP layer first")));
    }
    findings
}

fn forwarding(facts: &Facts) -> Finding {
    const ABOUT: &str = "forwarding";
    let off: Vec<Family> =
        facts.forwarding.iter().filter(|(_, is_on)| !is_on).map(|(family, _)| *family).collect();
    if off.is_empty() {
        return Finding::ok(ABOUT, "is on");
    }
    let families = names(off.iter().map(|family| family_name(*family)));
    let settings = names(off.iter().map(|family| match family {
        Family::V4 => "net.ipv4.ip_forward=1",
        Family::V6 => "net.ipv6.conf.all.forwarding=1",
    }));
    Finding::warning(
        ABOUT,
        format!("is off for {families}: pods of this node reach nothing outside of it, and are not reached"),
        format!("set {settings} where pods have addresses of that family"),
    )
}

/// The rule that accepts relayed packets.
fn allowing(hook: Hook) -> String {
    let (mask, mark) = hook.mark();
    let chain = hook.name().to_uppercase();
    format!(
        "meta mark & {mask:#x} == {mark:#x} accept; with iptables and ip6tables: -I {chain} -m mark --mark \
         {mark:#x}/{mask:#x} -j ACCEPT"
    )
}

/// Rules for load balancers' health checks of the node and of Services with a health check port. They connect
/// to plain listeners, so no packet has the mark. In mode iptables, kube-proxy accepts them by rules of its
/// own.
const HEALTH_CHECKS: &str = "tcp dport { 10256, 30000-32767 } accept; with iptables and ip6tables: -I INPUT -p tcp \
                             -m multiport --dports 10256,30000:32767 -j ACCEPT";

/// Captured packets are delivered to the agent, and relayed ones are sent by it: they pass the input and output
/// hooks, and not the forward hook as under kube-proxy.
fn firewalls(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = FIREWALL;
    let [input, output] = Hook::ALL.map(allowing);
    let mut findings = Vec::new();
    match &facts.others_chains {
        None => {}
        Some(Err(error)) => findings.push(Finding::warning(
            ABOUT,
            format!("what refuses packets to this node could not be looked for: {error}"),
            "see that nft works: nft list ruleset",
        )),
        Some(Ok(chains)) => {
            let closed_at = |hook, accepts_mark| {
                let is_one = |chain: &&ClosedChain| chain.hook == hook && chain.accepts_mark == accepts_mark;
                names(chains.closed.iter().filter(is_one).map(|chain| chain.name.as_str()))
            };
            let (to_node, of_node) = (closed_at(Hook::Input, false), closed_at(Hook::Output, false));
            if to_node.is_empty() && of_node.is_empty() {
                let mut what = "no chain of nftables refuses packets to Services by default".to_owned();
                let knowing = closed_at(Hook::Input, true);
                if !knowing.is_empty() {
                    what += &format!(
                        "; {knowing} may still refuse load balancers' health checks of nodes and Services, which need: \
                         {HEALTH_CHECKS}"
                    );
                }
                findings.push(Finding::ok(ABOUT, what));
            }
            if !to_node.is_empty() {
                findings.push(Finding::warning(
                    ABOUT,
                    format!(
                        "packets to this node that nothing allows are refused by {to_node}; those to Services are \
                         among them"
                    ),
                    format!(
                        "allow captured packets before that: {input}; and load balancers' health checks, where there \
                         are load balancers: {HEALTH_CHECKS}"
                    ),
                ));
            }
            if !of_node.is_empty() {
                findings.push(Finding::warning(
                    ABOUT,
                    format!(
                        "packets of this node's processes that nothing allows are refused by {of_node}; what is \
                         relayed is among them, and no connection that is tracked"
                    ),
                    format!("allow what is relayed before that: {output}"),
                ));
            }
        }
    }
    findings.extend(facts.legacy_tables.iter().map(|(program, tables)| {
        Finding::warning(
            ABOUT,
            format!(
                "tables of {program} ({tables}) were not looked at, and may refuse packets to Services, or enforce \
                 network policies that do not see these"
            ),
            format!(
                "see {program}-save: if INPUT refuses by default, it needs the rule for captured packets: {input}; \
                 and OUTPUT: {output}; policies in FORWARD (chains cali-FORWARD, KUBE-ROUTER-FORWARD, WEAVE-NPC) are as docs/migrate.md says"
            ),
        )
    }));
    findings
}

/// Captured packets end at the agent, whose own packets leave by the output hook: policies at the forward hook
/// see neither.
fn policies(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = POLICIES;
    let Some(Ok(chains)) = &facts.others_chains else { return Vec::new() };
    if chains.enforcers.is_empty() {
        return vec![Finding::ok(
            ABOUT,
            "no chain of nftables is known to enforce any where packets are forwarded",
        )];
    }
    let finding = |enforcer: &Enforcer| {
        let Enforcer { name, chain, has_policies } = enforcer;
        let mend = "do not rely on these policies for traffic to Services, or do not run the agent here: see what \
                    docs/migrate.md says of CNIs; with --capture socket they see what it translates";
        if *has_policies {
            let what = format!(
                "{name} enforces some for pods of this node ({chain}): what is relayed to a Service does not pass \
                 there, so they neither allow nor deny it"
            );
            Finding::problem(ABOUT, what, mend)
        } else {
            let what = format!(
                "{name} would enforce them where relayed traffic does not pass ({chain}); there are none for pods of \
                 this node now"
            );
            Finding::warning(ABOUT, what, mend)
        }
    };
    chains.enforcers.iter().map(finding).collect()
}

/// Left by kube-proxy's iptables mode, which needs it to serve nodePorts on 127.0.0.1. (CVE-2020-8558.)
fn localnet(facts: &Facts) -> Option<Finding> {
    let open = names(facts.interfaces.iter().filter(|i| i.route_localnet).map(|i| i.name.as_str()));
    (!open.is_empty()).then(|| {
        Finding::warning(
            "localnet",
            format!(
                "route_localnet=1 on {open}: neighbours can reach what listens on 127.0.0.1 (CVE-2020-8558)"
            ),
            "set net.ipv4.conf.INTERFACE.route_localnet=0 on each of these; only kube-proxy needs it",
        )
    })
}
