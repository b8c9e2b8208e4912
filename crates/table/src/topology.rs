//! Which endpoints serve: kube-proxy's `CategorizeEndpoints` as a pure function.

use sluice_model::Endpoint;

/// The node's name and zone, for the topology rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locality<'a> {
    /// The node's name, as `nodeName` of endpoints and node hints spell it.
    pub node: &'a str,
    /// The node's zone, if it has one.
    pub zone: Option<&'a str>,
}

impl Locality<'_> {
    pub(crate) fn is_local(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }

    fn is_hinted_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.node_hints.iter().any(|node| &**node == self.node)
    }

    fn is_hinted_to_zone(&self, endpoint: &Endpoint) -> bool {
        self.zone.is_some_and(|zone| endpoint.zone_hints.iter().any(|hint| &**hint == zone))
    }
}

/// The endpoints that serve each kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Categorized<T> {
    /// For policy `Cluster`. Empty only if no endpoint of the cluster is usable.
    pub cluster: Vec<T>,
    /// For policy `Local`.
    pub local: Vec<T>,
    /// Which endpoints the cluster set consists of.
    pub cluster_basis: Basis,
    /// Which endpoints the local set consists of.
    pub local_basis: Basis,
    /// The number of endpoints in each condition.
    pub tally: Tally,
}

/// Which endpoints a set consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Basis {
    /// The ready ones.
    #[default]
    Ready,
    /// The ready ones that are hinted to this node (`PreferSameNode`).
    SameNode,
    /// The ready ones that are hinted to this node's zone (`PreferSameZone`).
    SameZone,
    /// The terminating ones that still serve, because none is ready.
    Draining,
}

/// The number of endpoints of a service port in each condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tally {
    /// All.
    pub known: usize,
    /// Ready.
    pub ready: usize,
    /// Not ready, but terminating and still serving.
    pub draining: usize,
    /// Ready or draining, on other nodes.
    pub elsewhere: usize,
}

/// Sorts the endpoints of one service port into the cluster set and the local set.
///
/// * Cluster: the ready endpoints that the topology hints select; if none is ready, all that are terminating
///   and still serve.
/// * Local: the ready endpoints of this node; without any, its terminating ones that still serve. Topology
///   hints do not apply.
///
/// `view` returns an item's endpoint. The order is kept.
pub fn categorize_endpoints<T: Clone>(
    items: &[T],
    view: impl Fn(&T) -> &Endpoint,
    here: Locality<'_>,
) -> Categorized<T> {
    let topology = topology_from_hints(items.iter().map(&view).filter(|endpoint| endpoint.ready), here);
    let select = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<T> {
        items.iter().filter(|item| wanted(view(item))).cloned().collect()
    };
    let is_draining = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let (mut cluster_basis, mut local_basis) = (topology, Basis::Ready);

    let mut cluster = select(&|endpoint| {
        endpoint.ready
            && match topology {
                Basis::SameNode => here.is_hinted_here(endpoint),
                Basis::SameZone => here.is_hinted_to_zone(endpoint),
                Basis::Ready | Basis::Draining => true,
            }
    });
    if cluster.is_empty() {
        cluster = select(&is_draining);
        cluster_basis = Basis::Draining;
    }
    let mut local = select(&|endpoint| endpoint.ready && here.is_local(endpoint));
    if local.is_empty() {
        local = select(&|endpoint| is_draining(endpoint) && here.is_local(endpoint));
        local_basis = Basis::Draining;
    }
    let tally = tally(items.iter().map(&view), here);
    Categorized { cluster, local, cluster_basis, local_basis, tally }
}

fn tally<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, here: Locality<'_>) -> Tally {
    let mut tally = Tally::default();
    for endpoint in endpoints {
        let is_draining = !endpoint.ready && endpoint.serving && endpoint.terminating;
        tally.known += 1;
        tally.ready += usize::from(endpoint.ready);
        tally.draining += usize::from(is_draining);
        tally.elsewhere += usize::from((endpoint.ready || is_draining) && !here.is_local(endpoint));
    }
    tally
}

