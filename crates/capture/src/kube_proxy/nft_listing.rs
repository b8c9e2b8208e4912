//! Parses `nft --json`: tables, and the chains and jumps of those that iptables-nft maintains.

use serde::Deserialize;
use serde::de::IgnoredAny;
use sluice_model::Family;

use super::chains::{Chain, Removal, Rule, Table};
use super::{Backend, nft_family};

#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

/// One field is set; none if it is another kind of object.
#[derive(Debug, Deserialize)]
struct Item {
    table: Option<TableItem>,
    chain: Option<ChainItem>,
    rule: Option<RuleItem>,
}

#[derive(Debug, Deserialize)]
struct TableItem {
    family: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct ChainItem {
    name: String,
    hook: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct RuleItem {
    chain: String,
    handle: u64,
    #[serde(default)]
    expr: Vec<Expression>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Expression {
    Jump { jump: Target },
    Goto { goto: Target },
    Other(IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Target {
    target: String,
}

/// The tables of IPv4 and IPv6 of `nft --json list tables`.
///
/// # Errors
/// The output is not nft's.
pub(super) fn tables(json: &[u8]) -> serde_json::Result<Vec<(Family, String)>> {
    let listing: Listing = serde_json::from_slice(json)?;
    let families = [Family::V4, Family::V6];
    let known = listing.nftables.into_iter().filter_map(|item| {
        let table = item.table?;
        let family = families.into_iter().find(|family| nft_family(*family) == table.family)?;
        Some((family, table.name))
    });
    Ok(known.collect())
}

/// The table of `nft --json list table`.
///
/// # Errors
/// The output is not nft's.
pub(super) fn table(json: &[u8], family: Family, name: &str) -> serde_json::Result<Table> {
    let listing: Listing = serde_json::from_slice(json)?;
    let mut table =
        Table { backend: Backend::Nft, family, name: name.to_owned(), chains: Vec::new(), rules: Vec::new() };
    for item in listing.nftables {
        if let Some(ChainItem { name, hook }) = item.chain {
            table.chains.push(Chain { name, is_base: hook.is_some() });
        }
        if let Some(RuleItem { chain, handle, expr }) = item.rule {
            let target = expr.into_iter().find_map(|expression| match expression {
                Expression::Jump { jump: target } | Expression::Goto { goto: target } => Some(target.target),
                Expression::Other(_) => None,
            });
            table.rules.extend(target.map(|target| Rule { chain, target, id: handle.to_string() }));
        }
    }
    Ok(table)
}

/// The input for nft that removes this; empty if there is nothing to remove.
pub(super) fn script(table: &Table, removal: &Removal<'_>) -> String {
    let at = format!("{} {}", nft_family(table.family), table.name);
    let unlink =
        removal.rules.iter().map(|rule| format!("delete rule {at} {} handle {}\n", rule.chain, rule.id));
    let flush = removal.chains.iter().map(|chain| format!("flush chain {at} {chain}\n"));
    let delete = removal.chains.iter().map(|chain| format!("delete chain {at} {chain}\n"));
    unlink.chain(flush).chain(delete).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        {"table": {"family": "ip6", "name": "kube-proxy", "handle": 2}},
        {"table": {"family": "inet", "name": "sluice", "handle": 3}},
        {"table": {"family": "bridge", "name": "filter", "handle": 4}}]}"#;

    const NAT: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        {"chain": {"family": "ip", "table": "nat", "name": "KUBE-SERVICES", "handle": 1}},
        {"chain": {"family": "ip", "table": "nat", "name": "KUBE-SVC-A", "handle": 9}},
        {"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "handle": 2, "type": "nat",
                   "hook": "prerouting", "prio": -100, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "nat", "chain": "KUBE-SERVICES", "handle": 5, "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}},
            {"xt": {"type": "match", "name": "comment"}}, {"jump": {"target": "KUBE-SVC-A"}}]}},
        {"rule": {"family": "ip", "table": "nat", "chain": "KUBE-SVC-A", "handle": 6, "expr": [
            {"xt": {"type": "target", "name": "DNAT"}}, {"drop": null}, "odd", {"xt": null}]}},
        {"rule": {"family": "ip", "table": "nat", "chain": "PREROUTING", "handle": 3, "expr": [
            {"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": "KUBE-SERVICES"}}]}},
        {"rule": {"family": "ip", "table": "nat", "chain": "PREROUTING", "handle": 4, "expr": [
            {"goto": {"target": "DOCKER"}}]}}]}"#;

    #[test]
    fn tables_of_the_two_families() {
        let wanted = [(Family::V4, "nat".to_owned()), (Family::V6, "kube-proxy".to_owned())];
        assert_eq!(tables(TABLES.as_bytes()).unwrap(), wanted);
        assert!(tables(br#"{"nftables": []}"#).unwrap().is_empty());
        assert!(tables(b"").is_err());
    }

    #[test]
    fn from_a_listing_to_what_removes_it() {
        let nat = table(NAT.as_bytes(), Family::V4, "nat").unwrap();
        assert_eq!(nat.rules.len(), 3, "{:?}", nat.rules);
        assert_eq!(
            script(&nat, &nat.removal()),
            "delete rule ip nat PREROUTING handle 3\n\
             flush chain ip nat KUBE-SERVICES\nflush chain ip nat KUBE-SVC-A\n\
             delete chain ip nat KUBE-SERVICES\ndelete chain ip nat KUBE-SVC-A\n"
        );
    }
}
