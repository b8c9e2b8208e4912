//! Merges the slices of one Service into the endpoints of one service port (kube-proxy:
//! `EndpointSliceCache`).

use std::net::SocketAddr;
use std::sync::Arc;

use litemap::LiteMap;
use sluice_model::{Endpoint, EndpointSlice, Family, Protocol};

/// The slices of one Service, by name. Most Services have one.
pub type Slices = LiteMap<Arc<str>, EndpointSlice>;

/// An endpoint, with its port for one service port.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Where to connect.
    pub address: SocketAddr,
    /// The endpoint's entry in the slice.
    pub endpoint: &'a Endpoint,
}

/// The ports of all slices of a Service, sorted by the key that matches them to the Service's ports: either
/// may be thousands.
#[derive(Debug)]
pub struct Offers<'a>(Vec<Offer<'a>>);

#[derive(Debug, Clone, Copy)]
struct Offer<'a> {
    port: (&'a str, Protocol, Family),
    number: u16,
    endpoints: &'a [Endpoint],
}

impl<'a> Offers<'a> {
    /// The ports of these slices.
    pub fn new(slices: &'a Slices) -> Self {
        let of_slice = |slice: &'a EndpointSlice| {
            slice.ports.iter().map(|port| Offer {
                port: (&*port.name, port.protocol, slice.family),
                number: port.number,
                endpoints: &slice.endpoints,
            })
        };
        let mut offers: Vec<Offer<'a>> = slices.values().flat_map(of_slice).collect();
        offers.sort_by_key(|offer| offer.port);
        Self(offers)
    }

    /// Number of ports.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The ports that belong to one service port.
    fn of(&self, port: (&str, Protocol, Family)) -> impl Iterator<Item = &Offer<'a>> {
        let first = self.0.partition_point(|offer| offer.port < port);
        self.0.iter().skip(first).take_while(move |offer| offer.port == port)
    }

    /// Every endpoint of the service port (`name`, `protocol`) in `family`: each `ip:port` once, sorted by
    /// address.
    ///
    /// The same `ip:port` may be in several slices while an endpoint moves between them, or twice in one. A
    /// non-terminating entry takes precedence, then a ready one, then one on `node` (kube-proxy prefers the
    /// local one too).
    pub fn merge(&self, name: &str, protocol: Protocol, family: Family, node: &str) -> Vec<Candidate<'a>> {
        let mut candidates: Vec<Candidate<'a>> = Vec::new();
        for offer in self.of((name, protocol, family)) {
            candidates.extend(offer.endpoints.iter().map(|endpoint| Candidate {
                address: SocketAddr::new(endpoint.address, offer.number),
                endpoint,
            }));
        }
        let rank = |endpoint: &Endpoint| {
            (endpoint.terminating, !endpoint.ready, endpoint.node.as_deref() != Some(node))
        };
        candidates.sort_by(|a, b| a.address.cmp(&b.address).then(rank(a.endpoint).cmp(&rank(b.endpoint))));
        candidates.dedup_by_key(|candidate| candidate.address);
        candidates
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{ObjectName, SlicePort};

    use super::*;

    /// Slices separated by `|`, each `[family] port-name:number[/UDP] endpoint...`; endpoint
    /// `ADDRESS[!][-][@node]` where `!` is terminating and `-` not ready.
    fn parse(text: &str) -> Slices {
        let slices = text.split('|').filter(|slice| !slice.trim().is_empty());
        (0..).zip(slices).map(|(n, slice): (u32, _)| parse_slice(&format!("web-{n}"), slice)).collect()
    }

    fn parse_slice(name: &str, text: &str) -> (Arc<str>, EndpointSlice) {
        let mut slice = EndpointSlice {
            last_change: None,
            name: ObjectName::new("default", name),
            service: ObjectName::new("default", "web"),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
        };
        for word in text.split_whitespace() {
            if word == "IPv6" {
                slice.family = Family::V6;
            } else if let Some((name, number)) = word.split_once('=') {
                let (number, protocol) = match number.strip_suffix("/UDP") {
                    Some(number) => (number, Protocol::Udp),
                    None => (number, Protocol::Tcp),
                };
                let number = number.parse().unwrap();
                slice.ports.push(SlicePort { name: name.into(), protocol, number });
            } else {
                let (word, node) =
                    word.split_once('@').map_or((word, None), |(word, node)| (word, Some(node)));
                slice.endpoints.push(Endpoint {
                    ready: !word.contains('-'),
                    terminating: word.contains('!'),
                    node: node.map(Into::into),
                    ..Endpoint::ready(word.trim_end_matches(['!', '-']).parse().unwrap())
                });
            }
        }
        (name.into(), slice)
    }

    /// Name of the case, slices, endpoints of port `http` over TCP and IPv4, seen from `here`.
    #[rustfmt::skip]
    const CASES: &[(&str, &str, &[&str])] = &[
        ("no slices",                                  "", &[]),
        ("one slice",                                  "http=80 10.0.0.1 10.0.0.2", &["10.0.0.1:80", "10.0.0.2:80"]),
        ("sorted by address",                          "http=80 10.0.0.2 10.0.0.1", &["10.0.0.1:80", "10.0.0.2:80"]),
        ("two slices",                                 "http=80 10.0.0.1 | http=80 10.0.0.2", &["10.0.0.1:80", "10.0.0.2:80"]),
        ("slices may have different port numbers",     "http=80 10.0.0.1 | http=8080 10.0.0.2", &["10.0.0.1:80", "10.0.0.2:8080"]),
        ("one address with two numbers is two",        "http=80 10.0.0.1 | http=8080 10.0.0.1", &["10.0.0.1:80", "10.0.0.1:8080"]),
        ("a port twice in one slice",                  "http=80 http=81 10.0.0.1", &["10.0.0.1:80", "10.0.0.1:81"]),
        ("other port names do not join",               "https=80 10.0.0.1 | =80 10.0.0.2", &[]),
        ("other protocols do not join",                "http=80/UDP 10.0.0.1", &[]),
        ("other families do not join",                 "IPv6 http=80 fd00::1", &[]),
        ("a slice without ports adds none",            "10.0.0.1", &[]),
        ("the same twice in one slice is one",         "http=80 10.0.0.1 10.0.0.1", &["10.0.0.1:80"]),
        ("the same in two slices is one",              "http=80 10.0.0.1 | http=80 10.0.0.1", &["10.0.0.1:80"]),
        ("moving: the non-terminating one wins",       "http=80 10.0.0.1!- | http=80 10.0.0.1", &["10.0.0.1:80"]),
        ("moving, the other way round",                "http=80 10.0.0.1 | http=80 10.0.0.1!-", &["10.0.0.1:80"]),
        ("moving within a slice",                      "http=80 10.0.0.1!- 10.0.0.1", &["10.0.0.1:80"]),
        ("non-terminating wins though it is not ready","http=80 10.0.0.1! | http=80 10.0.0.1-", &["10.0.0.1:80 not ready"]),
        ("the ready one wins",                         "http=80 10.0.0.1- | http=80 10.0.0.1", &["10.0.0.1:80"]),
        ("the local one wins",                         "http=80 10.0.0.1@there | http=80 10.0.0.1@here", &["10.0.0.1:80 on here"]),
        ("the local one wins, the other way round",    "http=80 10.0.0.1@here | http=80 10.0.0.1", &["10.0.0.1:80 on here"]),
        ("ready elsewhere wins over not ready here",   "http=80 10.0.0.1-@here | http=80 10.0.0.1@there", &["10.0.0.1:80 on there"]),
    ];

    #[test]
    fn cases() {
        for (name, slices, wanted) in CASES {
            let slices = parse(slices);
            let got: Vec<String> = Offers::new(&slices)
                .merge("http", Protocol::Tcp, Family::V4, "here")
                .iter()
                .map(|candidate| {
                    let Endpoint { ready, terminating, node, .. } = candidate.endpoint;
                    let ready = if *ready { "" } else { " not ready" };
                    let terminating = if *terminating { " terminating" } else { "" };
                    let node = node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
                    format!("{}{ready}{terminating}{node}", candidate.address)
                })
                .collect();
            assert_eq!(got, *wanted, "{name}");
        }
    }

    #[test]
    fn the_unnamed_port_joins_the_unnamed_port() {
        let slices = parse("=80 10.0.0.1 | http=80 10.0.0.2");
        let merged = Offers::new(&slices).merge("", Protocol::Tcp, Family::V4, "here");
        assert_eq!(merged.iter().map(|c| c.address.to_string()).collect::<Vec<_>>(), ["10.0.0.1:80"]);
    }
}
