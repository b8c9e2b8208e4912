//! What happens to a connection where it is decided at the client's socket, before there is a packet: as far as the
//! table can say it beforehand, of all clients of a kind alike.
//!
//! Only two kinds of clients can be told apart there: sockets in the node's own network namespace, and all others.

use std::net::IpAddr;

use sluice_model::{Family, FrontendKind};

use crate::backends::Backends;
use crate::policy::SetName;
use crate::source_address::source_address;
use crate::{Balance, Origin, ServicePort, SourceAddress, Verdict};

/// What happens to the connections of one kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtSocket {
    /// Nothing yet: their packets meet the other ways of capturing.
    Relay,
    /// They are refused.
    Refuse,
    /// They lead to the endpoints of a set, which is not empty, in turns or by chance, as the port's policy says, and
    /// endpoints see the client's own address.
    Balance(SetName),
}

/// What happens to connections to one frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOutcomes {
    /// Of processes in the node's network.
    pub node: AtSocket,
    /// Of all others that this kernel sees: pods of this node, and containers that are none.
    pub pod: AtSocket,
}

impl SocketOutcomes {
    /// Nothing is decided at the socket.
    pub const RELAY: Self = Self { node: AtSocket::Relay, pod: AtSocket::Relay };

    /// What the port's rules and endpoints say now; `is_own` is whether the frontend's address is on an interface of
    /// the node.
    pub fn of(port: &ServicePort, kind: FrontendKind, ip: IpAddr, is_own: bool) -> Self {
        // NodeLocal DNSCache has the cluster IP of kube-dns on an interface, and must get what is sent to it.
        if kind == FrontendKind::ClusterIp && is_own {
            return Self::RELAY;
        }
        let backends = port.load();
        let node = at_node(&backends, kind);
        // In a pod a loopback address is the pod's own.
        let pod = if ip.is_loopback() { AtSocket::Relay } else { at_pod(&backends, kind) };
        let fits = |outcome| match outcome {
            AtSocket::Balance(set) if !is_of_family(&backends, set, port.family()) => AtSocket::Relay,
            outcome => outcome,
        };
        Self { node: fits(node), pod: fits(pod) }
    }
}

/// Their own address is one of the node's, which is all that endpoints may see of them.
fn at_node(backends: &Backends, kind: FrontendKind) -> AtSocket {
    outcome(backends, kind, backends.choose(kind, Origin::Node))
}

fn at_pod(backends: &Backends, kind: FrontendKind) -> AtSocket {
    let (inside, outside) = (backends.choose(kind, Origin::LocalPod), backends.choose(kind, Origin::Outside));
    let rules = &backends.rules;
    let keeps_address = |origin| {
        source_address(kind, origin, rules.policies.external, rules.masquerade) == SourceAddress::Client
    };
    match kind {
        // Most others are pods, and only for pods is there such an address.
        FrontendKind::ClusterIp => {}
        // The short circuit of policy Local is for pods, and a socket does not say whether it is one's.
        _ if inside != outside => return AtSocket::Relay,
        _ => {}
    }
    match outcome(backends, kind, inside) {
        AtSocket::Balance(_) if !keeps_address(Origin::LocalPod) => AtSocket::Relay,
        outcome => outcome,
    }
}

fn outcome(backends: &Backends, kind: FrontendKind, choice: Result<SetName, Verdict>) -> AtSocket {
    let rules = &backends.rules;
    // Whoever is not in the ranges hears nothing, and a socket may have no address yet.
    if backends.allowed_sources(kind).is_some() {
        return AtSocket::Relay;
    }
    let is_simple = matches!(rules.balance, Balance::RoundRobin | Balance::Random)
        && rules.affinity.is_none()
        && rules.limit.is_none();
    match choice {
        Ok(set) if is_simple => AtSocket::Balance(set),
        // A socket can be refused, but not be made to hear nothing.
        Ok(_) | Err(Verdict::Drop(_) | Verdict::Relay) => AtSocket::Relay,
        Err(Verdict::Refuse(_)) => AtSocket::Refuse,
    }
}

