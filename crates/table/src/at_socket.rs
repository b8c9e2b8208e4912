//! What happens to connections in socket mode, where they are decided at the client's socket before there is
//! a packet: as far as the table can decide it in advance, and for all clients of a kind alike.
//!
//! Only two kinds of clients can be told apart there: sockets in the node's own network namespace, and all
//! others.

use std::fmt;
use std::net::IpAddr;

use sluice_model::{FrontendKind, Protocol};

use crate::backends::Backends;
use crate::policy::SetName;
use crate::source_address::source_address;
use crate::{Balance, Origin, ServicePort, SourceAddress, Verdict};

/// What happens to the connections of one kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtSocket {
    /// They are not translated, so their packets reach the capture rules.
    Relay,
    /// They are refused.
    Refuse,
    /// They are translated to the endpoints of a set, which is not empty, by round robin or at random
    /// according to the port's policy. Endpoints see the client's own address.
    Balance(SetName),
}

/// What happens to connections to one frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOutcomes {
    /// Of processes in the node's network namespace.
    pub node: AtSocket,
    /// Of all other clients on this machine: pods of this node, and containers that are not pods.
    pub pod: AtSocket,
}

/// Why connections are not translated, so that their packets reach the capture rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyRelayed {
    /// NodeLocal DNSCache has the cluster IP of kube-dns on an interface, and must receive the traffic to it.
    OwnClusterIp,
    /// The Service's annotation says so.
    KeptOut,
    /// In a pod a loopback address is the pod's own.
    PodsLoopback,
    /// Clients outside the ranges must get no answer, and a socket may have no address yet.
    SourceRanges,
    /// The balancing policy is neither round robin nor random.
    Balance(Balance),
    /// The Service has session affinity, and the protocol is UDP.
    Affinity,
    /// The Service has a connection limit.
    Limit,
    /// The traffic is to be dropped. A BPF program can refuse a connection, but not drop it silently.
    Dropped,
    /// Endpoints are to see the node's address.
    NodesAddress,
    /// The short circuit of policy Local is for pods, and a socket does not tell whether it is a pod's.
    ShortCircuit,
    /// A socket that connects to an IPv4 address cannot be translated to an IPv6 one.
    OtherFamily,
}

impl fmt::Display for WhyRelayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnClusterIp => "the cluster IP is on an interface of this node",
            Self::KeptOut => "an annotation of the Service keeps it out (sluice.dev/socket-mode)",
            Self::PodsLoopback => "in a pod a loopback address is the pod's own",
            Self::SourceRanges => "only some sources may connect, and a socket may have no address yet",
            Self::Balance(balance) => return write!(f, "the Service is balanced by {balance}"),
            Self::Affinity => "the Service has session affinity, and this is UDP",
            Self::Limit => "the Service has a limit of connections",
            Self::Dropped => "a socket cannot be made to hear nothing",
            Self::NodesAddress => "endpoints are to see the node's address",
            Self::ShortCircuit => "the external policy is Local, which is for pods another one",
            Self::OtherFamily => "an endpoint is of the other family",
        })
    }
}

impl SocketOutcomes {
    /// Nothing is translated.
    pub const RELAY: Self = Self { node: AtSocket::Relay, pod: AtSocket::Relay };

    /// The outcome by the port's current rules and endpoints. `is_own` is whether the frontend's address is
    /// on an interface of the node.
    pub fn of(port: &ServicePort, kind: FrontendKind, ip: IpAddr, is_own: bool) -> Self {
        let [node, pod] = Self::with_reasons(port, kind, ip, is_own);
        Self { node: node.unwrap_or(AtSocket::Relay), pod: pod.unwrap_or(AtSocket::Relay) }
    }

    /// The same, with the reason if connections are not translated: for processes of the node, and for all
    /// others.
    pub fn with_reasons(
        port: &ServicePort,
        kind: FrontendKind,
        ip: IpAddr,
        is_own: bool,
    ) -> [Result<AtSocket, WhyRelayed>; 2] {
        if kind == FrontendKind::ClusterIp && is_own {
            return [Err(WhyRelayed::OwnClusterIp); 2];
        }
        let backends = port.load();
        if !backends.rules.at_socket {
            return [Err(WhyRelayed::KeptOut); 2];
        }
        let node = at_node(port, &backends, kind);
        let pod =
            if ip.is_loopback() { Err(WhyRelayed::PodsLoopback) } else { at_pod(port, &backends, kind) };
        [node, pod].map(|outcome| match outcome {
            Ok(AtSocket::Balance(set)) if backends.set(set).family() != Some(port.family()) => {
                Err(WhyRelayed::OtherFamily)
            }
            outcome => outcome,
        })
    }
}

