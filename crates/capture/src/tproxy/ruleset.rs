//! The tables' structure: their sets, maps, chains and rules. It depends on the configuration only, never on
//! Services, which are elements. No I/O.
//!
//! `ruleset.nft` and `output.nft` have the rules and the reasons for them. A packet's way, in short:
//! `prerouting` looks up its destination, marks it as captured, and assigns it to the socket that listens for
//! clients of its origin; the policy rule for the mark delivers it on this node. A packet of the node's own
//! processes is looked up and marked in `output`, routed again to the loopback interface, and comes back in
//! through `prerouting`. Endpoints answer to the client's address if a worker has used it; such answers are
//! found by their socket.
//!
//! Entries that packets have added to sets outlive a table that is written anew, as the connections do that they
//! describe.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::marks::{CAPTURED, DOWNSTREAM, MASK, UPSTREAM, WHOSE};
use super::{Config, LocalPods, lifetimes};

/// The tables' name.
pub(super) const TABLE: &str = "sluice";

/// The family of the table that captures.
pub(super) const INET: &str = "inet";

/// The family of the table that redirects answers on bridges to us.
pub(super) const BRIDGE: &str = "bridge";

/// The prefix of the comment that identifies a structure. It is a chain's comment: a table keeps its own until
/// it is deleted.
pub(super) const SIGNATURE: &str = "Kubernetes Services. Sluice ";

/// The chain with that comment. It has no rules.
pub(super) const STRUCTURE: &str = "structure";

/// The comment of each table.
pub(super) const TABLE_COMMENT: &str = "Sluice keeps it: edits are undone";

/// The structure.
#[derive(Debug)]
pub(super) struct Ruleset {
    family: &'static str,
    text: String,
    comment: String,
    shape: Shape,
}

/// The parts of a structure that a listing shows with any version of nft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// The names of sets and maps.
    pub sets: BTreeSet<String>,
    /// The names of chains.
    pub chains: BTreeMap<String, ChainShape>,
}

/// The parts of a chain that a listing shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChainShape {
    /// Type, hook and priority of a base chain.
    pub hook: Option<(String, String, i32)>,
    /// The comment of each rule.
    pub rules: Vec<Option<String>>,
}

impl Ruleset {
    /// The table that captures, by configuration.
    pub(super) fn inet(config: &Config) -> Self {
        Self::new(INET, concat!(include_str!("ruleset.nft"), include_str!("output.nft")), config)
    }

    /// The table that redirects answers on bridges to us, by configuration.
    pub(super) fn bridge(config: &Config) -> Self {
        Self::new(BRIDGE, include_str!("bridge.nft"), config)
    }

    fn new(family: &'static str, template: &str, config: &Config) -> Self {
        let mut text = String::new();
        let lines = template.lines().filter(|line| !matches!(line.trim_start().as_bytes(), [] | [b'#', ..]));
        let lines = lines.filter_map(|line| with_conntrack(line, config.asks_conntrack));
        let mut chain: Option<Vec<&str>> = None;
        for line in lines {
            // A chain of one family is written once for each family, as a whole.
            match &mut chain {
                Some(lines) => lines.push(line),
                None if line.trim_start().starts_with("chain ") && line.contains("$n ") => {
                    chain = Some(vec![line]);
                }
                None => fill_in(line, config, &FAMILIES, &mut text),
            }
            if line.trim() == "}" {
                for family in FAMILIES {
                    chain.iter().flatten().for_each(|line| fill_in(line, config, &[family], &mut text));
                }
                chain = None;
            }
        }
        let comment = format!("{SIGNATURE}{}, structure {:016x}", env!("CARGO_PKG_VERSION"), fnv1a(&text));
        let _ = writeln!(text, "\tchain {STRUCTURE} {{\n\t\tcomment \"{comment}\"\n\t}}");
        let shape = Shape::of(&text);
        Self { family, text, comment, shape }
    }

    /// The commands that replace any existing table with this one, without elements.
    pub(super) fn definition(&self) -> String {
        let family = self.family;
        // Deleting an object that does not exist is an error, adding one that exists is not.
        format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n{}", self.creation())
    }

    /// The commands that create the missing parts.
    pub(super) fn creation(&self) -> String {
        let Self { family, text, .. } = self;
        format!("table {family} {TABLE} {{\n\tcomment \"{TABLE_COMMENT}\"\n{text}}}\n")
    }

