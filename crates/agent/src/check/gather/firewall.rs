//! Finds others' chains that decide about packets, by nft's listing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::facts::{ClosedChain, Hook, OthersChains};
use super::nft::nft;
use super::policies;

/// The agent's own table.
const OWN_TABLE: &str = "sluice";

/// Others' chains that packets to Services pass, or do not pass although somebody relies on it.
///
/// # Errors
/// The reason why they cannot be listed.
pub(super) fn chains() -> Result<OthersChains, String> {
    let listing = parse(&nft(&["--json", "list", "chains"], "")?)?;
    let enforcers = policies::enforcers(items(&listing));
    let mut closed = Vec::new();
    for (family, table) in tables(&listing) {
        let listing = nft(&["--json", "--terse", "list", "table", &family, &table], "")?;
        closed.extend(Table(items(&parse(&listing)?)).closed_chains());
    }
    Ok(OthersChains { closed, enforcers })
}

fn parse(listing: &str) -> Result<Value, String> {
    serde_json::from_str(listing).map_err(|error| format!("what nft prints is not understood: {error}"))
}

fn items(listing: &Value) -> &[Value] {
    listing["nftables"].as_array().map_or(&[], Vec::as_slice)
}

/// The hook of a chain, if it is one that matters.
fn hook(chain: &Value) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| chain["hook"] == hook.name())
}

/// Family and name of others' tables with filter chains at one of these hooks.
fn tables(listing: &Value) -> BTreeSet<(String, String)> {
    let chains = items(listing).iter().map(|item| &item["chain"]);
    let filters =
        chains.filter(|chain| hook(chain).is_some() && chain["type"] != "nat" && chain["table"] != OWN_TABLE);
    filters
        .filter_map(|chain| Some((chain["family"].as_str()?.to_owned(), chain["table"].as_str()?.to_owned())))
        .collect()
}

/// What happens to a packet that matches no condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Refused,
    /// It continues after the rule that led here, or the policy decides.
    Back,
}

/// The deepest chain of calls that is followed; the kernel allows 16.
const DEPTH: usize = 16;

/// The listing of one table.
struct Table<'a>(&'a [Value]);

impl<'a> Table<'a> {
    /// Chains that drop what they do not accept.
    fn closed_chains(&self) -> Vec<ClosedChain> {
        let chains = self.0.iter().map(|item| &item["chain"]).filter(|chain| chain["type"] != "nat");
        let closed = chains.filter_map(|chain| {
            let hook = hook(chain)?;
            let [family, table, name] = ["family", "table", "name"].map(|key| chain[key].as_str());
            let name = name?;
            let is_closed = match self.end(name, DEPTH) {
                End::Refused => true,
                End::Accepted => false,
                End::Back => chain["policy"] == "drop",
            };
            let path = format!("{} {} {name}", family?, table?);
            is_closed.then(|| ClosedChain { hook, name: path, accepts_mark: self.accepts_mark(name, hook) })
        });
        closed.collect()
    }

    /// The expressions of each rule of a chain.
    fn rules(&self, chain: &str) -> impl Iterator<Item = &'a [Value]> {
        let rules = self.0.iter().map(|item| &item["rule"]).filter(move |rule| rule["chain"] == chain);
        rules.filter_map(|rule| Some(rule["expr"].as_array()?.as_slice()))
    }

    fn end(&self, chain: &str, depth: usize) -> End {
        for rule in self.rules(chain) {
            let Some(last) = rule.last().filter(|_| is_unconditional(rule)) else { continue };
            if last.get("accept").is_some() || is_target(last, &["ACCEPT"]) {
                return End::Accepted;
            }
            if last.get("drop").is_some()
                || last.get("reject").is_some()
                || is_target(last, &["DROP", "REJECT"])
            {
                return End::Refused;
            }
            if last.get("return").is_some() {
                return End::Back;
            }
            let (jump, goto) = (last["jump"]["target"].as_str(), last["goto"]["target"].as_str());
            if let Some(target) = jump.or(goto).filter(|_| depth > 0) {
                let end = self.end(target, depth - 1);
                if end != End::Back || goto.is_some() {
                    return end;
                }
            }
        }
        End::Back
    }

    /// Whether a rule of a chain, or of one that it leads to, accepts relayed packets.
    fn accepts_mark(&self, chain: &'a str, hook: Hook) -> bool {
        let mut seen = BTreeSet::new();
        let mut left = vec![chain];
        while let Some(chain) = left.pop() {
            if !seen.insert(chain) {
                continue;
            }
            for rule in self.rules(chain) {
                if is_rule_for_mark(rule, hook) {
                    return true;
                }
                rule.iter().for_each(|expression| targets(expression, &mut left));
            }
        }
        false
    }
}

