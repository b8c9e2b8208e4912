//! Parses the table from `nft --json list`. No I/O.
//!
//! The table is listed without elements, and then only the sets and maps with our elements: packets add a
//! quarter of a million to others, which nft takes many seconds to list.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;
use sluice_model::{Family, Frontend, Protocol};

use super::elements::{Chain, Elements, Key, NetworkChain, Place, SetName, Value};
use super::ruleset::{ChainShape, INET, Shape, TABLE};

/// Lists the tables of the family, without elements.
pub(super) const TABLES: [&str; 5] = ["--json", "--terse", "list", "ruleset", INET];

/// Lists our table only, without elements; slower with nft 1.0.
pub(super) const OUR_TABLE: [&str; 6] = ["--json", "--terse", "list", "table", INET, TABLE];

/// A table as listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub shape: Shape,
    pub elements: Elements,
    /// Elements that cannot be ours, because no key represents them.
    pub strangers: usize,
}

#[derive(Debug, Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    nftables: Vec<Item<'a>>,
}

/// One field is set; none if it is another kind of object.
#[derive(Debug, Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    map: Option<SetItem<'a>>,
    #[serde(borrow)]
    set: Option<SetItem<'a>>,
    chain: Option<ChainItem>,
    rule: Option<RuleItem>,
}

#[derive(Debug, Deserialize)]
struct SetItem<'a> {
    table: String,
    name: String,
    #[serde(borrow, default)]
    elem: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct ChainItem {
    table: String,
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    prio: Option<i32>,
}

#[derive(Debug, Deserialize)]
struct RuleItem {
    table: String,
    chain: String,
    comment: Option<String>,
}

/// Lists each set and map with our elements.
pub(super) fn each_set() -> impl Iterator<Item = Vec<String>> {
    sets().map(|(set, family)| {
        let kind = if set.is_map() { "map" } else { "set" };
        let name = Place::Set(set, family).to_string();
        ["--json", "list", kind, INET, TABLE, &name].map(str::to_owned).into()
    })
}

/// All sets and maps with our elements.
fn sets() -> impl Iterator<Item = (SetName, Family)> {
    SetName::ALL.into_iter().flat_map(|set| [(set, Family::V4), (set, Family::V6)])
}

impl Listing {
    /// Reads nft's listing of the table, of all tables of the family, or of a set.
    ///
    /// # Errors
    /// The output is not nft's.
    pub(super) fn read(&mut self, json: &[u8]) -> serde_json::Result<()> {
        let document: Document<'_> = serde_json::from_slice(json)?;
        for Item { map, set, chain, rule } in document.nftables {
            if let Some(set) = map.or(set).filter(|set| set.table == TABLE) {
                self.take_elements(&set);
                self.shape.sets.insert(set.name);
            }
            if let Some(ChainItem { name, kind, hook, prio, .. }) = chain.filter(|chain| chain.table == TABLE)
            {
                let hook = kind.zip(hook).zip(prio).map(|((kind, hook), priority)| (kind, hook, priority));
                self.shape.chains.insert(name, ChainShape { hook, rules: Vec::new() });
            }
            if let Some(RuleItem { chain, comment, .. }) = rule.filter(|rule| rule.table == TABLE) {
                if is_of_networks(&chain) {
                    self.take_network(&chain, comment.as_deref());
                } else if let Some(chain) = self.shape.chains.get_mut(&chain) {
                    chain.rules.push(comment);
                }
            }
        }
        Ok(())
    }

    /// Reads a rule for a network. Only its comment identifies it.
    fn take_network(&mut self, chain: &str, comment: Option<&str>) {
        match comment.and_then(parse_rule).filter(|key| key.place().to_string() == chain) {
            Some(key) if self.elements.insert(key, Value::Member).is_none() => {}
            _ => self.strangers += 1,
        }
    }

