//! Elements of the table's sets and maps, and what changes about them. Plain data.
//!
//! The same type serves for what there is to be, for what the kernel lists, and for what a transaction
//! changes, so that a difference is a comparison of two ordered maps.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::{Family, Frontend, Protocol};

/// A set or map whose elements come and go. There is one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum SetName {
    /// Address, protocol and port, to the chain that decides.
    Frontends,
    /// Protocol and port on any of [`SetName::NodeIps`], to the chain that decides.
    NodePorts,
    /// Addresses that nodePorts are served on.
    NodeIps,
    /// Addresses that Services have beside their cluster IPs, [`SetName::NodeIps`] among them.
    ExternalIps,
    /// Addresses that Services have.
    ClusterIps,
    /// Where cluster IPs come from.
    ServiceCidrs,
    /// Where pods of this node have their addresses.
    LocalPods,
    /// Where connections to endpoints are not tracked.
    Untracked,
    /// Frontends that are not for everybody, with a source that may.
    AllowedSources,
}

impl SetName {
    pub(super) const ALL: [Self; 9] = [
        Self::Frontends,
        Self::NodePorts,
        Self::NodeIps,
        Self::ExternalIps,
        Self::ClusterIps,
        Self::ServiceCidrs,
        Self::LocalPods,
        Self::Untracked,
        Self::AllowedSources,
    ];

    /// Whether it is a map, as nft has it.
    pub(super) fn is_map(self) -> bool {
        matches!(self, Self::Frontends | Self::NodePorts)
    }

    /// Its name in the table, but for the family's digit.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::NodePorts => "node_ports",
            Self::NodeIps => "node_ips",
            Self::ExternalIps => "external_ips",
            Self::ClusterIps => "cluster_ips",
            Self::ServiceCidrs => "service_cidrs",
            Self::LocalPods => "local_pods",
            Self::Untracked => "untracked",
            Self::AllowedSources => "allowed_sources",
        }
    }
}

/// A chain with one rule for each network: every packet between pods passes them, and few comparisons take a tenth of
/// the time that a look-up in a set of ranges does. There is one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum NetworkChain {
    /// Packets to pods.
    ToPods,
    /// Packets from pods.
    FromPods,
}

impl NetworkChain {
    pub(super) const ALL: [Self; 2] = [Self::ToPods, Self::FromPods];

    /// Its name in the table, but for the family's digit.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Self::ToPods => "to_pods",
            Self::FromPods => "from_pods",
        }
    }
}

/// Where an element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Set(SetName, Family),
    /// Its rules are written all at once, in the order of their keys.
    Rules(NetworkChain, Family),
}

/// As nft knows it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stem, family) = match self {
            Self::Set(set, family) => (set.stem(), family),
            Self::Rules(chain, family) => (chain.stem(), family),
        };
        write!(f, "{stem}{}", digit(*family))
    }
}

/// What ends the name of a set or chain of one family.
fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// A chain that decides about a new connection or flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Chain {
    /// Handed to a worker.
    Relay,
    /// TCP reset, ICMP port unreachable.
    Refuse,
    /// Silence.
    Discard,
    /// Relayed for this node's pods and processes; silence for everybody else.
    InsideOnly,
    /// Relayed for allowed sources; silence for everybody else. The next two likewise.
    GuardedRelay,
    GuardedRefuse,
    GuardedInsideOnly,
}

impl Chain {
    pub(super) const ALL: [Self; 7] = [
        Self::Relay,
        Self::Refuse,
        Self::Discard,
        Self::InsideOnly,
        Self::GuardedRelay,
        Self::GuardedRefuse,
        Self::GuardedInsideOnly,
    ];

    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Refuse => "refuse",
            Self::Discard => "discard",
            Self::InsideOnly => "inside_only",
            Self::GuardedRelay => "guarded_relay",
            Self::GuardedRefuse => "guarded_refuse",
            Self::GuardedInsideOnly => "guarded_inside_only",
        }
    }

    /// The chain of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|chain| chain.name() == name)
    }
}

/// What tells an element from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Frontend(Frontend),
    NodePort(Family, Protocol, u16),
    NodeIp(IpAddr),
    ExternalIp(IpAddr),
    ClusterIp(IpAddr),
    ServiceCidr(IpNet),
    LocalPods(IpNet),
    Untracked(IpNet),
    AllowedSource(Frontend, IpNet),
    /// What in a pod network is no pod's, and before that network.
    ToOthers(IpNet),
    /// The same, of Services: they may have any number of addresses there, so those are looked up, in a set that has them all.
    ToServices(SetName, Family),
    ToPods(IpNet),
    FromPods(IpNet),
}

