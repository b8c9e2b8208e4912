//! The facts about this node that matter for capturing.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_capture::kube_proxy::Found;
use sluice_capture::tproxy::{MarkRule, marks};
use sluice_model::Family;

use crate::running::Sign;

/// All facts that are judged.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub capabilities: Capabilities,
    /// The first port that anybody may bind (`net.ipv4.ip_unprivileged_port_start`).
    pub first_free_port: Option<u64>,
    /// The kernel's release, as in uname.
    pub kernel: String,
    /// The version of nft, or why it is unknown.
    pub nft: Result<String, String>,
    /// The features that the kernel was asked for through nft, and its answers. Empty if it could not be asked.
    pub features: Vec<(Feature, Result<(), Lacking>)>,
    /// Whether sockets can be made transparent, for the families that the kernel has.
    pub transparent: Vec<(Family, Result<(), String>)>,
    /// Signs of a running kube-proxy.
    pub kube_proxy: Vec<Sign>,
    /// Whether processes outside this container are visible.
    pub sees_all_processes: bool,
    /// What kube-proxy has created, or why that is unknown.
    pub leftovers: Result<Found, String>,
    /// Settings of `all` interfaces, and of each interface.
    pub interfaces: Vec<Interface>,
    /// Whether packets are forwarded, for the families that the kernel has.
    pub forwarding: Vec<(Family, bool)>,
    /// Entries in connection tracking, and their limit.
    pub conntrack: Option<(u64, u64)>,
    /// The highest possible limit on open files; `None` if there is none.
    pub descriptors: Option<u64>,
    /// The longest possible accept queue (`net.core.somaxconn`).
    pub backlog: Option<u64>,
    /// The ephemeral ports, first and last.
    pub local_ports: Option<(u16, u16)>,
    /// Ports that are reserved from these (`net.ipv4.ip_local_reserved_ports`), first and last of each range.
    pub reserved_ports: Vec<(u16, u16)>,
    /// Whether ports in TIME_WAIT may be reused (`net.ipv4.tcp_tw_reuse`).
    pub tw_reuse: Option<u64>,
    pub bridges: Vec<Bridge>,
    /// Whether packets on bridges pass the rules of the IP layer, for the families for which it is known
    /// (`net.bridge.bridge-nf-call-iptables`).
    pub bridge_rules: Vec<(Family, bool)>,
    /// Others' policy rules that match packet marks, or why they are unknown.
    pub mark_rules: Result<Vec<MarkRule>, String>,
    /// Others' chains in nftables, or why they are unknown. `None` if nftables could not be asked.
    pub others_chains: Option<Result<OthersChains, String>>,
    /// The tables of iptables-legacy, with the program for each.
    pub legacy_tables: Vec<(&'static str, String)>,
    /// The name of this node, and the Node object of that name; `None` in an agent, which finds out by itself.
    pub node: Option<(String, NodeObject)>,
}

/// The Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeObject {
    /// It exists. These of its addresses are in a Service range, with the range.
    There(Vec<(IpAddr, IpNet)>),
    Missing,
    /// No apiserver is named.
    NobodyToAsk,
    /// It is unknown, for this reason.
    Unknown(String),
}

/// The capabilities of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
    /// CAP_NET_BIND_SERVICE.
    pub net_bind_service: bool,
    /// CAP_NET_RAW.
    pub net_raw: bool,
}

/// A feature of the kernel that the rules need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Feature {
    pub name: &'static str,
    /// The kernel's name for it.
    pub option: &'static str,
    /// A ruleset that needs it. It is only checked, never committed.
    pub ruleset: &'static str,
}

/// Why the kernel is not known to have a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lacking {
    /// The kernel says that it does not.
    Refused(String),
    /// The kernel could not be asked.
    Unknown(String),
}

/// Settings of one interface, or of `all`.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub name: String,
    /// Whether the mark counts in the reverse path check.
    pub src_valid_mark: bool,
    /// Whether packets for 127.0.0.0/8 may come in.
    pub route_localnet: bool,
}

/// A bridge on which pods may be.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    pub name: String,
    /// Whether interfaces of pods are on it, or others whose peer is elsewhere.
    pub has_pods: bool,
}

/// Others' chains that decide about packets to Services, or are believed to.
#[derive(Debug, Clone, Default)]
pub(super) struct OthersChains {
    /// Chains for packets to this node or from its processes that drop what nothing accepts.
    pub closed: Vec<ClosedChain>,
    /// Programs that enforce network policies at the forward hook.
    pub enforcers: Vec<Enforcer>,
}

/// A hook at which a chain decides about the relay's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Packets to this node, including captured ones.
    Input,
    /// Packets of this node's processes: from the relay to clients and to endpoints.
    Output,
}

impl Hook {
    pub(super) const ALL: [Self; 2] = [Self::Input, Self::Output];

    /// nft's name for the hook.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }

    /// The mask and the mark of relayed packets at this hook.
    pub(super) fn mark(self) -> (u32, u32) {
        match self {
            Self::Input => (marks::MASK, marks::CAPTURED),
            Self::Output => {
                (marks::WHOSE & !(marks::DOWNSTREAM ^ marks::UPSTREAM), marks::DOWNSTREAM & marks::UPSTREAM)
            }
        }
    }
}

/// A chain that drops what it does not accept.
#[derive(Debug, Clone)]
pub(super) struct ClosedChain {
    pub hook: Hook,
    /// Family, table and name, as in nft.
    pub name: String,
    /// Whether a rule accepts packets with the mark of relayed ones.
    pub accepts_mark: bool,
}

/// A program that enforces network policies at the forward hook.
#[derive(Debug, Clone)]
pub(super) struct Enforcer {
    pub name: &'static str,
    /// Family, table and name of the chain by which it was recognised.
    pub chain: String,
    /// Whether policies select pods of this node.
    pub has_policies: bool,
}