    fn take_elements(&mut self, set: &SetItem<'_>) {
        let Some((name, family)) =
            sets().find(|(name, family)| Place::Set(*name, *family).to_string() == set.name)
        else {
            return;
        };
        for element in &set.elem {
            let element = serde_json::from_str(element.get()).ok();
            match element.and_then(|element: Json| parse_element(name, family, &element)) {
                Some((key, value)) => {
                    self.elements.insert(key, value);
                }
                None => self.strangers += 1,
            }
        }
    }
}

/// Whether a chain's rules are elements.
fn is_of_networks(chain: &str) -> bool {
    let families = [Family::V4, Family::V6];
    let chains = NetworkChain::ALL.into_iter().flat_map(|name| families.map(|family| (name, family)));
    chains.into_iter().any(|(name, family)| Place::Rules(name, family).to_string() == chain)
}

/// Parses the comment of a rule for a network, or for Services' addresses in networks.
fn parse_rule(rule: &str) -> Option<Key> {
    let network = rule.split(' ').nth(2).and_then(|network| network.parse().ok());
    let of_network = network
        .into_iter()
        .flat_map(|network| [Key::ToOthers(network), Key::ToPods(network), Key::FromPods(network)]);
    let of_services = sets().map(|(set, family)| Key::ToServices(set, family));
    of_network.chain(of_services).find(|key| key.to_string() == rule)
}

fn parse_element(name: SetName, family: Family, element: &Json) -> Option<(Key, Value)> {
    let (key, value) = match (name, element.as_array().map(Vec::as_slice)) {
        (SetName::Frontends | SetName::NodePorts, Some([key, verdict])) => {
            let chain = Chain::named(verdict.get("goto")?.get("target")?.as_str()?)?;
            (key, Value::Goto(chain))
        }
        _ => (element, Value::Member),
    };
    // An element with a timeout, a comment or a counter is wrapped.
    let key = key.get("elem").and_then(|wrapped| wrapped.get("val")).unwrap_or(key);
    let parts = key.get("concat").and_then(Json::as_array).map(Vec::as_slice);
    let key = match (name, parts) {
        (SetName::Frontends, Some([ip, protocol, port])) => Key::Frontend(frontend(ip, protocol, port)?),
        (SetName::NodePorts, Some([protocol, port])) => {
            Key::NodePort(family, parse_protocol(protocol)?, parse_port(port)?)
        }
        (SetName::AllowedSources, Some([ip, protocol, port, source])) => {
            Key::AllowedSource(frontend(ip, protocol, port)?, parse_cidr(source)?)
        }
        (SetName::NodeIps, None) => Key::NodeIp(parse_ip(key)?),
        (SetName::ExternalIps, None) => Key::ExternalIp(parse_ip(key)?),
        (SetName::ClusterIps, None) => Key::ClusterIp(parse_ip(key)?),
        (SetName::ServiceCidrs, None) => Key::ServiceCidr(parse_cidr(key)?),
        (SetName::LocalPods, None) => Key::LocalPods(parse_cidr(key)?),
        (SetName::Untracked, None) => Key::Untracked(parse_cidr(key)?),
        _ => return None,
    };
    Some((key, value))
}

fn frontend(ip: &Json, protocol: &Json, port: &Json) -> Option<Frontend> {
    let address = SocketAddr::new(parse_ip(ip)?, parse_port(port)?);
    Some(Frontend { address, protocol: parse_protocol(protocol)? })
}

fn parse_ip(ip: &Json) -> Option<IpAddr> {
    ip.as_str()?.parse().ok()
}

fn parse_port(port: &Json) -> Option<u16> {
    port.as_u64()?.try_into().ok()
}

/// A protocol's name or number (IANA): nft takes names from `/etc/protocols`, which an image may lack.
fn parse_protocol(protocol: &Json) -> Option<Protocol> {
    match (protocol.as_str(), protocol.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Protocol::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Protocol::Udp),
        _ => None,
    }
}