/// A socket that connects to an IPv4 address cannot be led to an IPv6 one.
fn is_of_family(backends: &Backends, set: SetName, family: Family) -> bool {
    let mut upstreams = backends.set(set).upstreams().iter();
    upstreams.all(|upstream| Family::of(upstream.address().ip().to_canonical()) == family)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    use sluice_model::{ObjectName, Protocol, ServicePortName, TrafficPolicy};

    use super::*;
    use crate::Upstream;
    use crate::affinity::Budget;
    use crate::backends::{Facts, PortRules};
    use crate::connection_limit::ConnectionLimit;
    use crate::policy::Policies;
    use crate::source_address::Masquerade;

    /// Name of the case, settings, where endpoints are, kind of frontend, what processes of the node get, what pods get.
    type Case = (&'static str, &'static str, &'static str, FrontendKind, &'static str, &'static str);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("a cluster IP",                                       "",              "here there", ClusterIp, "cluster", "cluster"),
        ("a cluster IP, policy Local",                         "local",         "here there", ClusterIp, "local", "local"),
        ("a cluster IP, policy Local, none here: silence",     "local",         "there", ClusterIp, "relay", "relay"),
        ("no endpoint",                                        "",              "", ClusterIp, "refuse", "refuse"),
        ("no endpoint at an external address",                 "",              "", ExternalIp, "refuse", "refuse"),
        ("masquerade-all: pods do not keep their address",     "masquerade",    "here there", ClusterIp, "cluster", "relay"),
        ("external: pods do not keep their address",           "",              "here there", NodePort, "cluster", "relay"),
        ("external Local: the short circuit is for pods only", "local",         "here there", NodePort, "cluster", "relay"),
        ("external Local, none here: the same",                "local",         "there", ExternalIp, "cluster", "relay"),
        ("external Local, no endpoint",                        "local",         "", LoadBalancer, "refuse", "refuse"),
        ("source ranges",                                      "ranges",        "here there", LoadBalancer, "relay", "relay"),
        ("source ranges come before refusals",                 "ranges",        "", LoadBalancer, "relay", "relay"),
        ("source ranges do not guard cluster IPs",             "ranges",        "here there", ClusterIp, "cluster", "cluster"),
        ("least connections",                                  "least",         "here there", ClusterIp, "relay", "relay"),
        ("source hash",                                        "hash",          "here there", ClusterIp, "relay", "relay"),
        ("random",                                             "random",        "here there", ClusterIp, "cluster", "cluster"),
        ("least connections, no endpoint",                     "least",         "", ClusterIp, "refuse", "refuse"),
        ("affinity",                                           "affinity",      "here there", ClusterIp, "relay", "relay"),
        ("a limit of connections",                             "limit",         "here there", ClusterIp, "relay", "relay"),
        ("a cluster IP that is on an interface",               "own",           "here there", ClusterIp, "relay", "relay"),
        ("the node's address",                                 "own",           "here there", NodePort, "cluster", "relay"),
        ("on loopback: a pod's own",                           "loopback",      "", NodePort, "refuse", "relay"),
        ("an endpoint of the other family",                    "",              "v6", ClusterIp, "relay", "relay"),
    ];

    #[test]
    fn cases() {
        for (name, settings, endpoints, kind, node, pod) in CASES {
            let has = |word| settings.contains(word);
            let policy = if has("local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let balance = match *settings {
                "least" => Balance::LeastConnections,
                "hash" => Balance::SourceHash,
                "random" => Balance::Random,
                _ => Balance::RoundRobin,
            };
            let rules = PortRules {
                policies: Policies { internal: policy, external: policy },
                balance,
                affinity: has("affinity").then_some(Duration::from_secs(5)),
                allowed_sources: has("ranges").then(|| vec!["10.0.0.0/8".parse().unwrap()].into()),
                masquerade: Masquerade { always: false, all: has("masquerade"), detects_local_pods: true },
                passive_health: true,
                limit: has("limit")
                    .then(|| ConnectionLimit::new(NonZeroU32::MIN, &Arc::new(AtomicU32::new(0)))),
            };
            let named = ServicePortName {
                service: ObjectName::new("default", "web"),
                port: "http".into(),
                protocol: Protocol::Tcp,
            };
            let port = ServicePort::new(named, Family::V4, Budget::new(10));
            let set = |names: &[&str]| -> Vec<Arc<Upstream>> {
                let address = |name: &&str| match *name {
                    "here" => "10.1.0.1:80",
                    "there" => "10.1.0.2:80",
                    _ => "[fd00::1]:80",
                };
                names
                    .iter()
                    .map(|name| {
                        Arc::new(Upstream::new(
                            address(name).parse().unwrap(),
                            Arc::clone(port.shared_name()),
                        ))
                    })
                    .collect()
            };
            let all: Vec<&str> = endpoints.split_whitespace().collect();
            let local: Vec<&str> = all.iter().copied().filter(|name| *name == "here").collect();
            port.publish(set(&all), set(&local), Facts::default(), rules);
            let ip = if has("loopback") { "127.0.0.1" } else { "192.0.2.1" }.parse().unwrap();
            let found = SocketOutcomes::of(&port, *kind, ip, has("own"));
            let text = |outcome| match outcome {
                AtSocket::Relay => "relay",
                AtSocket::Refuse => "refuse",
                AtSocket::Balance(SetName::Cluster) => "cluster",
                AtSocket::Balance(SetName::Local) => "local",
            };
            assert_eq!((text(found.node), text(found.pod)), (*node, *pod), "{name}");
        }
    }
}