/// Endpoints may see a process of the node with its own address, which is one of the node's.
fn at_node(port: &ServicePort, backends: &Backends, kind: FrontendKind) -> Result<AtSocket, WhyRelayed> {
    outcome(port, backends, kind, backends.choose(kind, Origin::Node))
}

fn at_pod(port: &ServicePort, backends: &Backends, kind: FrontendKind) -> Result<AtSocket, WhyRelayed> {
    let (inside, outside) = (backends.choose(kind, Origin::LocalPod), backends.choose(kind, Origin::Outside));
    let rules = &backends.rules;
    let keeps_address = |origin| {
        source_address(kind, origin, rules.policies.external, rules.masquerade) == SourceAddress::Client
    };
    match kind {
        // Most other clients are pods, and only pods can reach such an address. Pods that the local detector
        // does not match are not translated if their addresses tell them apart; the code that attaches the
        // programs takes care of that.
        FrontendKind::ClusterIp => {}
        _ if inside != outside => return Err(WhyRelayed::ShortCircuit),
        _ => {}
    }
    match outcome(port, backends, kind, inside) {
        Ok(AtSocket::Balance(_)) if !keeps_address(Origin::LocalPod) => Err(WhyRelayed::NodesAddress),
        outcome => outcome,
    }
}

fn outcome(
    port: &ServicePort,
    backends: &Backends,
    kind: FrontendKind,
    choice: Result<SetName, Verdict>,
) -> Result<AtSocket, WhyRelayed> {
    let rules = &backends.rules;
    if backends.allowed_sources(kind).is_some() {
        return Err(WhyRelayed::SourceRanges);
    }
    match choice {
        Ok(_) if !matches!(rules.balance, Balance::RoundRobin | Balance::Random) => {
            Err(WhyRelayed::Balance(rules.balance))
        }
        // With TCP, a client that has connected before is translated to the endpoint that the relay has
        // chosen for it.
        Ok(_) if rules.affinity.is_some() && port.name().protocol == Protocol::Udp => {
            Err(WhyRelayed::Affinity)
        }
        Ok(_) if rules.limit.is_some() => Err(WhyRelayed::Limit),
        Ok(set) => Ok(AtSocket::Balance(set)),
        Err(Verdict::Refuse(_)) => Ok(AtSocket::Refuse),
        Err(Verdict::Drop(_) | Verdict::Relay) => Err(WhyRelayed::Dropped),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    use sluice_model::{Family, ObjectName, ServicePortName, TrafficPolicy};

    use super::*;
    use crate::Upstream;
    use crate::affinity::Budget;
    use crate::backends::{Facts, PortRules};
    use crate::connection_limit::ConnectionLimit;
    use crate::policy::Policies;
    use crate::source_address::Masquerade;

    /// Name of the case, settings, endpoints' places, kind of frontend, outcome for processes of the node,
    /// outcome for pods.
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
        ("affinity",                                           "affinity",      "here there", ClusterIp, "cluster", "cluster"),
        ("affinity of UDP",                                    "affinity udp",  "here there", ClusterIp, "relay", "relay"),
        ("affinity, and a limit of connections",               "affinity limit", "here there", ClusterIp, "relay", "relay"),
        ("a limit of connections",                             "limit",         "here there", ClusterIp, "relay", "relay"),
        ("a cluster IP that is on an interface",               "own",           "here there", ClusterIp, "relay", "relay"),
        ("the node's address",                                 "own",           "here there", NodePort, "cluster", "relay"),
        ("on loopback: a pod's own",                           "loopback",      "", NodePort, "refuse", "relay"),
        ("kept out by its annotation",                         "out",           "here there", ClusterIp, "relay", "relay"),
        ("kept out by its annotation, no endpoint",            "out",           "", ClusterIp, "relay", "relay"),
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
                at_socket: !has("out"),
                limit: has("limit")
                    .then(|| ConnectionLimit::new(NonZeroU32::MIN, &Arc::new(AtomicU32::new(0)))),
            };
            let named = ServicePortName {
                service: ObjectName::new("default", "web"),
                port: "http".into(),
                protocol: if has("udp") { Protocol::Udp } else { Protocol::Tcp },
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
