//! Replaces an existing table with one of another structure, in one transaction, while packets are in its rules.
//! No I/O.
//!
//! A packet that is in the old rules goes on in them, but looks up elements in their new state: in a deleted map
//! it finds none, even if another one of that name is created. And a chain that is deleted and created is hooked
//! twice for a moment, or not at all. So chains that exist before and after stay, and only their rules are
//! replaced. Sets stay, too, and the difference of their elements is written.
//!
//! A set that packets fill stays even if its size changes: listing and rewriting its elements takes nft seconds,
//! while packets go on adding some. Linux 6.5 and newer change the size in place; on older kernels it stays
//! until the node restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::ruleset::{Ruleset, STRUCTURE, Shape, TABLE, TABLE_COMMENT, comment};

/// Which sets and maps stay if their definition is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Only those that packets fill.
    Dynamic,
    /// All of them: the elements are known, and their difference is written.
    All,
}

/// Sets and maps, with nft's description of each except its comment.
type Sets = BTreeMap<String, BTreeSet<String>>;

/// The commands that replace an existing table, as nft lists it without elements. `None` if it cannot be
/// converted into ours.
pub(super) fn succession(ruleset: &Ruleset, listed: &str, keep: Keep) -> Option<String> {
    let family = ruleset.family();
    let mut lines = listed.lines();
    // A different comment means that the table is not ours.
    let is_ours = lines.nth(1).is_some_and(|line| comment(line) == Some(TABLE_COMMENT));
    if !is_ours {
        return None;
    }
    let kept = kept(ruleset, listed, keep);
    // All rules go first, because they use sets and chains. So do elements of maps, which go before the chains.
    let mut script = format!("flush table {family} {TABLE}\n");
    for kind in ["set", "map"] {
        for name in names(kind, listed).filter(|name| !kept.contains(*name)) {
            let _ = writeln!(script, "delete {kind} {family} {TABLE} {name}");
        }
    }
    let (there, wanted) = (Shape::of(listed), ruleset.shape());
    // A chain that stays keeps its comment.
    let stays = |name: &str| {
        name != STRUCTURE
            && there
                .chains
                .get(name)
                .zip(wanted.chains.get(name))
                .is_some_and(|(there, wanted)| there.hook == wanted.hook)
    };
    for name in names("chain", listed).filter(|name| !stays(name)) {
        let _ = writeln!(script, "delete chain {family} {TABLE} {name}");
    }
    script.push_str(&ruleset.creation());
    Some(script)
}

/// The sets and maps that stay, with their elements.
pub(super) fn kept(ruleset: &Ruleset, listed: &str, keep: Keep) -> BTreeSet<String> {
    let (mut there, wanted) = (sets(listed), sets(ruleset.text()));
    there.retain(|name, set| match wanted.get(name) {
        Some(wanted) if is_dynamic(set) => but_for_size(set).eq(but_for_size(wanted)),
        Some(wanted) => set == wanted && keep == Keep::All,
        None => false,
    });
    there.into_keys().collect()
}

/// The names of a table's sets, maps or chains, as nft lists them.
fn names<'a>(kind: &'a str, listed: &'a str) -> impl Iterator<Item = &'a str> {
    listed.lines().filter_map(move |line| {
        line.strip_prefix('\t')?.strip_prefix(kind)?.strip_prefix(' ')?.split_once(' ').map(|(name, _)| name)
    })
}

/// The sets and maps of a table, from nft's listing or from our text, each on one line.
fn sets(table: &str) -> Sets {
    let mut sets = Sets::new();
    let mut lines = table.lines();
    while let Some(line) = lines.next() {
        let begins = ["\tset ", "\tmap "].iter().find_map(|kind| line.strip_prefix(kind)?.split_once(" {"));
        let Some((name, rest)) = begins else { continue };
        let more: Vec<&str> = match rest {
            "" => lines.by_ref().take_while(|line| *line != "\t}").collect(),
            _ => rest.split(';').collect(),
        };
        let is_known = |statement: &&str| {
            ["type ", "size ", "flags ", "timeout "].iter().any(|word| statement.starts_with(word))
        };
        let statements: BTreeSet<String> =
            more.into_iter().map(str::trim).filter(is_known).map(str::to_owned).collect();
        sets.insert(name.to_owned(), statements);
    }
    sets
}

/// Whether packets fill the set.
fn is_dynamic(set: &BTreeSet<String>) -> bool {
    set.iter().any(|statement| statement.starts_with("flags dynamic"))
}

/// Nft's description of a set without its size.
fn but_for_size(set: &BTreeSet<String>) -> impl Iterator<Item = &String> {
    set.iter().filter(|statement| !statement.starts_with("size "))
}

#[cfg(test)]
mod tests {
    use super::super::ruleset::tests::config;
    use super::*;

    const FLOWS: &str = "ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service";

