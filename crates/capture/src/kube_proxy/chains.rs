//! iptables: identifies kube-proxy's chains, and how to remove them from a table.

use std::collections::{BTreeMap, HashMap, HashSet};

use sluice_model::Family;

use super::Backend;

/// The tables of iptables that kube-proxy has chains in.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains with fixed names, of the iptables mode and of the IPVS mode. (`iptables/proxier.go`,
/// `ipvs/proxier.go`: `iptablesCleanupChains`.)
const NAMES: [&str; 15] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Prefixes of chains of one Service or endpoint; a hash follows. (`isServiceChainName`.)
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Marks packets that [`MASQUERADE`] then masquerades. CNI plugins may use it too (portmap: `externalSetMarkChain`).
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";

/// Whether a chain is kube-proxy's. These are kubelet's: `KUBE-FIREWALL`, `KUBE-MARK-DROP`,
/// `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    let is_hash =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.strip_prefix(prefix).is_some_and(is_hash))
}

/// A table of iptables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub backend: Backend,
    pub family: Family,
    pub name: String,
    pub chains: Vec<Chain>,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: String,
    /// Packets enter it from a hook (`PREROUTING`), not from a rule.
    pub is_base: bool,
}

/// A rule that leads to another chain; others do not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub chain: String,
    pub target: String,
    /// Identifies the rule: its handle in nftables, otherwise the whole rule without the chain.
    pub id: String,
}

/// The parts to remove from a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Removal<'a> {
    /// Rules of chains that stay.
    pub rules: Vec<&'a Rule>,
    /// Chains, with all of their rules.
    pub chains: Vec<&'a str>,
    /// Chains of kube-proxy that somebody else uses, with the chain that uses them.
    pub kept: BTreeMap<&'a str, &'a str>,
}

impl Table {
    /// The chains and rules of kube-proxy that can be removed.
    pub(super) fn removal(&self) -> Removal<'_> {
        let named = |chains: fn(&Chain) -> bool| -> HashSet<&str> {
            self.chains.iter().filter(|chain| chains(chain)).map(|chain| chain.name.as_str()).collect()
        };
        let candidates = named(|chain| !chain.is_base && is_kube_proxys(&chain.name));
        let bases = named(|chain| chain.is_base);
        let is_candidate = |chain: &str| candidates.contains(chain);

