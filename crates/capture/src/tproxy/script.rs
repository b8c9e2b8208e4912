//! Writes nft's input: a transaction as text. No I/O.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::elements::{Delta, Edit, Elements, Key, Place, Value, difference};
use super::ruleset::TABLE;

/// The whole table with its elements: the commands for its structure, then the changes from the elements that
/// are there to the wanted ones.
pub(super) fn whole(structure: String, there: &Elements, elements: &Elements) -> String {
    structure + &edits(&difference(there, elements), elements)
}

/// Changes elements; `elements` are those after the change.
pub(super) fn edits(delta: &Delta, elements: &Elements) -> String {
    let mut script = String::new();
    let deleted = delta.iter().filter(|(_, edit)| !matches!(edit, Edit::Add(_)));
    write_commands(&mut script, "delete", deleted.map(|(key, _)| (key, None)));
    let added = delta.iter().filter_map(|(key, edit)| match edit {
        Edit::Add(value) | Edit::Replace(value) => Some((key, Some(*value))),
        Edit::Delete => None,
    });
    write_commands(&mut script, "add", added);
    let places: BTreeSet<Place> = delta.keys().map(Key::place).filter(is_rules).collect();
    for place in &places {
        let _ = writeln!(script, "flush chain inet {TABLE} {place}");
    }
    write_rules(&mut script, elements.keys().filter(|key| places.contains(&key.place())));
    script
}

/// Whether the changes affect rules.
pub(super) fn changes_rules(delta: &Delta) -> bool {
    delta.keys().map(Key::place).any(|place| is_rules(&place))
}

fn is_rules(place: &Place) -> bool {
    matches!(place, Place::Rules(..))
}

/// Writes rules. Each has its own key as its comment, which identifies it in a listing.
fn write_rules<'a>(script: &mut String, keys: impl Iterator<Item = &'a Key>) {
    for key in keys.filter(|key| is_rules(&key.place())) {
        let _ = writeln!(script, "add rule inet {TABLE} {} {key} comment \"{key}\"", key.place());
    }
}

/// One command for each run of elements of the same set.
fn write_commands<'a>(
    script: &mut String,
    verb: &str,
    elements: impl Iterator<Item = (&'a Key, Option<Value>)>,
) {
    let mut open = None;
    for (key, value) in elements.filter(|(key, _)| !is_rules(&key.place())) {
        let set = key.place();
        if open == Some(set) {
            script.push_str(", ");
        } else {
            if open.is_some() {
                script.push_str(" }\n");
            }
            let _ = write!(script, "{verb} element inet {TABLE} {set} {{ ");
            open = Some(set);
        }
        let _ = match value {
            Some(Value::Goto(chain)) => write!(script, "{key} : goto {}", chain.name()),
            Some(Value::Member) | None => write!(script, "{key}"),
        };
    }
    if open.is_some() {
        script.push_str(" }\n");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use sluice_model::{Frontend, Protocol};

    use super::*;
    use crate::tproxy::elements::Chain;

    fn elements(ports: &[(u16, Chain)], cluster_ips: &[&str]) -> Elements {
        let ip: IpAddr = "fd00::1".parse().unwrap();
        let frontends = ports.iter().map(|(port, chain)| {
            (Key::Frontend(Frontend::new(ip, *port, Protocol::Udp)), Value::Goto(*chain))
        });
        let ips = cluster_ips.iter().map(|ip| (Key::ClusterIp(ip.parse().unwrap()), Value::Member));
        frontends.chain(ips).collect()
    }

    #[test]
    fn a_difference_is_one_command_for_each_set_and_verb() {
        use Chain::{Refuse, Relay};
        let before = elements(&[(1, Relay), (2, Relay), (3, Refuse), (4, Relay)], &["10.0.0.1", "fd00::1"]);
        let after = elements(&[(2, Refuse), (3, Refuse), (4, Refuse), (5, Relay)], &["10.0.0.2", "fd00::1"]);
        let delta = difference(&before, &after);
        assert_eq!(
            edits(&delta, &after),
            "delete element inet sluice frontends6 \
             { fd00::1 . udp . 1, fd00::1 . udp . 2, fd00::1 . udp . 4 }\n\
             delete element inet sluice cluster_ips4 { 10.0.0.1 }\n\
             add element inet sluice frontends6 \
             { fd00::1 . udp . 2 : goto refuse, fd00::1 . udp . 4 : goto refuse, fd00::1 . udp . 5 : goto relay }\n\
             add element inet sluice cluster_ips4 { 10.0.0.2 }\n"
        );
        assert_eq!(edits(&difference(&after, &after), &after), "");
    }

    #[test]
    fn a_chain_of_networks_is_written_as_a_whole() {
        let networks = |keys: &[Key]| keys.iter().map(|key| (*key, Value::Member)).collect::<Elements>();
        let net = |text: &str| text.parse().unwrap();
        let to_pods = Key::ToPods(net("10.244.0.0/16"));
        let before = networks(&[to_pods, Key::FromPods(net("10.244.0.0/16")), Key::ToPods(net("fd00::/64"))]);
        let after =
            networks(&[to_pods, Key::FromPods(net("10.244.0.0/16")), Key::ToOthers(net("10.244.0.1/32"))]);
        let delta = difference(&before, &after);
        assert!(changes_rules(&delta) && !changes_rules(&difference(&after, &after)));
        assert_eq!(
            edits(&delta, &after),
            "flush chain inet sluice to_pods4\n\
             flush chain inet sluice to_pods6\n\
             add rule inet sluice to_pods4 ip daddr 10.244.0.1/32 return comment \"ip daddr 10.244.0.1/32 return\"\n\
             add rule inet sluice to_pods4 ip daddr 10.244.0.0/16 goto between_pods comment \"ip daddr 10.244.0.0/16 goto between_pods\"\n"
        );
    }
}
