//! Recognises programs that enforce network policies at the forward hook, by the names of chains. Packets to
//! Services do not pass there.

use serde_json::Value;

use super::super::facts::Enforcer;

/// The prefixes of chains that a program has wherever it runs, and of those for policies that select pods of
/// this node.
struct Known {
    name: &'static str,
    chain: &'static str,
    policies: &'static [&'static str],
}

const KNOWN: [Known; 3] = [
    Known { name: "Calico", chain: "cali-FORWARD", policies: &["cali-pi-", "cali-po-"] },
    Known { name: "kube-router", chain: "KUBE-ROUTER-FORWARD", policies: &["KUBE-NWPLCY-"] },
    Known { name: "Weave Net", chain: "WEAVE-NPC", policies: &["WEAVE-NPC-INGRESS", "WEAVE-NPC-EGRESS"] },
];

/// kube-router's chain for pods that no policy selects.
const NO_POLICY: &str = "KUBE-NWPLCY-DEFAULT";

/// The programs whose chains are in nft's listing.
pub(super) fn enforcers(items: &[Value]) -> Vec<Enforcer> {
    let chains: Vec<(&str, &str, &str)> = items.iter().filter_map(|item| named(&item["chain"])).collect();
    let enforcer = |known: &Known| {
        let (family, table, chain) = chains.iter().find(|(.., chain)| own_name(chain) == known.chain)?;
        let is_policy =
            |chain: &str| chain != NO_POLICY && known.policies.iter().any(|prefix| chain.starts_with(prefix));
        Some(Enforcer {
            name: known.name,
            chain: format!("{family} {table} {chain}"),
            has_policies: chains.iter().any(|(.., chain)| is_policy(own_name(chain))),
        })
    };
    KNOWN.iter().filter_map(enforcer).collect()
}

fn named(chain: &Value) -> Option<(&str, &str, &str)> {
    Some((chain["family"].as_str()?, chain["table"].as_str()?, chain["name"].as_str()?))
}

/// Calico's nftables mode has one table, and chains are prefixed with the names of iptables' tables.
fn own_name(chain: &str) -> &str {
    chain.strip_prefix("filter-").unwrap_or(chain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Tables with chains, and the programs to be found: name, chain, whether there are policies.
    type Case = (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str, bool)]);

    #[test]
    fn who_enforces_policies() {
        #[rustfmt::skip]
        let cases: [Case; 9] = [
            (&[], &[]),
            (&[("filter", "FORWARD"), ("filter", "DOCKER-USER"), ("filter", "KUBE-FORWARD")], &[]),
            (&[("filter", "cali-FORWARD"), ("filter", "cali-pri-kns.default")], &[("Calico", "ip filter cali-FORWARD", false)]),
            (&[("filter", "cali-FORWARD"), ("filter", "cali-pi-_Pyr2KyLC3z4TW9IH9kv")], &[("Calico", "ip filter cali-FORWARD", true)]),
            (&[("filter", "cali-FORWARD"), ("filter", "cali-po-default.deny")], &[("Calico", "ip filter cali-FORWARD", true)]),
            (&[("calico", "filter-cali-FORWARD"), ("calico", "filter-cali-pi-gnp")], &[("Calico", "ip calico filter-cali-FORWARD", true)]),
            (&[("filter", "KUBE-ROUTER-FORWARD"), ("filter", "KUBE-NWPLCY-DEFAULT")], &[("kube-router", "ip filter KUBE-ROUTER-FORWARD", false)]),
            (&[("filter", "KUBE-ROUTER-FORWARD"), ("filter", "KUBE-NWPLCY-2UTXQIFBI5TAPUCL")], &[("kube-router", "ip filter KUBE-ROUTER-FORWARD", true)]),
            (&[("filter", "WEAVE-NPC"), ("filter", "WEAVE-NPC-INGRESS")], &[("Weave Net", "ip filter WEAVE-NPC", true)]),
        ];
        for (chains, wanted) in cases {
            let chain = |(table, name): &(&str, &str)| json!({ "chain": { "family": "ip", "table": table, "name": name } });
            let items: Vec<Value> = chains.iter().map(chain).chain([json!({ "metainfo": {} })]).collect();
            let found = enforcers(&items);
            let found: Vec<_> = found.iter().map(|f| (f.name, f.chain.as_str(), f.has_policies)).collect();
            assert_eq!(found, wanted, "{chains:?}");
        }
    }
}