    /// The table's family.
    pub(super) fn family(&self) -> &'static str {
        self.family
    }

    /// Its sets, chains and rules.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The comment, which differs between structures.
    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// The wanted shape of a listing.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }
}

impl Shape {
    /// The differences from the wanted structure, for people.
    pub(super) fn differences<'a>(&'a self, wanted: &'a Self) -> impl Iterator<Item = String> + 'a {
        let sets = [(&self.sets, &wanted.sets, "is not known"), (&wanted.sets, &self.sets, "is missing")];
        let sets = sets.into_iter().flat_map(|(some, others, what)| {
            some.difference(others).map(move |name| format!("the set {name} {what}"))
        });
        let names: BTreeSet<&String> = self.chains.keys().chain(wanted.chains.keys()).collect();
        let chains = names.into_iter().filter_map(|name| {
            let what = match (self.chains.get(name), wanted.chains.get(name)) {
                (None, _) => "is missing".to_owned(),
                (_, None) => "is not known".to_owned(),
                (Some(chain), Some(wanted)) if chain.hook != wanted.hook => "is hooked elsewhere".to_owned(),
                (Some(chain), Some(wanted)) if chain.rules.len() != wanted.rules.len() => {
                    format!("has {} rules and not {}", chain.rules.len(), wanted.rules.len())
                }
                (Some(chain), Some(wanted)) if chain != wanted => "has other rules".to_owned(),
                _ => return None,
            };
            Some(format!("the chain {name} {what}"))
        });
        sets.chain(chains)
    }