        // A jump from a base chain to a chain of kube-proxy's is kube-proxy's own rule; from another chain,
        // somebody else's.
        let is_others = |rule: &&Rule| !is_candidate(&rule.chain) && !bases.contains(rule.chain.as_str());
        let mut kept = BTreeMap::new();
        let mut needed: Vec<(&str, &str)> = self
            .rules
            .iter()
            .filter(is_others)
            .map(|rule| (rule.target.as_str(), rule.chain.as_str()))
            .collect();
        // A chain that is kept needs the chains that it leads to, and users of the mark need it to be masqueraded.
        let mut leads_to: HashMap<&str, Vec<&str>> = HashMap::new();
        for rule in &self.rules {
            leads_to.entry(&rule.chain).or_default().push(&rule.target);
        }
        while let Some((chain, user)) = needed.pop() {
            if !is_candidate(chain) || kept.contains_key(chain) {
                continue;
            }
            kept.insert(chain, user);
            needed.extend(leads_to.get(chain).into_iter().flatten().map(|target| (*target, chain)));
            needed.extend((chain == MARK).then_some((MASQUERADE, user)));
        }
        let goes = |chain: &str| is_candidate(chain) && !kept.contains_key(chain);
        let rules = self.rules.iter().filter(|rule| goes(&rule.target) && !goes(&rule.chain)).collect();
        let chains =
            self.chains.iter().map(|chain| chain.name.as_str()).filter(|chain| goes(chain)).collect();
        Removal { rules, chains, kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_chains_are_kube_proxys() {
        #[rustfmt::skip]
        let cases = [
            ("KUBE-SERVICES", true),
            ("KUBE-SVC-V2OKYYMBY3REGZOG", true),
            ("KUBE-SEP-ZP3FB6NMPNCO4VBJ", true),
            ("KUBE-XLB-V2OKYYMBY3REGZOG", true),
            ("KUBE-NODE-PORT", true),
            ("KUBE-PROXY-CANARY", true),
            ("KUBE-FIREWALL", false),
            ("KUBE-MARK-DROP", false),
            ("KUBE-KUBELET-CANARY", false),
            ("KUBE-IPTABLES-HINT", false),
            ("KUBE-SVC-", false),
            ("KUBE-SVC-lower", false),
            ("KUBE-SVC-A; flush ruleset", false),
            ("KUBE-SERVICES-OF-MINE", false),
            ("KUBE-ROUTER-INPUT", false),
            ("PREROUTING", false),
            ("", false),
        ];
        for (chain, wanted) in cases {
            assert_eq!(is_kube_proxys(chain), wanted, "{chain}");
        }
    }

    /// A table from `CHAIN>TARGET` words; chains without a dash are base chains.
    fn table(words: &str) -> Table {
        let mut chains: Vec<Chain> = Vec::new();
        let mut rules = Vec::new();
        for word in words.split_whitespace() {
            for name in word.split('>') {
                if !chains.iter().any(|chain| chain.name == name) {
                    chains.push(Chain { name: name.to_owned(), is_base: !name.contains('-') });
                }
            }
            if let Some((chain, target)) = word.split_once('>') {
                let (chain, target) = (chain.to_owned(), target.to_owned());
                rules.push(Rule { chain, target, id: rules.len().to_string() });
            }
        }
        Table { backend: Backend::Nft, family: Family::V4, name: "nat".to_owned(), chains, rules }
    }

    /// Name; the table; removed rules, removed chains, kept chains.
    type Case = (&'static str, &'static str, &'static str, &'static str, &'static str);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("nothing there", "PREROUTING>DOCKER-A DOCKER-A>DOCKER-B", "", "", ""),
        ("chains that lead to each other go with their rules",
         "PREROUTING>KUBE-SERVICES KUBE-SERVICES>KUBE-SVC-A KUBE-SVC-A>KUBE-SEP-A KUBE-SEP-A>KUBE-MARK-MASQ",
         "PREROUTING>KUBE-SERVICES", "KUBE-SERVICES KUBE-SVC-A KUBE-SEP-A KUBE-MARK-MASQ", ""),
        ("every jump goes, the same one twice too",
         "PREROUTING>KUBE-SERVICES OUTPUT>KUBE-SERVICES OUTPUT>KUBE-SERVICES",
         "PREROUTING>KUBE-SERVICES OUTPUT>KUBE-SERVICES OUTPUT>KUBE-SERVICES", "KUBE-SERVICES", ""),
        ("others' rules and kubelet's stay",
         "INPUT>KUBE-FIREWALL INPUT>KUBE-NODEPORTS INPUT>CNI-X CNI-X KUBE-KUBELET-CANARY",
         "INPUT>KUBE-NODEPORTS", "KUBE-NODEPORTS", ""),
        ("a chain without a rule",
         "KUBE-PROXY-CANARY", "", "KUBE-PROXY-CANARY", ""),
        ("the mark that a CNI plugin uses stays, and what acts on it",
         "PREROUTING>KUBE-SERVICES KUBE-SERVICES>KUBE-MARK-MASQ CNI-SETMARK>KUBE-MARK-MASQ POSTROUTING>KUBE-POSTROUTING",
         "PREROUTING>KUBE-SERVICES", "KUBE-SERVICES", "KUBE-MARK-MASQ<CNI-SETMARK KUBE-POSTROUTING<CNI-SETMARK"),
        ("what is kept keeps what it needs",
         "OTHER-X>KUBE-SVC-A KUBE-SVC-A>KUBE-SEP-A KUBE-SVC-B>KUBE-SEP-B",
         "", "KUBE-SVC-B KUBE-SEP-B", "KUBE-SEP-A<KUBE-SVC-A KUBE-SVC-A<OTHER-X"),
        ("a circle ends",
         "OTHER-X>KUBE-SVC-A KUBE-SVC-A>KUBE-SVC-B KUBE-SVC-B>KUBE-SVC-A",
         "", "", "KUBE-SVC-A<OTHER-X KUBE-SVC-B<KUBE-SVC-A"),
    ];

    #[test]
    fn cases() {
        for (name, words, rules, chains, kept) in CASES {
            let table = table(words);
            let removal = table.removal();
            let gone: Vec<_> = removal.rules.iter().map(|r| format!("{}>{}", r.chain, r.target)).collect();
            assert_eq!(gone.join(" "), *rules, "{name}: rules");
            assert_eq!(removal.chains.join(" "), *chains, "{name}: chains");
            let stays: Vec<_> = removal.kept.iter().map(|(chain, user)| format!("{chain}<{user}")).collect();
            assert_eq!(stays.join(" "), *kept, "{name}: kept");
        }
    }
}
