//! The tables' structure: their sets, maps, chains and rules. It depends on the configuration only, never on
//! Services, which are elements. No I/O.
//!
//! `ruleset.nft` has the rules and the reasons for them. A packet's way, in short: `prerouting` looks its
//! destination up, marks it as captured, and hands it to the socket that listens for clients of its origin;
//! the policy rule for the mark has it delivered on this node. A packet of the node's own processes is
//! looked up and marked in `output`, routed again to the loopback interface, and comes back in through
//! `prerouting`. Endpoints answer to the client's address where a worker has used it; such answers are found
//! by their socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::marks::{CAPTURED, DOWNSTREAM, MASK, UPSTREAM};
use super::{Config, LocalPods};

/// The tables' name.
pub(super) const TABLE: &str = "sluice";

/// The family of the table that captures.
pub(super) const INET: &str = "inet";

/// The family of the one that turns answers on bridges to us.
pub(super) const BRIDGE: &str = "bridge";

/// How the comment of each table of an agent begins.
pub(super) const SIGNATURE: &str = "Kubernetes Services. Sluice ";

/// The structure.
#[derive(Debug)]
pub(super) struct Ruleset {
    family: &'static str,
    text: String,
    comment: String,
    shape: Shape,
}

/// What of a structure a listing shows, whatever the version of nft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// The names of sets and maps.
    pub sets: BTreeSet<String>,
    /// The names of chains.
    pub chains: BTreeMap<String, ChainShape>,
}

/// What of a chain a listing shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChainShape {
    /// Type, hook and priority, where packets come in.
    pub hook: Option<(String, String, i32)>,
    /// The comment of each rule.
    pub rules: Vec<Option<String>>,
}

impl Ruleset {
    /// The table that captures, for a configuration.
    pub(super) fn inet(config: &Config) -> Self {
        Self::new(INET, include_str!("ruleset.nft"), config)
    }

    /// The table that turns answers on bridges to us, for a configuration.
    pub(super) fn bridge(config: &Config) -> Self {
        Self::new(BRIDGE, include_str!("bridge.nft"), config)
    }

    fn new(family: &'static str, template: &str, config: &Config) -> Self {
        let mut text = String::new();
        for line in template.lines() {
            if !matches!(line.trim_start().as_bytes(), [] | [b'#', ..]) {
                fill_in(line, config, &mut text);
            }
        }
        let comment = format!(
            "{SIGNATURE}{} keeps it: edits are undone. Structure {:016x}",
            env!("CARGO_PKG_VERSION"),
            fnv1a(&text)
        );
        let shape = Shape::of(&text);
        Self { family, text, comment, shape }
    }

    /// The commands that put the table, without elements, in the place of whatever is there.
    pub(super) fn definition(&self) -> String {
        let Self { family, text, comment, .. } = self;
        // Deleting what does not exist is an error, adding what exists is not.
        format!(
            "add table {family} {TABLE}\ndelete table {family} {TABLE}\n\
             table {family} {TABLE} {{\n\tcomment \"{comment}\"\n{text}}}\n"
        )
    }

    /// The table's family.
    pub(super) fn family(&self) -> &'static str {
        self.family
    }

    /// The table's comment: another one for each structure.
    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// What a listing is to show.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }
}

impl Shape {
    fn of(text: &str) -> Self {
        let mut shape = Self::default();
        let mut inside: Option<(String, ChainShape)> = None;
        for line in text.lines().map(str::trim) {
            let mut words = line.split([' ', ';']);
            match (words.next(), &mut inside) {
                (Some("map" | "set"), None) => {
                    shape.sets.extend(words.next().map(str::to_owned));
                }
                (Some("chain"), None) => {
                    inside = words.next().map(|name| (name.to_owned(), ChainShape::default()));
                }
                (Some("}"), _) => shape.chains.extend(inside.take()),
                (Some("type"), Some((_, chain))) => {
                    let words: Vec<&str> = words.collect();
                    if let [kind, "hook", hook, "priority", priority, ..] = words[..] {
                        let priority = priority.parse().unwrap_or_default();
                        chain.hook = Some((kind.to_owned(), hook.to_owned(), priority));
                    }
                }
                (Some(word), Some((_, chain))) if word != "comment" => {
                    chain.rules.push(comment(line).map(str::to_owned));
                }
                _ => {}
            }
        }
        shape
    }
}

/// What a line says in `comment "..."`.
fn comment(line: &str) -> Option<&str> {
    line.split_once("comment \"")?.1.split_once('"').map(|(comment, _)| comment)
}

