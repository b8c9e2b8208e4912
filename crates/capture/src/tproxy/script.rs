//! What nft is told: a transaction as text. No I/O.

use std::fmt::Write;

use sluice_model::Family;

use super::elements::{Delta, Edit, Elements, Key, SetName, Value};
use super::ruleset::TABLE;

/// The name of a set or map in the table.
pub(super) fn set_name(set: (SetName, Family)) -> String {
    let digit = match set.1 {
        Family::V4 => '4',
        Family::V6 => '6',
    };
    format!("{}{digit}", set.0.stem())
}

/// The whole table, elements and all: what writes its structure, and the elements.
pub(super) fn whole(structure: String, elements: &Elements) -> String {
    let added = elements.iter().map(|(key, value)| (key.set(), element(key, *value)));
    let mut script = structure;
    write_commands(&mut script, "add", added);
    script
}

/// Changes elements.
pub(super) fn edits(delta: &Delta) -> String {
    let mut script = String::new();
    let deleted = delta.iter().filter(|(_, edit)| !matches!(edit, Edit::Add(_)));
    write_commands(&mut script, "delete", deleted.map(|(key, _)| (key.set(), key.to_string())));
    let added = delta.iter().filter_map(|(key, edit)| match edit {
        Edit::Add(value) | Edit::Replace(value) => Some((key.set(), element(key, *value))),
        Edit::Delete => None,
    });
    write_commands(&mut script, "add", added);
    script
}

fn element(key: &Key, value: Value) -> String {
    match value {
        Value::Goto(chain) => format!("{key} : goto {}", chain.name()),
        Value::Member => key.to_string(),
    }
}

/// One command for each run of elements of the same set.
fn write_commands(
    script: &mut String,
    verb: &str,
    elements: impl Iterator<Item = ((SetName, Family), String)>,
) {
    let mut open = None;
    for (set, element) in elements {
        if open == Some(set) {
            script.push_str(", ");
        } else {
            if open.is_some() {
                script.push_str(" }\n");
            }
            let _ = write!(script, "{verb} element inet {TABLE} {} {{ ", set_name(set));
            open = Some(set);
        }
        script.push_str(&element);
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
    use crate::tproxy::elements::{Chain, difference};

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
            edits(&delta),
            "delete element inet sluice frontends6 \
             { fd00::1 . udp . 1, fd00::1 . udp . 2, fd00::1 . udp . 4 }\n\
             delete element inet sluice cluster_ips4 { 10.0.0.1 }\n\
             add element inet sluice frontends6 \
             { fd00::1 . udp . 2 : goto refuse, fd00::1 . udp . 4 : goto refuse, fd00::1 . udp . 5 : goto relay }\n\
             add element inet sluice cluster_ips4 { 10.0.0.2 }\n"
        );
        assert_eq!(edits(&difference(&after, &after)), "");
    }
}