/// Whether nothing before a rule's verdict depends on the packet.
fn is_unconditional(rule: &[Value]) -> bool {
    let Some((_, before)) = rule.split_last() else { return false };
    before.iter().all(|expression| {
        // iptables-nft stores matches that nft cannot express as xt.
        let is_comment = expression["xt"]["type"] == "match" && expression["xt"]["name"] == "comment";
        is_comment || expression.get("counter").is_some() || expression.get("log").is_some()
    })
}

fn is_target(expression: &Value, names: &[&str]) -> bool {
    let xt = &expression["xt"];
    xt["type"] == "target" && xt["name"].as_str().is_some_and(|name| names.contains(&name))
}

/// Whether a rule is `meta mark & 0x30 == 0x10 accept`, or its counterpart at another hook.
fn is_rule_for_mark(rule: &[Value], hook: Hook) -> bool {
    let (mask, mark) = hook.mark();
    let is_match = |expression: &Value| {
        let by_mark = &expression["match"];
        let masked = &by_mark["left"]["&"];
        by_mark["op"] == "=="
            && masked[0]["meta"]["key"] == "mark"
            && masked[1] == mask
            && by_mark["right"] == mark
    };
    rule.iter().any(is_match) && rule.last().is_some_and(|last| last.get("accept").is_some())
}

