//! What the admin socket answers: types that the agent writes and the commands read.
//!
//! They are what `-o json` shows, so they only grow: a field keeps its name and meaning, readers ignore what they do
//! not know, and what may be missing is said by its type.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The header in which an answer says the agent's version.
pub const VERSION_HEADER: &str = "sluice-version";

/// `/v1/status`: how the agent is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub process: u32,
    /// How connections get to endpoints: `bind`, `tproxy` or `socket`.
    pub mode: String,
    /// Whether connections get their endpoint at their sockets: `on` or `off`, and where or why not.
    #[serde(default)]
    pub at_sockets: String,
    /// The node's name.
    pub node: String,
    /// When it started (RFC 3339).
    pub started: String,
    /// For how long it has run.
    pub uptime_seconds: u64,
    /// Where Services come from: `apiserver` or `manifests`.
    pub source: String,
    /// Whether all Services are known.
    pub is_synced: bool,
    /// How old what is served may be, where it comes from an apiserver that was ever there.
    pub age_seconds: Option<f64>,
    /// Whether `/healthz` says that all is well.
    pub is_healthy: bool,
    /// Whether it is of use to let it go on: nothing hangs. `/livez` says less of it, as kube-proxy's does: a kernel whose rules
    /// cannot be changed is no reason to start anew.
    #[serde(default)]
    pub is_live: bool,
    /// Whether it serves, whatever becomes of the node: it is well itself, and what it was told has taken effect.
    #[serde(default)]
    pub is_ready: bool,
    /// Whether it was told to end and is letting connections finish.
    pub is_stopping: bool,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// Threads that carry traffic.
    pub workers: usize,
    /// What each of them is busy with.
    #[serde(default)]
    pub worker_loads: Vec<WorkerLoad>,
    /// What it may have at the most.
    pub limits: Limits,
    /// Services with an address here.
    pub services: usize,
    /// Addresses and ports that are served.
    pub frontends: usize,
    /// Addresses and ports that cannot be listened on.
    pub frontends_failed: usize,
    /// Endpoints, usable or not; one that several service ports have counts for each.
    pub endpoints: usize,
    /// Every counter of the data plane, and of sockets where anything is decided there, by its name in `/metrics`.
    pub counters: BTreeMap<String, u64>,
}

/// A worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerLoad {
    /// Time that it has had a processor since it started.
    pub cpu_seconds: f64,
    /// TCP sessions that it has.
    pub tcp_sessions: u64,
    /// UDP flows that it has.
    pub udp_flows: u64,
}

/// What an agent may have at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// File descriptors for traffic: two a TCP session.
    pub descriptors: usize,
    /// What one client may have of them, in a hundred.
    pub client_share_percent: u8,
    /// How long a UDP flow may be silent.
    pub udp_idle_seconds: u64,
    /// How long a half-closed TCP connection may stand still.
    pub tcp_half_closed_seconds: u64,
}

/// `/v1/services`: Services with an address here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceList {
    /// By namespace and name.
    pub items: Vec<Service>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ports, one for each family.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service in one family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; empty for a single one without.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How connections are balanced.
    pub balance: String,
    /// For how long an idle client keeps its endpoint, if it does.
    pub affinity_seconds: Option<u64>,
    /// Where clients connect to.
    pub frontends: Vec<Frontend>,
    /// Where connections may be led to, and endpoints that cannot serve.
    pub endpoints: Vec<Endpoint>,
    /// What was carried, by endpoints that are gone too.
    pub traffic: Traffic,
}

/// An address and port of a Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// What clients connect to.
    pub address: SocketAddr,
    /// The field of the Service: `clusterIP`, `externalIP`, `loadBalancer` or `nodePort`.
    pub kind: String,
    /// What happens to clients on this node.
    pub inside: Outcome,
    /// What happens to all others.
    pub outside: Outcome,
    /// The only sources that may connect; none for any.
    pub allowed_sources: Option<Vec<String>>,
}

/// What happens, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// What happens.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It is carried to an endpoint.
    Relay,
    /// It is refused.
    Refuse,
    /// It is ignored.
    Drop,
    /// It is none of the agent's business.
    Pass,
}

/// An endpoint of a service port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// What its slice says of it.
    pub state: EndpointState,
    /// For how long new connections pass it over, because it kept failing; unless all others fail too.
    pub passed_over_seconds: Option<f64>,
    /// Whether it is on this node.
    pub is_here: bool,
    /// Whether traffic policy Cluster leads to it.
    pub in_cluster_set: bool,
    /// Whether traffic policy Local leads to it.
    pub in_local_set: bool,
    /// What it has carried.
    pub traffic: Traffic,
}