    #[test]
    fn what_packets_fill_is_kept_where_it_is_the_same_but_for_its_size() {
        let ruleset = Ruleset::bridge(&config());
        let listed = |size: u32, flags: &str, comment: &str| {
            format!(
                "table bridge sluice {{\n\tcomment \"{comment}\"\n\tset answers4 {{\n\t\ttype {FLOWS}\n\t\tsize \
                 {size}\n\t\tflags {flags}\n\t\tcomment \"of old\"\n\t}}\n\n\tmap verdicts {{\n\t\ttype \
                 ipv4_addr : verdict\n\t}}\n\n\tchain old {{\n\t\tupdate @answers4 {{ 1 }}\n\t}}\n"
            )
        };
        let script =
            |size, flags, comment| succession(&ruleset, &listed(size, flags, comment), Keep::Dynamic);
        let begin = "flush table bridge sluice\n";
        let end = "delete map bridge sluice verdicts\ndelete chain bridge sluice old\ntable bridge sluice {";
        for size in [262_144, 7] {
            let same = script(size, "dynamic,timeout", TABLE_COMMENT).unwrap();
            assert!(same.starts_with(&format!("{begin}{end}")), "{size}: {same}");
        }
        let other_flags = script(262_144, "dynamic", TABLE_COMMENT).unwrap();
        let wanted = format!("{begin}delete set bridge sluice answers4\n{end}");
        assert!(other_flags.starts_with(&wanted), "{other_flags}");
        assert_eq!(script(262_144, "dynamic,timeout", "somebody's"), None);
    }

    /// An agent that replaces one of these keeps its sets only if they are the same; if a set differs, open
    /// connections are cut. So a set whose definition changes gets a new name, and the old one stays as long as
    /// connections may depend on it.
    #[test]
    fn what_packets_fill_is_what_earlier_versions_have_filled() {
        const SETS: [&str; 8] = [
            "clients_of_host_flows4: ipv4_addr . inet_proto",
            "ended_host_flows4: FLOWS",
            "ended_node_flows4: FLOWS",
            "endpoint_ports: inet_service, for good",
            "host_flows4: FLOWS",
            "node_flows4: FLOWS",
            "rejected4: ipv4_addr . ipv4_addr . mark",
            "young_host_flows4: FLOWS",
        ];
        const OF_BRIDGES: [&str; 8] = [
            "answers4: FLOWS",
            "busy4: ipv4_addr",
            "crowd4: ipv4_addr . inet_proto . inet_service . ipv4_addr",
            "ended_answers4: FLOWS",
            "pairs4: ipv4_addr . ipv4_addr",
            "ports: iface_index : ether_addr",
            "throng4: ipv4_addr . inet_proto . inet_service",
            "young_answers4: FLOWS",
        ];
        let (inet, bridge) = (Ruleset::inet(&config()), Ruleset::bridge(&config()));
        for (ruleset, wanted) in [(inet, &SETS[..]), (bridge, &OF_BRIDGES[..])] {
            let (mut v4, mut v6) = (Vec::new(), Vec::new());
            for (name, set) in sets(ruleset.text()).into_iter().filter(|(_, set)| is_dynamic(set)) {
                let said: Vec<&String> = but_for_size(&set).collect();
                let [flags, kind] = said[..] else { panic!("{name}: {said:?}") };
                let kind = kind.trim_start_matches("type ").replace("ipv6", "ipv4").replace(FLOWS, "FLOWS");
                let lasts = if flags == "flags dynamic" { ", for good" } else { "" };
                assert!(!lasts.is_empty() || flags == "flags dynamic,timeout", "{name}: {flags}");
                match name.strip_suffix('6') {
                    Some(name) => v6.push(format!("{name}4: {kind}{lasts}")),
                    None => v4.push(format!("{name}: {kind}{lasts}")),
                }
            }
            assert_eq!(v4, wanted);
            v4.retain(|set| set.contains("4: "));
            assert_eq!(v6, v4, "IPv6 has the same");
        }
    }

    #[test]
    fn what_is_hooked_elsewhere_and_maps_with_other_keys_are_made_anew() {
        let ruleset = Ruleset::inet(&config());
        let listed = format!(
            "table inet sluice {{\n\tcomment \"{TABLE_COMMENT}\"\n\tmap frontends4 {{\n\t\ttype ipv4_addr . \
             inet_proto . inet_service : verdict\n\t}}\n\n\tmap node_ports4 {{\n\t\ttype inet_service : verdict\n\t}}\
             \n\n\tset local_pods4 {{\n\t\ttype ipv4_addr\n\t\tflags interval\n\t}}\n\n\tchain prerouting {{\n\t\ttype \
             filter hook prerouting priority -300; policy accept;\n\t}}\n\n\tchain captured {{\n\t\ttype filter hook \
             prerouting priority -300; policy accept;\n\t}}\n\n\tchain relay {{\n\t}}\n\n\tchain structure {{\n\t}}\n"
        );
        let script = |keep| {
            let script = succession(&ruleset, &listed, keep).unwrap();
            let deletions = script.lines().filter_map(|line| line.strip_prefix("delete ")).map(str::to_owned);
            deletions.collect::<Vec<_>>()
        };
        let chains = ["chain inet sluice captured", "chain inet sluice structure"];
        assert_eq!(script(Keep::All), [&["map inet sluice node_ports4"][..], &chains].concat());
        let sets =
            ["set inet sluice local_pods4", "map inet sluice frontends4", "map inet sluice node_ports4"];
        assert_eq!(script(Keep::Dynamic), [&sets[..], &chains].concat());
    }
}