impl Key {
    /// Where it belongs.
    pub(super) fn place(&self) -> Place {
        let set = |name, ip| Place::Set(name, Family::of(ip));
        let rules = |chain, network: &IpNet| Place::Rules(chain, Family::of(network.addr()));
        match self {
            Self::Frontend(frontend) => set(SetName::Frontends, frontend.address.ip()),
            Self::NodePort(family, ..) => Place::Set(SetName::NodePorts, *family),
            Self::NodeIp(ip) => set(SetName::NodeIps, *ip),
            Self::ExternalIp(ip) => set(SetName::ExternalIps, *ip),
            Self::ClusterIp(ip) => set(SetName::ClusterIps, *ip),
            Self::ServiceCidr(cidr) => set(SetName::ServiceCidrs, cidr.addr()),
            Self::LocalPods(cidr) => set(SetName::LocalPods, cidr.addr()),
            Self::Untracked(cidr) => set(SetName::Untracked, cidr.addr()),
            Self::AllowedSource(frontend, _) => set(SetName::AllowedSources, frontend.address.ip()),
            Self::ToOthers(network) | Self::ToPods(network) => rules(NetworkChain::ToPods, network),
            Self::FromPods(network) => rules(NetworkChain::FromPods, network),
            Self::ToServices(_, family) => Place::Rules(NetworkChain::ToPods, *family),
        }
    }
}

/// As nft reads it: `10.96.0.80 . tcp . 80`, or a rule.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frontend = |frontend: &Frontend, f: &mut fmt::Formatter<'_>| {
            let (ip, port) = (frontend.address.ip(), frontend.address.port());
            write!(f, "{ip} . {} . {port}", nft_protocol(frontend.protocol))
        };
        let of = |network: &IpNet| Family::of(network.addr());
        match self {
            Self::Frontend(this) => frontend(this, f),
            Self::NodePort(_, protocol, port) => write!(f, "{} . {port}", nft_protocol(*protocol)),
            Self::NodeIp(ip) | Self::ExternalIp(ip) | Self::ClusterIp(ip) => write!(f, "{ip}"),
            Self::ServiceCidr(cidr) | Self::LocalPods(cidr) | Self::Untracked(cidr) => write!(f, "{cidr}"),
            Self::ToOthers(network) => write!(f, "{} daddr {network} return", nft_family(of(network))),
            Self::ToServices(set, family) => {
                write!(f, "{} daddr @{} return", nft_family(*family), Place::Set(*set, *family))
            }
            Self::ToPods(network) => {
                write!(f, "{} daddr {network} goto between_pods", nft_family(of(network)))
            }
            Self::FromPods(network) => {
                let family = of(network);
                write!(f, "{} saddr {network} goto time_wait{}", nft_family(family), digit(family))
            }
            Self::AllowedSource(this, source) => {
                frontend(this, f)?;
                write!(f, " . {source}")
            }
        }
    }
}

/// The family as nft spells it.
fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The protocol as nft spells it.
pub(super) fn nft_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// What an element says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// It is in the set.
    Member,
    /// The map leads to this chain.
    Goto(Chain),
}

/// All elements of a table.
pub(super) type Elements = BTreeMap<Key, Value>;

/// What is to happen to an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    Add(Value),
    /// The kernel does not change the value of an element: it is deleted and added in one transaction.
    Replace(Value),
    Delete,
}

/// What is to happen to elements.
pub(super) type Delta = BTreeMap<Key, Edit>;

/// What makes one value of an element another; `None`: it is not there.
pub(super) fn edit(from: Option<Value>, to: Option<Value>) -> Option<Edit> {
    match (from, to) {
        (None, Some(value)) => Some(Edit::Add(value)),
        (Some(_), None) => Some(Edit::Delete),
        (Some(before), Some(value)) if before != value => Some(Edit::Replace(value)),
        _ => None,
    }
}

/// What makes one table's elements another's.
pub(super) fn difference(from: &Elements, to: &Elements) -> Delta {
    let kept_or_new =
        to.iter().filter_map(|(key, value)| Some((*key, edit(from.get(key).copied(), Some(*value))?)));
    let gone = from.keys().filter(|key| !to.contains_key(key)).map(|key| (*key, Edit::Delete));
    kept_or_new.chain(gone).collect()
}
