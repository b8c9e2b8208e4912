//! What is so on this node, as far as it matters for capturing.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_capture::kube_proxy::Found;
use sluice_capture::tproxy::{MarkRule, marks};
use sluice_model::Family;

use crate::running::Sign;

/// Everything that is judged.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub capabilities: Capabilities,
    /// The first port that anybody may bind (`net.ipv4.ip_unprivileged_port_start`).
    pub first_free_port: Option<u64>,
    /// The kernel's release, as uname says it.
    pub kernel: String,
    /// The version of nft, or why there is none.
    pub nft: Result<String, String>,
    /// What the kernel was asked for through nft, and what it said. Empty where it could not be asked.
    pub features: Vec<(Feature, Result<(), Lacking>)>,
    /// Whether sockets can be made transparent, in the families that the kernel has.
    pub transparent: Vec<(Family, Result<(), String>)>,
    /// Signs of a kube-proxy that runs.
    pub kube_proxy: Vec<Sign>,
    /// Whether processes outside of this container can be seen.
    pub sees_all_processes: bool,
    /// What kube-proxy has made; or why that cannot be said.
    pub leftovers: Result<Found, String>,
    /// What is to be so on `all` interfaces, and each interface.
    pub interfaces: Vec<Interface>,
    /// Whether packets are forwarded, in the families that the kernel has.
    pub forwarding: Vec<(Family, bool)>,
    /// Entries of the connection tracking, and how many there may be.
    pub conntrack: Option<(u64, u64)>,
    /// The limit on open files that can be had; none for no limit.
    pub descriptors: Option<u64>,
    /// How long queues of connections to be accepted may be (`net.core.somaxconn`).
    pub backlog: Option<u64>,
    /// The ports that the kernel gives to connections, first and last.
    pub local_ports: Option<(u16, u16)>,
    /// Ports that it does not (`net.ipv4.ip_local_reserved_ports`), first and last of each range.
    pub reserved_ports: Vec<(u16, u16)>,
    /// Whether ports in TIME_WAIT may be taken again (`net.ipv4.tcp_tw_reuse`).
    pub tw_reuse: Option<u64>,
    pub bridges: Vec<Bridge>,
    /// Whether packets on bridges pass the rules for packets of the IP layer, in the families where that is
    /// known (`net.bridge.bridge-nf-call-iptables`).
    pub bridge_rules: Vec<(Family, bool)>,
    /// Policy rules of others that go by packets' marks; or why that cannot be said.
    pub mark_rules: Result<Vec<MarkRule>, String>,
    /// What others have in nftables; or why that cannot be said. None where it could not be asked.
    pub others_chains: Option<Result<OthersChains, String>>,
    /// Programs of iptables-legacy and the tables that they have.
    pub legacy_tables: Vec<(&'static str, String)>,
    /// The name of this node and what the cluster has under it; none where an agent asks, which finds out by itself.
    pub node: Option<(String, NodeObject)>,
}

/// The Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeObject {
    /// It is there. Of its addresses those that lie in a range of Services, with that.
    There(Vec<(IpAddr, IpNet)>),
    Missing,
    /// No apiserver is named.
    NobodyToAsk,
    /// Why it cannot be said.
    Unknown(String),
}

/// What this process may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
    /// CAP_NET_BIND_SERVICE.
    pub net_bind_service: bool,
    /// CAP_NET_RAW.
    pub net_raw: bool,
}

/// Something that the rules need of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Feature {
    pub name: &'static str,
    /// The kernel's name for it.
    pub option: &'static str,
    /// A ruleset that needs it. Is only checked, never committed.
    pub ruleset: &'static str,
}

/// Why it is not known that the kernel has something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lacking {
    /// It was asked, and says so.
    Refused(String),
    /// It could not be asked.
    Unknown(String),
}

/// Settings of one interface, or of `all`.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub name: String,
    /// Whether the mark counts when it is looked whether a packet came from the right side.
    pub src_valid_mark: bool,
    /// Whether addresses of 127.0.0.0/8 may come in.
    pub route_localnet: bool,
}

/// A bridge that pods may be on.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    pub name: String,
    /// Whether it has interfaces of pods, or others whose other end is elsewhere.
    pub has_pods: bool,
}

/// Chains of others that have a say about packets to Services, or are thought to.
#[derive(Debug, Clone, Default)]
pub(super) struct OthersChains {
    /// Those that decide about packets to this node, or of its processes, and refuse what nothing allows.
    pub closed: Vec<ClosedChain>,
    /// Who enforces network policies where packets are forwarded.
    pub enforcers: Vec<Enforcer>,
}

/// Where a chain decides about what a relay receives or sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// About packets to this node, captured ones among them.
    Input,
    /// About packets of this node's processes: of the relay, to clients and to endpoints.
    Output,
}

impl Hook {
    pub(super) const ALL: [Self; 2] = [Self::Input, Self::Output];

    /// As nft spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }

    /// What tells the packets that are relayed from others there: the bits of the mark that count, and what they are.
    pub(super) fn mark(self) -> (u32, u32) {
        match self {
            Self::Input => (marks::MASK, marks::CAPTURED),
            Self::Output => {
                (marks::WHOSE & !(marks::DOWNSTREAM ^ marks::UPSTREAM), marks::DOWNSTREAM & marks::UPSTREAM)
            }
        }
    }
}

/// A chain that refuses what it does not accept.
#[derive(Debug, Clone)]
pub(super) struct ClosedChain {
    pub hook: Hook,
    /// Family, table and name, as nft spells them.
    pub name: String,
    /// Whether a rule accepts what has the mark of packets that are relayed.
    pub accepts_mark: bool,
}

/// A program that enforces network policies at the forward hook.
#[derive(Debug, Clone)]
pub(super) struct Enforcer {
    pub name: &'static str,
    /// Family, table and name of the chain that it was known by.
    pub chain: String,
    /// Whether policies select pods of this node.
    pub has_policies: bool,
}