/// Collects the chains to which an expression may lead, including those in verdict maps.
fn targets<'a>(expression: &'a Value, chains: &mut Vec<&'a str>) {
    match expression {
        Value::Array(values) => values.iter().for_each(|value| targets(value, chains)),
        Value::Object(map) => {
            for (key, value) in map {
                match value["target"].as_str().filter(|_| matches!(key.as_str(), "jump" | "goto")) {
                    Some(chain) => chains.push(chain),
                    None => targets(value, chains),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_others_that_have_a_say() {
        let listing = r#"{"nftables": [{"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "nat", "name": "OUTPUT", "type": "nat", "hook": "output", "policy": "accept"}},
            {"chain": {"family": "ip6", "table": "ufw", "name": "OUTPUT", "type": "filter", "hook": "output", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "sluice", "name": "guard", "type": "filter", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_INPUT", "type": "filter", "hook": "input", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "docker", "name": "DOCKER"}}]}"#;
        let wanted = [("inet", "firewalld"), ("ip", "filter"), ("ip6", "ufw")]
            .map(|(f, t)| (f.to_owned(), t.to_owned()));
        assert_eq!(tables(&parse(listing).unwrap()), wanted.into());
        assert!(parse("nothing").is_err());
    }

    /// Each is a chain and its expressions.
    type Rules<'a> = &'a [(&'a str, &'a str)];

    /// Whether the chain `input` of a table with this policy accepts the mark, if it is closed.
    fn judged(policy: &str, rules: Rules<'_>) -> Option<bool> {
        judged_at(Hook::Input, policy, rules)
    }

    /// The same for a chain at another hook.
    fn judged_at(hook: Hook, policy: &str, rules: Rules<'_>) -> Option<bool> {
        let at = hook.name();
        let mut listing = vec![format!(
            r#"{{"chain": {{"family": "ip", "table": "t", "name": "input", "type": "filter", "hook": "{at}",
                "policy": "{policy}"}}}}"#
        )];
        listing.extend(
            rules
                .iter()
                .map(|(chain, expr)| format!(r#"{{"rule": {{"chain": "{chain}", "expr": [{expr}]}}}}"#)),
        );
        let listing = parse(&format!(r#"{{"nftables": [{}]}}"#, listing.join(","))).unwrap();
        let closed = Table(items(&listing)).closed_chains();
        assert!(closed.iter().all(|chain| (chain.name.as_str(), chain.hook) == ("ip t input", hook)));
        closed.first().map(|chain| chain.accepts_mark)
    }

    const PORT: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp"}}, "right": 22}}"#;
    const MARK: &str =
        r#"{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 48]}, "right": 16}}"#;
    const OTHER_MARK: &str =
        r#"{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 32768]}, "right": 32768}}"#;
    const COUNTER: &str = r#"{"counter": {"packets": 0, "bytes": 0}}"#;
    const DROP: &str = r#"{"drop": null}"#;
    const ACCEPT: &str = r#"{"accept": null}"#;
    const REJECT: &str = r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#;
    const XT_REJECT: &str =
        r#"{"xt": {"type": "match", "name": "comment"}}, {"xt": {"type": "target", "name": "REJECT"}}"#;
    const XT_DROP_SOME: &str =
        r#"{"xt": {"type": "match", "name": "conntrack"}}, {"xt": {"type": "target", "name": "DROP"}}"#;
    const LIMIT: &str = r#"{"limit": {"rate": 1, "per": "second"}}"#;
    const JUMP: &str = r#"{"jump": {"target": "more"}}"#;
    const GOTO: &str = r#"{"goto": {"target": "more"}}"#;
    const RETURN: &str = r#"{"return": null}"#;
    const VMAP: &str = r#"{"vmap": {"key": {"ct": {"key": "state"}},
        "data": {"set": [["new", {"jump": {"target": "more"}}]]}}}"#;

    #[test]
    fn which_chains_are_closed() {
        let after = |expressions: &[&str]| expressions.join(",");
        let all_but_counted = after(&[COUNTER, DROP]);
        #[rustfmt::skip]
        let cases: [(&str, &str, Rules<'_>, bool); 15] = [
            ("an open one",               "accept", &[], false),
            ("by policy",                 "drop",   &[], true),
            ("one port is refused",       "accept", &[("input", &after(&[PORT, DROP]))], false),
            ("so many are refused",       "accept", &[("input", &after(&[LIMIT, DROP]))], false),
            ("the last rule drops",       "accept", &[("input", &after(&[PORT, ACCEPT])), ("input", &all_but_counted)], true),
            ("the last rule rejects",     "accept", &[("input", REJECT)], true),
            ("iptables rejects",          "accept", &[("input", XT_REJECT)], true),
            ("iptables drops some",       "accept", &[("input", XT_DROP_SOME)], false),
            ("all are accepted before",   "drop",   &[("input", ACCEPT), ("input", DROP)], false),
            ("another chain drops",       "accept", &[("input", JUMP), ("more", DROP)], true),
            ("another chain returns",     "accept", &[("input", JUMP), ("more", RETURN), ("more", DROP)], false),
            ("it goes on after a jump",   "accept", &[("input", JUMP), ("input", DROP)], true),
            ("it does not after a goto",  "accept", &[("input", GOTO), ("input", DROP)], false),
            ("some go where it drops",    "accept", &[("input", &after(&[PORT, JUMP])), ("more", DROP)], false),
            ("in circles",                "accept", &[("input", JUMP), ("more", JUMP)], false),
        ];
        for (name, policy, rules, wanted) in cases {
            assert_eq!(judged(policy, rules).is_some(), wanted, "{name}");
        }
    }

    #[test]
    fn which_closed_chains_accept_the_mark() {
        let accept = |expression: &str| format!("{expression}, {COUNTER}, {ACCEPT}");
        let (mark, other) = (accept(MARK), accept(OTHER_MARK));
        #[rustfmt::skip]
        let cases: [(&str, Rules<'_>, bool); 6] = [
            ("no rule",                  &[], false),
            ("the rule",                 &[("input", &accept(PORT)), ("input", &mark)], true),
            ("another mark",             &[("input", &other)], false),
            ("it is dropped",            &[("input", &format!("{MARK}, {DROP}"))], false),
            ("in a chain that it meets", &[("input", VMAP), ("more", &mark)], true),
            ("in one that it does not",  &[("more", &mark)], false),
        ];
        for (name, rules, wanted) in cases {
            assert_eq!(judged("drop", rules), Some(wanted), "{name}");
        }
        const SENT: &str =
            r#"{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 65519]}, "right": 32}}"#;
        for (name, mark, wanted) in
            [("the mark of what comes in", &mark, false), ("its own", &accept(SENT), true)]
        {
            assert_eq!(judged_at(Hook::Output, "drop", &[("input", mark)]), Some(wanted), "{name}");
        }
    }
}
