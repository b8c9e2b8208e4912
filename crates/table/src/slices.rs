//! The slices of one Service merged into the endpoints of one service port
//! (kube-proxy: `EndpointSliceCache`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use sluice_model::{Endpoint, EndpointSlice, Family, Protocol};

/// The slices of one Service, by name.
pub type Slices = BTreeMap<Arc<str>, EndpointSlice>;

/// An endpoint with the port that one service port has on it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Where to connect.
    pub address: SocketAddr,
    /// What the slice says of it.
    pub endpoint: &'a Endpoint,
}

/// Every endpoint of the service port (`name`, `protocol`) in `family`, each `ip:port` once, sorted
/// by address.
///
/// The same `ip:port` may stand in several slices while an endpoint moves between them, or twice in
/// one: the non-terminating one wins, then the ready one, then the one that is said to be on
/// `node` (kube-proxy prefers the local one too).
pub fn merge<'a>(
    slices: &'a Slices,
    name: &str,
    protocol: Protocol,
    family: Family,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for slice in slices.values().filter(|slice| slice.family == family) {
        for port in slice.ports.iter().filter(|port| *port.name == *name && port.protocol == protocol) {
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                address: SocketAddr::new(endpoint.address, port.number),
                endpoint,
            }));
        }
    }
    let rank =
        |endpoint: &Endpoint| (endpoint.terminating, !endpoint.ready, endpoint.node.as_deref() != Some(node));
    candidates.sort_by(|a, b| a.address.cmp(&b.address).then(rank(a.endpoint).cmp(&rank(b.endpoint))));
    candidates.dedup_by_key(|candidate| candidate.address);
    candidates
}

#[cfg(test)]
mod tests {
    use sluice_model::{ObjectName, SlicePort};

    use super::*;

    fn slice(name: &str, port: u16, endpoints: Vec<Endpoint>) -> (Arc<str>, EndpointSlice) {
        let slice = EndpointSlice {
            name: ObjectName::new("default", name),
            service: ObjectName::new("default", "web"),
            family: Family::V4,
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, number: port }],
            endpoints,
        };
        (name.into(), slice)
    }

    fn ready(n: u8) -> Endpoint {
        Endpoint::ready([10, 0, 0, n].into())
    }

    fn addresses(slices: &Slices) -> Vec<String> {
        let merged = merge(slices, "http", Protocol::Tcp, Family::V4, "here");
        merged
            .iter()
            .map(|c| format!("{}{}", c.address, if c.endpoint.terminating { "!" } else { "" }))
            .collect()
    }

    #[test]
    fn slices_may_have_different_port_numbers() {
        let slices = Slices::from([slice("a", 80, vec![ready(1)]), slice("b", 8080, vec![ready(2)])]);
        assert_eq!(addresses(&slices), ["10.0.0.1:80", "10.0.0.2:8080"]);
    }

    #[test]
    fn a_moving_endpoint_is_present_once_and_the_non_terminating_one_wins() {
        let leaving = Endpoint { ready: false, terminating: true, ..ready(1) };
        for slices in [
            Slices::from([slice("a", 80, vec![leaving.clone()]), slice("b", 80, vec![ready(1)])]),
            Slices::from([slice("a", 80, vec![ready(1)]), slice("b", 80, vec![leaving.clone()])]),
            Slices::from([slice("a", 80, vec![leaving, ready(1), ready(1)])]),
        ] {
            assert_eq!(addresses(&slices), ["10.0.0.1:80"]);
        }
    }

    #[test]
    fn other_names_protocols_and_families_do_not_join() {
        let slices = Slices::from([slice("a", 80, vec![ready(1)])]);
        assert!(merge(&slices, "", Protocol::Tcp, Family::V4, "here").is_empty());
        assert!(merge(&slices, "http", Protocol::Udp, Family::V4, "here").is_empty());
        assert!(merge(&slices, "http", Protocol::Tcp, Family::V6, "here").is_empty());
    }
}