/// Writes a line of the template as often as is needed.
fn fill_in(line: &str, config: &Config, text: &mut String) {
    let notrack = if config.track { "" } else { "notrack " };
    if config.track && line.trim_start().starts_with("$notrack comment") {
        return;
    }
    let ports = [config.ports.outside, config.ports.local_pod, config.ports.node];
    let [outside, pod, node] = ports.map(|port| port.to_string());
    // Longer names first where one begins like another.
    let values = [
        ("$notrack ", notrack),
        ("$outside_port", &outside),
        ("$pod_port", &pod),
        ("$node_port", &node),
        ("$captured", &hex(CAPTURED)),
        ("$downstream", &hex(DOWNSTREAM)),
        ("$upstream", &hex(UPSTREAM)),
        ("$others", &hex(!MASK)),
        ("$mask", &hex(MASK)),
        ("$ports", &format!("{{ {outside}, {pod}, {node} }}")),
    ];
    let line = replace(line, &values);
    for line in match line.split_once("$pods") {
        None => vec![line],
        Some((before, after)) => local_pods(config).map(|pods| format!("{before}{pods}{after}")).collect(),
    } {
        if line.contains('$') {
            for (ip, n, address, loopback, listen) in [
                ("ip", "4", "ipv4_addr", "127.0.0.1", "127.0.0.1"),
                ("ip6", "6", "ipv6_addr", "::1", "[::1]"),
            ] {
                let values = [
                    ("$ip", ip),
                    ("$n", n),
                    ("$address", address),
                    ("$loopback", loopback),
                    ("$listen", listen),
                ];
                let _ = writeln!(text, "{}", replace(&line, &values));
            }
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
}

/// What matches packets of pods that count as this node's.
fn local_pods(config: &Config) -> impl Iterator<Item = String> {
    let matches = match &config.local_pods {
        LocalPods::None => None,
        LocalPods::Cidrs(_) | LocalPods::NodeCidrs => Some("$ip saddr @local_pods$n".to_owned()),
        LocalPods::Interface { pattern } => Some(format!("iifname \"{pattern}\"")),
    };
    matches.into_iter()
}

fn replace(line: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(line.to_owned(), |line, (name, value)| line.replace(name, value))
}

fn hex(mark: u32) -> String {
    format!("{mark:#x}")
}

/// FNV-1a: tells structures apart, and is the same in every build.
fn fnv1a(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::super::Ports;
    use super::super::elements::{Chain, SetName};
    use super::super::script::set_name;
    use super::*;
    use sluice_model::Family;

    fn config() -> Config {
        Config {
            ports: Ports::from_first(10_265),
            local_pods: LocalPods::NodeCidrs,
            cluster_cidrs: Vec::new(),
            track: false,
            bridge_netfilter_off: false,
        }
    }

    #[test]
    fn everything_that_elements_name_is_there() {
        let ruleset = Ruleset::inet(&config());
        for chain in Chain::ALL {
            assert!(ruleset.shape.chains.contains_key(chain.name()), "{}", chain.name());
        }
        for set in SetName::ALL.into_iter().flat_map(|set| [(set, Family::V4), (set, Family::V6)]) {
            assert!(ruleset.shape.sets.contains(&set_name(set)), "{}", set_name(set));
        }
    }

    #[test]
    fn every_placeholder_is_filled_in_and_every_comment_fits() {
        // NFTNL_UDATA_COMMENT_MAXLEN, with its final zero.
        const COMMENT_MAX: usize = 128;
        let interface = LocalPods::Interface { pattern: "veth*".to_owned() };
        for local_pods in [LocalPods::None, LocalPods::NodeCidrs, interface] {
            for track in [false, true] {
                let ruleset = Ruleset::inet(&Config { local_pods: local_pods.clone(), track, ..config() });
                assert!(!ruleset.text.contains('$'), "{}", ruleset.text);
                for line in ruleset.definition().lines() {
                    assert!(comment(line).unwrap_or_default().len() < COMMENT_MAX, "{line}");
                }
                assert_eq!(ruleset.text.contains("notrack"), !track);
            }
        }
    }

    #[test]
    fn the_way_to_tell_pods_is_in_the_rules() {
        let rules = |local_pods: LocalPods| Ruleset::inet(&Config { local_pods, ..config() }).text;
        let by_address = rules(LocalPods::Cidrs(Vec::new()));
        assert!(by_address.contains("ip6 saddr @local_pods6 goto deliver_pod"), "{by_address}");
        assert_eq!(by_address, rules(LocalPods::NodeCidrs), "which addresses is a matter of elements");
        let by_interface = rules(LocalPods::Interface { pattern: "veth*".to_owned() });
        assert_eq!(by_interface.matches("iifname \"veth*\" goto").count(), 2, "{by_interface}");
        assert!(!by_interface.contains("@local_pods"), "{by_interface}");
        assert!(!rules(LocalPods::None).contains("goto deliver_pod"));
    }

    #[test]
    fn another_structure_has_another_comment() {
        let comments: BTreeSet<String> = [
            config(),
            Config { track: true, ..config() },
            Config { ports: Ports::from_first(10_266), ..config() },
            Config { local_pods: LocalPods::None, ..config() },
        ]
        .iter()
        .map(|config| Ruleset::inet(config).comment)
        .collect();
        assert_eq!(comments.len(), 4);
        assert_eq!(Ruleset::inet(&config()).comment, Ruleset::inet(&config()).comment);
    }

    #[test]
    fn the_shape_of_a_structure() {
        let text = "\tset a4 { type ipv4_addr; comment \"a\"; }\n\tchain b {\n\t\tcomment \"b\"\n\
                    \t\ttype filter hook prerouting priority -300; policy accept;\n\t\tdrop\n\
                    \t\taccept comment \"c\"\n\t}\n\tchain d {\n\t}\n";
        let hook = Some(("filter".to_owned(), "prerouting".to_owned(), -300));
        let rules = vec![None, Some("c".to_owned())];
        let chains = [("b".to_owned(), ChainShape { hook, rules }), ("d".to_owned(), ChainShape::default())];
        assert_eq!(Shape::of(text), Shape { sets: ["a4".to_owned()].into(), chains: chains.into() });
    }
}