    /// The shape of a table in this notation, or in nft's listing with numeric priorities.
    pub(super) fn of(text: &str) -> Self {
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

/// The text in a line's `comment "..."`.
pub(super) fn comment(line: &str) -> Option<&str> {
    line.split_once("comment \"")?.1.split_once('"').map(|(comment, _)| comment)
}

/// The words of a template that depend on the address family.
type FamilyWords = [(&'static str, &'static str); 10];

const FAMILIES: [FamilyWords; 2] = [
    [
        ("$ip", "ip"),
        ("$n", "4"),
        ("$address", "ipv4_addr"),
        ("$loopback", "127.0.0.1"),
        ("$listen", "127.0.0.1"),
        ("$icmp", "icmp"),
        // After eight bytes of ICMP and the quoted header, which has no options because we sent it.
        ("$quoted_ports", "@th,224,32"),
        ("$fragment", "ip frag-off & 0x3fff != 0"),
        ("$first", "ip frag-off & 0x1fff == 0"),
        ("$later", "ip frag-off & 0x1fff != 0"),
    ],
    [
        ("$ip", "ip6"),
        ("$n", "6"),
        ("$address", "ipv6_addr"),
        ("$loopback", "::1"),
        ("$listen", "[::1]"),
        ("$icmp", "icmpv6"),
        ("$quoted_ports", "@th,384,32"),
        ("$fragment", "exthdr frag exists"),
        ("$first", "frag frag-off 0"),
        ("$later", "frag frag-off != 0"),
    ],
];

/// A line of the template without its $ct or $no_ct; `None` if that excludes it.
fn with_conntrack(line: &str, asks_conntrack: bool) -> Option<&str> {
    match (line.trim_start().split_once(' '), asks_conntrack) {
        (Some(("$ct", line)), true) | (Some(("$no_ct", line)), false) => Some(line),
        (Some(("$ct" | "$no_ct", _)), _) => None,
        _ => Some(line),
    }
}

/// Writes a line of the template as often as needed.
fn fill_in(line: &str, config: &Config, families: &[FamilyWords], text: &mut String) {
    let notrack = if config.track { "" } else { "notrack " };
    let is_void = line.trim_start().starts_with("$notrack comment") || line.contains("$established");
    if config.track && is_void {
        return;
    }
    let ports = [config.ports.outside, config.ports.local_pod, config.ports.node];
    let [outside, pod, node] = ports.map(|port| port.to_string());
    // Longer names first, because one may be a prefix of another.
    let values = [
        ("$notrack ", notrack),
        ("$established", "ct state established"),
        ("$outside_port", &outside),
        ("$pod_port", &pod),
        ("$node_port", &node),
        ("$ephemeral", &format!("{}-{}", config.pod_ports.start(), config.pod_ports.end())),
        ("$captured", &hex(CAPTURED)),
        ("$downstream", &hex(DOWNSTREAM)),
        ("$upstream", &hex(UPSTREAM)),
        ("$either", &hex(!(DOWNSTREAM ^ UPSTREAM))),
        ("$whose", &hex(WHOSE)),
        ("$others", &hex(!MASK)),
        ("$mask", &hex(MASK)),
        ("$flags", "@th,104,8"),
        ("$ports", &format!("{{ {outside}, {pod}, {node} }}")),
        ("$there", "$ip saddr . meta l4proto . th sport . $ip daddr . th dport"),
        ("$back", "$ip daddr . meta l4proto . th dport . $ip saddr . th sport"),
    ];
    let lifetimes = lifetimes::values(config.flow_idle);
    let lifetimes: Vec<(&str, &str)> =
        lifetimes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let line = replace(&replace(line, &values), &lifetimes);
    for line in match line.split_once("$pods") {
        None => vec![line],
        Some((before, after)) => local_pods(config).map(|pods| format!("{before}{pods}{after}")).collect(),
    } {
        if line.contains('$') {
            for words in families {
                let _ = writeln!(text, "{}", replace(&line, words));
            }
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
}

/// The matches for packets of pods that count as this node's.
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

/// FNV-1a: identifies structures, and is the same in every build.
fn fnv1a(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::elements::{Chain, NetworkChain, Place, SetName};
    use super::super::{FlowIdle, Ports};
    use super::*;
    use sluice_model::Family;

    pub(in super::super) fn config() -> Config {
        Config {
            ports: Ports::from_first(10_265),
            local_pods: LocalPods::NodeCidrs,
            cluster_cidrs: Vec::new(),
            track: false,
            asks_conntrack: false,
            bridge_netfilter_off: false,
            pod_ports: 32_768..=60_999,
            flow_idle: FlowIdle { any: Duration::from_secs(30), conversation: Duration::from_secs(120) },
        }
    }

    #[test]
    fn everything_that_elements_name_is_there() {
        let ruleset = Ruleset::inet(&config());
        for chain in Chain::ALL {
            assert!(ruleset.shape.chains.contains_key(chain.name()), "{}", chain.name());
        }
        for family in [Family::V4, Family::V6] {
            for set in SetName::ALL.map(|set| Place::Set(set, family).to_string()) {
                assert!(ruleset.shape.sets.contains(&set), "{set}");
            }
            for chain in NetworkChain::ALL.map(|chain| Place::Rules(chain, family).to_string()) {
                assert!(
                    ruleset.shape.chains.get(&chain).is_some_and(|chain| chain.rules.is_empty()),
                    "{chain}"
                );
            }
        }
    }

    #[test]
    fn every_placeholder_is_filled_in_and_every_comment_fits() {
        // NFTNL_UDATA_COMMENT_MAXLEN, including the terminating zero.
        const COMMENT_MAX: usize = 128;
        let interface = LocalPods::Interface { pattern: "veth*".to_owned() };
        for local_pods in [LocalPods::None, LocalPods::NodeCidrs, interface] {
            for (track, asks_conntrack) in [(false, false), (false, true), (true, false), (true, true)] {
                let config = Config { local_pods: local_pods.clone(), track, asks_conntrack, ..config() };
                let (inet, bridge) = (Ruleset::inet(&config), Ruleset::bridge(&config));
                for ruleset in [&inet, &bridge] {
                    assert!(!ruleset.text.contains('$'), "{}", ruleset.text);
                    for line in ruleset.definition().lines() {
                        assert!(comment(line).unwrap_or_default().len() < COMMENT_MAX, "{line}");
                    }
                }
                assert_eq!(inet.text.contains("notrack"), !track);
                assert_eq!(inet.text.contains("ct state established"), asks_conntrack && !track);
                assert_eq!(inet.text.contains(" ct "), asks_conntrack);
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
            Config { flow_idle: FlowIdle { any: Duration::from_secs(60), ..config().flow_idle }, ..config() },
        ]
        .iter()
        .map(|config| Ruleset::inet(config).comment)
        .collect();
        assert_eq!(comments.len(), 5);
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
