//! Log lines about kube-proxy's settings that have no effect, and about the one whose absence has another
//! effect here.

use super::table::Meaning;

/// A setting that was given, and why it has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// The name as written: a flag with dashes, or a field.
    pub name: String,
    pub meaning: Meaning,
}

/// One line about all of them; `None` if there are none.
pub(super) fn line(named: &[Named]) -> Option<String> {
    let mut classes = [
        ("without meaning here", Vec::new()),
        ("to be had in another way", Vec::new()),
        ("not offered", Vec::new()),
    ];
    // Settings with the same reason together, in the order in which they were given.
    for Named { name, meaning } in named {
        let (class, why) = match *meaning {
            Meaning::Meaningless(why) => (0, why),
            Meaning::Elsewhere(how) => (1, how),
            Meaning::NotOffered(why) => (2, why),
            Meaning::As(_) | Meaning::Mode | Meaning::BindAddress => continue,
        };
        let reasons: &mut Vec<(&str, Vec<&str>)> = &mut classes[class].1;
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => reasons.push((why, vec![name])),
        }
    }
    let mut said = Vec::new();
    for (class, reasons) in classes.iter().filter(|(_, reasons)| !reasons.is_empty()) {
        let reasons: Vec<_> =
            reasons.iter().map(|(why, names)| format!("{} ({why})", names.join(", "))).collect();
        said.push(format!("{class}: {}", reasons.join(", ")));
    }
    (!said.is_empty()).then(|| format!("settings of kube-proxy's that have no effect: {}", said.join("; ")))
}

/// What to log if nobody has set the addresses of nodePorts: in this mode, kube-proxy uses all. `None` in the
/// mode in which it uses the same addresses as the agent.
pub(super) fn node_ports(mode: &str) -> Option<String> {
    let (mode, loopback) = match mode {
        "nftables" => return None,
        "" | "iptables" => (
            "iptables",
            "; on 127.0.0.1, where it does unless localhostNodePorts is false, they are not served at all",
        ),
        other => (other, ""),
    };
    Some(format!(
        "nodePorts are served on the first addresses of the Node object only, and health check node ports answer there only, as \
         nodePortAddresses is not set: kube-proxy in mode {mode} has both on all of the node's. --nodeport-addresses=all (nodePortAddresses: [all]) does so here, \
         =primary says that it is meant as it is{loopback}"
    ))
}
