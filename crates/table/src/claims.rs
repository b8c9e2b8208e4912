//! Which Service gets a frontend that several of them name.
//!
//! Claims that lead to an endpoint come first, because kube-proxy has an entry for a frontend only then (the
//! map `service-ips` contains only service ports with endpoints). Within each group, an address comes before
//! a nodePort (`service-ips` is asked before `service-nodeports`), then the older Service comes first, then
//! the alphabetically first one of the same second. When the frontend becomes free, the others get it in that
//! order.
//!
//! Unlike in kube-proxy, a clusterIP stays with its Service even without endpoints. Otherwise, users who may
//! set external addresses in one namespace could receive the clients of another namespace's Service while
//! that restarts (CVE-2020-8554).

use std::cmp::Ordering;
use std::collections::HashMap;

use sluice_model::{Frontend, FrontendKind, ServicePortName};

/// One Service's claim to a frontend. The order is that of precedence, among the claims that lead to
/// endpoints and among those that do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// When the Service was created, in seconds since the Unix epoch.
    pub created: i64,
    /// The service port that the frontend would lead to.
    pub port: ServicePortName,
    /// Which field of the Service names the frontend.
    pub kind: FrontendKind,
}

impl Claim {
    /// The rank of the kind: a Service's own address, an external address, a nodePort.
    fn rank(&self) -> u8 {
        match self.kind {
            FrontendKind::ClusterIp => 0,
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer => 1,
            FrontendKind::NodePort => 2,
        }
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |claim: &Self| (claim.rank(), claim.created);
        key(self).cmp(&key(other)).then_with(|| (&self.port, self.kind).cmp(&(&other.port, other.kind)))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// All claims to all frontends, sorted for each frontend. Most frontends have one claim: tree nodes would
/// take ten times the memory.
#[derive(Debug, Default)]
pub struct Claims(HashMap<Frontend, Vec<Claim>, foldhash::fast::RandomState>);

impl Claims {
    /// Adds a claim.
    pub fn add(&mut self, frontend: Frontend, claim: Claim) {
        let claims = self.0.entry(frontend).or_insert_with(|| Vec::with_capacity(1));
        if let Err(position) = claims.binary_search(&claim) {
            claims.insert(position, claim);
        }
    }

    /// Removes a claim.
    pub fn remove(&mut self, frontend: &Frontend, claim: &Claim) {
        if let Some(claims) = self.0.get_mut(frontend) {
            if let Ok(position) = claims.binary_search(claim) {
                claims.remove(position);
            }
            if claims.is_empty() {
                self.0.remove(frontend);
            }
        }
    }

    /// The claim that gets the frontend. `leads_somewhere` is called only if there are several.
    pub fn holder(&self, frontend: &Frontend, leads_somewhere: impl Fn(&Claim) -> bool) -> Option<&Claim> {
        let claims = self.of(frontend);
        if let [_, _, ..] = claims {
            let own = claims.chunk_by(|a, b| a.kind == b.kind).next().unwrap_or_default();
            let is_cluster_ip = own.first().is_some_and(|claim| claim.kind == FrontendKind::ClusterIp);
            let candidates = if is_cluster_ip { own } else { claims };
            candidates.iter().find(|claim| leads_somewhere(claim)).or_else(|| candidates.first())
        } else {
            claims.first()
        }
    }

    /// All claims to a frontend, in order.
    pub fn of(&self, frontend: &Frontend) -> &[Claim] {
        self.0.get(frontend).map_or(&[], Vec::as_slice)
    }

    /// Whether no Service claims any frontend.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{ObjectName, Protocol};

    use super::*;

    #[test]
    fn a_cluster_ip_is_its_services_with_or_without_endpoints() {
        let frontend = Frontend::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let mut claims = Claims::default();
        let own = claim(2, "own");
        let others = Claim { kind: FrontendKind::ExternalIp, ..claim(1, "others") };
        claims.add(frontend, others.clone());
        assert_eq!(claims.holder(&frontend, |_| true), Some(&others));
        claims.add(frontend, own.clone());
        assert_eq!(claims.holder(&frontend, |claim| *claim == others), Some(&own));
    }

    fn claim(created: i64, name: &str) -> Claim {
        let port = ServicePortName {
            service: ObjectName::new("default", name),
            port: "".into(),
            protocol: Protocol::Tcp,
        };
        Claim { created, port, kind: FrontendKind::ClusterIp }
    }

    const SOMEWHERE: fn(&Claim) -> bool = |_| true;
    const NOWHERE: fn(&Claim) -> bool = |_| false;

    #[test]
    fn the_older_service_keeps_it_then_the_name_decides() {
        let frontend = Frontend::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let mut claims = Claims::default();
        for claim in [claim(7, "b"), claim(7, "a"), claim(5, "z")] {
            claims.add(frontend, claim);
        }
        for leads_somewhere in [SOMEWHERE, NOWHERE] {
            assert_eq!(claims.holder(&frontend, leads_somewhere), Some(&claim(5, "z")));
        }
        assert_eq!(claims.of(&frontend), [claim(5, "z"), claim(7, "a"), claim(7, "b")]);
        claims.remove(&frontend, &claim(5, "z"));
        assert_eq!(claims.holder(&frontend, SOMEWHERE), Some(&claim(7, "a")));
        claims.remove(&frontend, &claim(7, "a"));
        claims.remove(&frontend, &claim(7, "b"));
        assert_eq!(claims.holder(&frontend, SOMEWHERE), None);
        assert!(claims.0.is_empty());
    }

    #[test]
    fn who_leads_somewhere_comes_first_then_addresses_come_before_node_ports() {
        use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
        let frontend = Frontend::new([192, 0, 2, 1].into(), 80, Protocol::Tcp);
        let of = |kind, created, name| Claim { kind, ..claim(created, name) };
        let in_order = [
            of(ClusterIp, 9, "own"),
            of(LoadBalancer, 4, "a"),
            of(ExternalIp, 5, "a"),
            of(LoadBalancer, 6, "a"),
            of(NodePort, 1, "a"),
            of(NodePort, 2, "a"),
        ];
        let mut claims = Claims::default();
        in_order.iter().rev().for_each(|claim| claims.add(frontend, claim.clone()));
        assert_eq!(claims.of(&frontend), in_order);
        assert_eq!(claims.holder(&frontend, NOWHERE), in_order.first());
        claims.remove(&frontend, &in_order[0]);
        for claim in &in_order[1..] {
            let from_here = |other: &Claim| other >= claim;
            assert_eq!(claims.holder(&frontend, from_here), Some(claim));
        }
    }

    #[test]
    fn where_one_service_names_an_address_nobody_asks_where_it_leads() {
        let frontend = Frontend::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let mut claims = Claims::default();
        claims.add(frontend, claim(1, "a"));
        assert_eq!(claims.holder(&frontend, |_| panic!("it is asked")), Some(&claim(1, "a")));
    }
}
