//! Judges kube-proxy: whether it runs, and what it has left.

use super::super::facts::Facts;
use super::super::finding::Finding;
use crate::running::{self, Sign};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = running(facts);
    findings.extend(node_ports(facts));
    findings.extend(leftovers(facts));
    findings
}

fn running(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "kube-proxy";
    if facts.kube_proxy.is_empty() {
        return vec![if facts.sees_all_processes {
            Finding::ok(ABOUT, "does not run")
        } else {
            Finding::warning(
                ABOUT,
                "does not answer on its port, but its process could not be seen from in here",
                "run this with hostPID, or see that kube-proxy is stopped",
            )
        }];
    }
    // If so, the answer on the metrics port may come from that one.
    let is_inside = facts.kube_proxy.iter().any(|sign| !sign.is_certain());
    let found = |sign: &Sign| match sign {
        Sign::Inside(process) => Finding::warning(
            ABOUT,
            format!(
                "{} (process {}) may have one inside, which would catch the same packets",
                process.name, process.id
            ),
            format!("{}, unless it is off", running::DISABLE),
        ),
        Sign::Process(_) | Sign::Answers { .. } => Finding::problem(
            ABOUT,
            format!("it runs ({sign}) and catches the same packets"),
            format!("stop it: {}", if is_inside { running::DISABLE } else { running::STOP }),
        ),
    };
    facts.kube_proxy.iter().map(found).collect()
}

/// Where kube-proxy's mode serves nodePorts on all addresses by default, and an agent does not.
fn node_ports(facts: &Facts) -> Option<Finding> {
    let mode = facts.kube_proxy.iter().find_map(|sign| match sign {
        Sign::Answers { mode } if mode != "nftables" => Some(mode),
        _ => None,
    })?;
    let loopback = if mode == "iptables" { ", and on 127.0.0.1" } else { "" };
    let what = format!(
        "kube-proxy in mode {mode} serves them on all addresses of the node{loopback}, unless told otherwise, and its health \
         check node ports answer there; the agent serves both on the first addresses of the Node object"
    );
    let mend = "give the agent --nodeport-addresses=all where clients use other addresses; on 127.0.0.1 there are none";
    Some(Finding::warning("nodePorts", what, mend))
}

/// The subject of findings about what kube-proxy has left.
pub(super) const LEFTOVERS: &str = "rules of kube-proxy";

pub(super) fn leftovers(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = LEFTOVERS;
    let found = match &facts.leftovers {
        Ok(found) => found,
        Err(_) if !facts.capabilities.net_admin => return Vec::new(),
        Err(error) => {
            let what = format!("could not be looked for: {error}");
            return vec![Finding::warning(ABOUT, what, "see that nft works: nft list ruleset")];
        }
    };
    let traces = found.traces.iter().map(|trace| {
        let mend = "sluice cleanup --kube-proxy, once kube-proxy is stopped";
        Finding::problem(ABOUT, format!("{trace}, which go on catching packets"), mend)
    });
    let unseen =
        found.unseen.iter().map(|unseen| Finding::warning(ABOUT, unseen, "see that there is nothing of it"));
    let findings: Vec<Finding> = traces.chain(unseen).collect();
    if findings.is_empty() { vec![Finding::ok(ABOUT, "none")] } else { findings }
}
