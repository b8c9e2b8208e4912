//! What is to come of a connection, written down from the rules of Services and not from our code: for each
//! kind of address, client, policy and place of endpoints, who answers and which source address it sees.

/// By which of its addresses a Service is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancer,
}

/// Where the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Pod,
    Node,
    Outside,
}

/// Both traffic policies of the Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Cluster,
    Local,
}

/// Where the Service has ready endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Here,
    ElsewhereOnly,
    Nowhere,
}

/// What is to come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// One of these endpoints answers, and sees this address.
    Answered(Who, Source),
    /// The client is told at once.
    Refused,
    /// The client hears nothing.
    Dropped,
}

/// Which endpoints may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// All that there are, in turn.
    All,
    /// Those on this node.
    Local,
}

/// Whose address an endpoint sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Client,
    Node,
}

pub const KINDS: [Kind; 4] = [Kind::ClusterIp, Kind::NodePort, Kind::ExternalIp, Kind::LoadBalancer];
pub const CLIENTS: [Client; 3] = [Client::Pod, Client::Node, Client::Outside];
pub const POLICIES: [Policy; 2] = [Policy::Cluster, Policy::Local];
pub const PLACES: [Place; 3] = [Place::Here, Place::ElsewhereOnly, Place::Nowhere];

/// The rules, for a node with `--cluster-cidr`.
pub fn fate(kind: Kind, client: Client, policy: Policy, place: Place) -> Fate {
    use Fate::{Answered, Dropped, Refused};
    let local_or_drop = |source| match place {
        Place::Here => Answered(Who::Local, source),
        _ => Dropped,
    };
    match (kind, policy, client) {
        // No endpoint anywhere: refused on every address, whatever the policy.
        _ if place == Place::Nowhere => Refused,

        // Cluster IPs: a pod keeps its address; others could not be sure to get replies through this node.
        (Kind::ClusterIp, Policy::Cluster, Client::Pod) => Answered(Who::All, Source::Client),
        (Kind::ClusterIp, Policy::Cluster, _) => Answered(Who::All, Source::Node),
        // Their policy Local has no exceptions.
        (Kind::ClusterIp, Policy::Local, Client::Pod) => local_or_drop(Source::Client),
        (Kind::ClusterIp, Policy::Local, _) => local_or_drop(Source::Node),

        // External addresses: always the node's,
        (_, Policy::Cluster, _) => Answered(Who::All, Source::Node),
        // but for policy Local. Who is on this node is not bound by it.
        (_, Policy::Local, Client::Pod) => Answered(Who::All, Source::Client),
        (_, Policy::Local, Client::Node) => Answered(Who::All, Source::Node),
        (_, Policy::Local, Client::Outside) => local_or_drop(Source::Client),
    }
}

/// Whether the programs of socket mode translate what is answered. All others are left to the relay: at other addresses
/// than the cluster IP endpoints see the node's address, or not all clients have the same endpoints. The lab's clients
/// outside are sockets of this kernel that are not the node's, and look like pods.
pub fn is_translated(kind: Kind, client: Client) -> bool {
    kind == Kind::ClusterIp || client == Client::Node
}