/// What a slice says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointState {
    /// It takes new connections.
    Ready,
    /// It is terminating and still serves: it takes new connections where none is ready.
    Serving,
    /// It is terminating and does not serve.
    Terminating,
    /// It is not ready.
    NotReady,
}

/// Numbers of an endpoint or a service port, since the agent has known it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Connections and flows that are open.
    pub open: u64,
    /// Connections and flows that there were.
    pub total: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// Attempts to connect after another endpoint had failed.
    pub retried: u64,
    /// Bytes from clients.
    pub bytes_to_endpoint: u64,
    /// Bytes to clients.
    pub bytes_from_endpoint: u64,
    /// Of the connections that there were, those led to their endpoint at the client's socket. Their bytes are counted when
    /// they are over.
    #[serde(default)]
    pub translated: u64,
}

/// `/v1/connections`: live TCP sessions and UDP flows, and sockets that were led to their endpoint when they connected. Those that are open while the answer is found are in it once; of
/// those that begin or end meanwhile, some.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionList {
    /// In the order that was asked for, as many as were asked for.
    pub items: Vec<Connection>,
    /// How many there are, told or not.
    pub matched: usize,
    /// Those that an earlier answer had and that have ended since. Who asks again and again finds that out; no answer has it.
    #[serde(skip)]
    pub ended: Vec<Connection>,
}

/// A TCP session or a UDP flow, or a socket of this node that is connected to an endpoint itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Where the client connects from.
    pub client: SocketAddr,
    /// The namespace of the Service that it was opened for, which may be gone by now.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The port's name; empty for a single one without.
    pub port: String,
    /// Where the client connects to; none where its socket has just gone.
    pub frontend: Option<SocketAddr>,
    /// The endpoint; while it connects, the one that is being tried.
    pub endpoint: Option<SocketAddr>,
    /// How far it is.
    pub state: ConnectionState,
    /// Since it was established or opened; while it connects, since it was accepted.
    pub age_seconds: f64,
    /// Since something last came through. Nobody knows it of what is translated; so it is with the next two.
    pub idle_seconds: Option<f64>,
    /// Bytes from the client.
    pub bytes_to_endpoint: Option<u64>,
    /// Bytes to the client.
    pub bytes_from_endpoint: Option<u64>,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConnectionState {
    /// TCP: no endpoint has answered so far.
    Connecting,
    /// TCP: open both ways.
    Open,
    /// TCP: the client has sent its last.
    ClientClosed,
    /// TCP: the endpoint has sent its last.
    EndpointClosed,
    /// TCP: one side was reset; what it sent before is still on its way.
    Resetting,
    /// UDP: the client has sent something.
    Unanswered,
    /// UDP: and the endpoint has, too.
    Answered,
    /// The client's socket was led to the endpoint as it connected: the agent has no part in it.
    Translated,
}

/// `/v1/explain`: what would happen to a packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The client.
    pub client: IpAddr,
    /// Where it is taken to be: `localPod`, `node` or `outside`.
    pub origin: Origin,
    /// Why it is taken to be there.
    pub origin_why: String,
    /// Where it connects to.
    pub destination: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// What happens.
    pub outcome: Outcome,
    /// What happens before there is a packet, at the client's socket, where anything is decided there or was to be.
    #[serde(default)]
    pub at_socket: Option<AtSocket>,
    /// The service port that the destination is a frontend of.
    pub service_port: Option<String>,
    /// The field of the Service that it comes from.
    pub kind: Option<String>,
    /// How connections are balanced, where they are relayed.
    pub balance: Option<String>,
    /// For how long an idle client keeps its endpoint, if it does.
    pub affinity_seconds: Option<u64>,
    /// Whose address endpoints see: `client` or `node`; a client that is led to itself has the node's.
    pub source_address: Option<String>,
    /// The endpoints that connections spread over.
    pub endpoints: Vec<Endpoint>,
    /// What else there is to know, one sentence each.
    pub hints: Vec<String>,
}

/// What happens at a client's socket, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AtSocket {
    /// What happens.
    pub verdict: SocketVerdict,
    /// Why, in words.
    pub why: String,
}

/// What happens to a connection at its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketVerdict {
    /// It is led to an endpoint.
    Translate,
    /// It is refused.
    Refuse,
    /// Nothing: what happens, happens to its packets.
    Pass,
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A pod of this node.
    #[value(name = "pod")]
    LocalPod,
    /// A process in the node's own network.
    #[value(name = "node")]
    Node,
    /// Anywhere else.
    #[value(name = "outside")]
    Outside,
}

/// An answer that says what was wrong with the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Complaint {
    /// A sentence.
    pub error: String,
}