/// kube-proxy's `topologyModeFromHints`: hints count only if every ready endpoint has one and at least one
/// names this node or zone.
fn topology_from_hints<'a>(ready: impl Iterator<Item = &'a Endpoint>, here: Locality<'_>) -> Basis {
    let (mut all_have_node, mut one_is_here) = (true, false);
    let (mut all_have_zone, mut one_is_in_zone) = (true, false);
    for endpoint in ready {
        all_have_node &= !endpoint.node_hints.is_empty();
        one_is_here |= here.is_hinted_here(endpoint);
        all_have_zone &= !endpoint.zone_hints.is_empty();
        one_is_in_zone |= here.is_hinted_to_zone(endpoint);
    }
    if all_have_node && one_is_here {
        Basis::SameNode
    } else if all_have_zone && one_is_in_zone {
        Basis::SameZone
    } else {
        Basis::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Endpoint `10.0.0.N`: `state` is one of `ready`, `draining` (terminating, still serving),
    /// `down`; `node`, `zone_hint` and `node_hint` may be empty.
    fn endpoint(n: u8, state: &str, node: &str, zone_hint: &str, node_hint: &str) -> Endpoint {
        let hints = |hint: &str| if hint.is_empty() { Box::default() } else { Box::from([hint.into()]) };
        Endpoint {
            ready: state == "ready",
            serving: state != "down",
            terminating: state == "draining",
            node: (!node.is_empty()).then(|| node.into()),
            zone_hints: hints(zone_hint),
            node_hints: hints(node_hint),
            ..Endpoint::ready([10, 0, 0, n].into())
        }
    }

    /// Name of the case, endpoints (numbered from 1), cluster set, local set, as seen from node `here` in
    /// zone `z1`.
    type Case<'a> = (&'a str, &'a [[&'a str; 4]], &'a [u8], &'a [u8]);

    #[test]
    fn cases() {
        let cases: &[Case<'_>] = &[
            ("no endpoints", &[], &[], &[]),
            ("ready ones serve", &[["ready", "", "", ""], ["down", "", "", ""]], &[1], &[]),
            (
                "local ones are on this node",
                &[["ready", "here", "", ""], ["ready", "there", "", ""]],
                &[1, 2],
                &[1],
            ),
            ("absent node is never local", &[["ready", "", "", ""]], &[1], &[]),
            (
                "draining is not used while one is ready",
                &[["draining", "here", "", ""], ["ready", "here", "", ""]],
                &[2],
                &[2],
            ),
            (
                "draining serves when nothing is ready",
                &[["draining", "here", "", ""], ["down", "here", "", ""]],
                &[1],
                &[1],
            ),
            (
                "local falls back to draining on its own",
                &[["draining", "here", "", ""], ["ready", "there", "", ""]],
                &[2],
                &[1],
            ),
            ("zone hints narrow", &[["ready", "", "z1", ""], ["ready", "", "z2", ""]], &[1], &[]),
            (
                "one endpoint without a zone hint: all",
                &[["ready", "", "z1", ""], ["ready", "", "", ""]],
                &[1, 2],
                &[],
            ),
            (
                "no hint names this zone: all",
                &[["ready", "", "z2", ""], ["ready", "", "z3", ""]],
                &[1, 2],
                &[],
            ),
            (
                "an unready endpoint's missing hint does not count",
                &[["ready", "", "z1", ""], ["ready", "", "z2", ""], ["down", "", "", ""]],
                &[1],
                &[],
            ),
            ("node hints narrow", &[["ready", "", "", "here"], ["ready", "", "", "there"]], &[1], &[]),
            (
                "node hints come before zone hints",
                &[["ready", "", "z1", "there"], ["ready", "", "z2", "here"]],
                &[2],
                &[],
            ),
            (
                "no node hint names this node: zones decide",
                &[["ready", "", "z1", "there"], ["ready", "", "z2", "there"]],
                &[1],
                &[],
            ),
            (
                "the fallback to draining ignores topology",
                &[["draining", "", "z1", ""], ["draining", "", "z2", ""]],
                &[1, 2],
                &[],
            ),
            (
                "the local set ignores topology",
                &[["ready", "here", "z2", ""], ["ready", "there", "z1", ""]],
                &[2],
                &[1],
            ),
        ];
        for (name, endpoints, cluster, local) in cases {
            let endpoints: Vec<Endpoint> = (1..)
                .zip(*endpoints)
                .map(|(n, [state, node, zone, hint])| endpoint(n, state, node, zone, hint))
                .collect();
            let here = Locality { node: "here", zone: Some("z1") };
            let got = categorize_endpoints(&endpoints, |endpoint| endpoint, here);
            let addresses =
                |set: &[u8]| set.iter().map(|&n| [10, 0, 0, n].into()).collect::<Vec<std::net::IpAddr>>();
            let seen = |set: &[Endpoint]| set.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>();
            assert_eq!(seen(&got.cluster), addresses(cluster), "{name}: cluster set");
            assert_eq!(seen(&got.local), addresses(local), "{name}: local set");
        }
    }

    #[test]
    fn a_node_without_a_zone_ignores_zone_hints() {
        let endpoints = [endpoint(1, "ready", "", "z1", ""), endpoint(2, "ready", "", "z2", "")];
        let here = Locality { node: "here", zone: None };
        assert_eq!(categorize_endpoints(&endpoints, |endpoint| endpoint, here).cluster.len(), 2);
    }
}
