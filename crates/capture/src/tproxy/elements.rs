//! Elements of the table's sets and maps, and their changes. Plain data.
//!
//! The same type is used for wanted elements, for those that the kernel lists, and for the changes of a
//! transaction. So a difference is a comparison of two ordered maps.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::{Family, Frontend, Protocol};

/// A set or map whose elements change. There is one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum SetName {
    /// From address, protocol and port to the chain that decides.
    Frontends,
    /// From protocol and port, on any of [`SetName::NodeIps`], to the chain that decides.
    NodePorts,
    /// Addresses on which nodePorts are served.
    NodeIps,
    /// Addresses of Services other than cluster IPs, including [`SetName::NodeIps`].
    ExternalIps,
    /// Cluster IPs of Services.
    ClusterIps,
    /// The ranges of cluster IPs.
    ServiceCidrs,
    /// Networks of this node's pods.
    LocalPods,
    /// Networks of endpoints whose connections are not tracked.
    Untracked,
    /// Restricted frontends, with the sources that may use them.
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

    /// Whether it is a map, in nft's terms.
    pub(super) fn is_map(self) -> bool {
        matches!(self, Self::Frontends | Self::NodePorts)
    }

    /// Its name in the table, without the family's digit.
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

/// A chain with one rule for each network. Every packet between pods passes it, and a few comparisons take a
/// tenth of the time of a look-up in a set of ranges. There is one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum NetworkChain {
    /// Packets to pods.
    ToPods,
    /// Packets from pods.
    FromPods,
}

impl NetworkChain {
    pub(super) const ALL: [Self; 2] = [Self::ToPods, Self::FromPods];

    /// Its name in the table, without the family's digit.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Self::ToPods => "to_pods",
            Self::FromPods => "from_pods",
        }
    }
}

/// The place of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Set(SetName, Family),
    /// A chain whose rules are written all at once, in the order of their keys.
    Rules(NetworkChain, Family),
}

/// The name for nft.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stem, family) = match self {
            Self::Set(set, family) => (set.stem(), family),
            Self::Rules(chain, family) => (chain.stem(), family),
        };
        write!(f, "{stem}{}", digit(*family))
    }
}

/// The last character of the name of a family's set or chain.
fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// A chain that decides about a new connection or flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Chain {
    /// Passed to a worker.
    Relay,
    /// TCP reset, ICMP port unreachable.
    Refuse,
    /// Dropped silently.
    Discard,
    /// Relayed for this node's pods and processes; dropped for others.
    InsideOnly,
    /// Relayed for allowed sources; dropped for others. The next two likewise.
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

/// The identity of an element.
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
    /// Addresses in a pod network that are not pods'; they precede the network.
    ToOthers(IpNet),
    /// The same for Services. There may be any number of such addresses, so they are looked up in a set that has
    /// all of them.
    ToServices(SetName, Family),
    ToPods(IpNet),
    FromPods(IpNet),
}

impl Key {
    /// The place where it belongs.
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

/// The form for nft: `10.96.0.80 . tcp . 80`, or a rule.
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

/// The value of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// It is in the set.
    Member,
    /// The map leads to this chain.
    Goto(Chain),
}

/// All elements of a table.
pub(super) type Elements = BTreeMap<Key, Value>;

/// A change of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    Add(Value),
    /// The kernel does not change the value of an element: it is deleted and added in one transaction.
    Replace(Value),
    Delete,
}

/// Changes of elements.
pub(super) type Delta = BTreeMap<Key, Edit>;

/// The change from one value of an element to another; `None` means that it does not exist.
pub(super) fn edit(from: Option<Value>, to: Option<Value>) -> Option<Edit> {
    match (from, to) {
        (None, Some(value)) => Some(Edit::Add(value)),
        (Some(_), None) => Some(Edit::Delete),
        (Some(before), Some(value)) if before != value => Some(Edit::Replace(value)),
        _ => None,
    }
}

/// The changes from one table's elements to another's.
pub(super) fn difference(from: &Elements, to: &Elements) -> Delta {
    let kept_or_new =
        to.iter().filter_map(|(key, value)| Some((*key, edit(from.get(key).copied(), Some(*value))?)));
    let gone = from.keys().filter(|key| !to.contains_key(key)).map(|key| (*key, Edit::Delete));
    kept_or_new.chain(gone).collect()
}