/// A range: a single address, or `{"prefix": {"addr": "10.0.0.0", "len": 8}}`.
fn parse_cidr(range: &Json) -> Option<IpNet> {
    let Some(prefix) = range.get("prefix") else { return parse_ip(range).map(IpNet::from) };
    let length = prefix.get("len")?.as_u64()?.try_into().ok()?;
    IpNet::new(parse_ip(prefix.get("addr")?)?, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Listing {
        fn parse(json: &[u8]) -> serde_json::Result<Self> {
            let mut listing = Self::default();
            listing.read(json).map(|()| listing)
        }
    }

    #[test]
    fn another_table_is_none_of_ours() {
        let json = br#"{"nftables": [
            {"set": {"family": "inet", "name": "node_ips4", "table": "filter", "handle": 7, "elem": ["10.0.0.1"]}},
            {"chain": {"family": "inet", "table": "filter", "name": "relay", "handle": 1}},
            {"rule": {"family": "inet", "table": "filter", "chain": "relay", "handle": 11, "expr": []}}]}"#;
        let listing = Listing::parse(json).unwrap();
        assert_eq!((listing.shape, listing.elements.len()), (Shape::default(), 0));
    }

    #[test]
    fn what_nft_lists() {
        let json = br#"{"nftables": [
            {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
            {"table": {"family": "inet", "name": "sluice", "handle": 1}},
            {"map": {"family": "inet", "name": "frontends4", "table": "sluice",
                "type": ["ipv4_addr", "inet_proto", "inet_service"], "handle": 4, "map": "verdict", "elem": [
                [{"concat": ["10.0.0.1", "udp", 53]}, {"goto": {"target": "refuse"}}],
                [{"concat": ["10.0.0.1", "tcp", 80]}, {"goto": {"target": "inside_only"}}]]}},
            {"map": {"family": "inet", "name": "node_ports6", "table": "sluice",
                "type": ["inet_proto", "inet_service"], "handle": 9, "map": "verdict", "elem": [
                [{"concat": ["tcp", 30080]}, {"goto": {"target": "relay"}}]]}},
            {"set": {"family": "inet", "name": "service_cidrs4", "table": "sluice", "type": "ipv4_addr",
                "handle": 5, "flags": ["interval"], "elem": [
                {"prefix": {"addr": "10.96.0.0", "len": 16}}, "10.99.0.1"]}},
            {"set": {"family": "inet", "name": "allowed_sources4", "table": "sluice", "handle": 6, "elem": [
                {"concat": ["10.0.0.1", "tcp", 80, {"prefix": {"addr": "10.0.0.0", "len": 8}}]},
                {"concat": ["10.0.0.1", "tcp", 80, "172.16.0.1"]}]}},
            {"set": {"family": "inet", "name": "cluster_ips6", "table": "sluice", "type": "ipv6_addr",
                "handle": 8, "comment": "c", "elem": ["::ffff:1.2.3.4", {"elem": {"val": "fd00::1", "timeout": 9}}]}},
            {"set": {"family": "inet", "name": "node_ips4", "table": "sluice", "handle": 7}},
            {"set": {"family": "inet", "name": "host_flows4", "table": "sluice", "handle": 7, "elem": [
                {"elem": {"val": {"concat": ["10.0.0.1", "tcp", 80, "10.0.0.1", 9]}, "expires": 9}}]}},
            {"chain": {"family": "inet", "table": "sluice", "name": "relay", "handle": 1}},
            {"chain": {"family": "inet", "table": "sluice", "name": "output", "handle": 3, "type": "route",
                "hook": "output", "prio": -300, "policy": "accept"}},
            {"rule": {"family": "inet", "table": "sluice", "chain": "relay", "handle": 11, "comment": "rule c",
                "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}},
            {"rule": {"family": "inet", "table": "sluice", "chain": "relay", "handle": 12, "expr": []}}]}"#;
        let listing = Listing::parse(json).unwrap();
        let elements: Vec<String> =
            listing.elements.iter().map(|(key, value)| format!("{key} {value:?}")).collect();
        let wanted = [
            "10.0.0.1 . udp . 53 Goto(Refuse)",
            "10.0.0.1 . tcp . 80 Goto(InsideOnly)",
            "tcp . 30080 Goto(Relay)",
            "::ffff:1.2.3.4 Member",
            "fd00::1 Member",
            "10.96.0.0/16 Member",
            "10.99.0.1/32 Member",
            "10.0.0.1 . tcp . 80 . 10.0.0.0/8 Member",
            "10.0.0.1 . tcp . 80 . 172.16.0.1/32 Member",
        ];
        assert_eq!(elements, wanted);
        assert_eq!(listing.strangers, 0);
        assert_eq!(listing.shape.sets.len(), 7);
        let relay = ChainShape { hook: None, rules: vec![Some("rule c".to_owned()), None] };
        assert_eq!(listing.shape.chains.get("relay"), Some(&relay));
        let hook = Some(("route".to_owned(), "output".to_owned(), -300));
        let output = ChainShape { hook, rules: Vec::new() };
        assert_eq!(listing.shape.chains.get("output"), Some(&output));
    }

    #[test]
    fn protocols_have_names_or_numbers() {
        let parsed = |protocol: &str| parse_protocol(&serde_json::from_str(protocol).unwrap());
        assert_eq!([r#""tcp""#, "6"].map(parsed), [Some(Protocol::Tcp); 2]);
        assert_eq!([r#""udp""#, "17"].map(parsed), [Some(Protocol::Udp); 2]);
        assert_eq!([r#""sctp""#, "132", r#""6""#, "null"].map(parsed), [None; 4]);
    }

    #[test]
    fn what_cannot_be_ours_is_counted() {
        for element in [
            r#"[{"concat": ["10.0.0.1", "tcp", 80]}, {"accept": null}]"#,
            r#"[{"concat": ["10.0.0.1", "tcp", 80]}, {"goto": {"target": "elsewhere"}}]"#,
            r#"[{"concat": ["10.0.0.1", "sctp", 80]}, {"goto": {"target": "relay"}}]"#,
            r#"[{"concat": ["10.0.0.1", "tcp", 65536]}, {"goto": {"target": "relay"}}]"#,
            r#"[{"concat": ["10.0.0.1", "tcp"]}, {"goto": {"target": "relay"}}]"#,
            r#"{"range": ["10.0.0.1", "10.0.0.7"]}"#,
            r#""10.0.0.1""#,
            "7",
            "[]",
        ] {
            let json = format!(
                r#"{{"nftables": [{{"map": {{"name": "frontends4", "table": "sluice", "elem": [{element}]}}}}]}}"#
            );
            let listing = Listing::parse(json.as_bytes()).unwrap();
            assert_eq!((listing.strangers, listing.elements.len()), (1, 0), "{element}");
        }
    }

    #[test]
    fn rules_of_networks_are_known_by_their_comments() {
        let net = |text: &str| text.parse().unwrap();
        let known = [
            Key::ToOthers(net("10.244.0.1/32")),
            Key::ToPods(net("fd00:244::/64")),
            Key::FromPods(net("10.244.0.0/16")),
            Key::ToServices(SetName::ExternalIps, Family::V4),
            Key::ToServices(SetName::ClusterIps, Family::V6),
        ];
        assert_eq!(known.map(|key| parse_rule(&key.to_string())), known.map(Some));
        for strange in ["", "ip daddr", "ip daddr @external_ips6 return", "ip6 daddr 10.0.0.0/8 return"] {
            assert_eq!(parse_rule(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        for json in ["", "{}", "[]", "nft", r#"{"nftables": [{"chain": {}}]}"#] {
            assert!(Listing::parse(json.as_bytes()).is_err(), "{json}");
        }
        assert!(Listing::parse(br#"{"nftables": [{"ct helper": {"name": "x"}}]}"#).is_ok());
    }
}
