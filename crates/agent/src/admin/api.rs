//! The answers of the admin socket: types that the agent writes and the commands read.
//!
//! `-o json` shows them, so they only grow: a field keeps its name and meaning, readers ignore unknown fields,
//! and fields that may be missing have a type that says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The header with the agent's version.
pub const VERSION_HEADER: &str = "sluice-version";

/// `/v1/status`: the agent's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub process: u32,
    /// How connections get to endpoints: `bind`, `tproxy` or `socket`.
    pub mode: String,
    /// Whether connections get their endpoint at the client's socket: `on` or `off`, and where or why not.
    #[serde(default)]
    pub at_sockets: String,
    /// The node's name.
    pub node: String,
    /// When the agent started (RFC 3339).
    pub started: String,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// Where Services come from: `apiserver` or `manifests`.
    pub source: String,
    /// Whether all Services are known.
    pub is_synced: bool,
    /// How old the served state may be, if it comes from an apiserver that has ever answered.
    pub age_seconds: Option<f64>,
    /// Whether `/healthz` reports that all is well.
    pub is_healthy: bool,
    /// Whether nothing hangs, so that a restart would not help. `/livez` follows kube-proxy instead and fails if
    /// the kernel's rules cannot be changed, which is no reason for a restart.
    #[serde(default)]
    pub is_live: bool,
    /// Whether it serves, whatever becomes of the node: it is healthy, and all changes have taken effect.
    #[serde(default)]
    pub is_ready: bool,
    /// Whether it was told to end and is letting connections finish.
    pub is_stopping: bool,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// How many threads carry traffic.
    pub workers: usize,
    /// The load of each of them.
    #[serde(default)]
    pub worker_loads: Vec<WorkerLoad>,
    /// Upper limits.
    pub limits: Limits,
    /// Services with an address here.
    pub services: usize,
    /// Addresses and ports that are served.
    pub frontends: usize,
    /// Addresses and ports that cannot be listened on.
    pub frontends_failed: usize,
    /// Endpoints, usable or not; one that several service ports have counts for each.
    pub endpoints: usize,
    /// Every counter of the data plane, and of socket mode if it is on, by its name in `/metrics`.
    pub counters: BTreeMap<String, u64>,
}

/// A worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerLoad {
    /// Processor time since it started.
    pub cpu_seconds: f64,
    /// Its TCP sessions.
    pub tcp_sessions: u64,
    /// Its UDP flows.
    pub udp_flows: u64,
}

/// An agent's upper limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// File descriptors for traffic: two a TCP session.
    pub descriptors: usize,
    /// The share of them that one client may have, in percent.
    pub client_share_percent: u8,
    /// How long a UDP flow may be silent.
    pub udp_idle_seconds: u64,
    /// How long a half-closed TCP connection may be idle.
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
    /// Its name; empty if the only port has none.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How connections are balanced.
    pub balance: String,
    /// How long an idle client keeps its endpoint, if it does.
    pub affinity_seconds: Option<u64>,
    /// The addresses that clients connect to.
    pub frontends: Vec<Frontend>,
    /// Its endpoints, including those that cannot serve.
    pub endpoints: Vec<Endpoint>,
    /// What was carried, including by endpoints that are gone.
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
    /// The only sources that may connect; `None` if all may.
    pub allowed_sources: Option<Vec<String>>,
}

/// What happens to a connection, and why.
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
    /// It goes to an endpoint.
    Relay,
    /// It is refused.
    Refuse,
    /// It is ignored.
    Drop,
    /// It is left alone.
    Pass,
}

/// An endpoint of a service port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Its state by its slice.
    pub state: EndpointState,
    /// For how long new connections avoid it because it kept failing, unless all others fail too.
    pub passed_over_seconds: Option<f64>,
    /// Whether it is on this node.
    pub is_here: bool,
    /// Whether it is used under traffic policy Cluster.
    pub in_cluster_set: bool,
    /// Whether it is used under traffic policy Local.
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
    /// It is terminating and still serves: it takes new connections if no endpoint is ready.
    Serving,
    /// It is terminating and does not serve.
    Terminating,
    /// It is not ready.
    NotReady,
}

/// Counters of an endpoint or a service port, since the agent has known it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Open connections and flows.
    pub open: u64,
    /// All connections and flows so far.
    pub total: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// Attempts to connect after another endpoint had failed.
    pub retried: u64,
    /// Bytes from clients.
    pub bytes_to_endpoint: u64,
    /// Bytes to clients.
    pub bytes_from_endpoint: u64,
    /// How many of all connections were translated at the client's socket. Their bytes are counted when they
    /// end.
    #[serde(default)]
    pub translated: u64,
}

/// `/v1/connections`: live TCP sessions and UDP flows, and translated sockets. Connections that are open all
/// the time while the answer is collected are in it once; of those that begin or end meanwhile, some are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionList {
    /// The first ones in the requested order.
    pub items: Vec<Connection>,
    /// How many connections match, listed or not.
    pub matched: usize,
    /// Connections in an earlier answer that have ended since. Found by a client that asks repeatedly; no
    /// answer has it.
    #[serde(skip)]
    pub ended: Vec<Connection>,
}

/// A TCP session, a UDP flow, or a translated socket of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The client's address.
    pub client: SocketAddr,
    /// The namespace of the Service that it was opened for, which may be gone by now.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The port's name; empty if the only port has none.
    pub port: String,
    /// The address that the client connects to; `None` if its socket has just gone.
    pub frontend: Option<SocketAddr>,
    /// The endpoint; while connecting, the one that is being tried.
    pub endpoint: Option<SocketAddr>,
    /// The connection's state.
    pub state: ConnectionState,
    /// Time since it was established or opened; while connecting, since it was accepted.
    pub age_seconds: f64,
    /// Time since the last data. Unknown for translated sockets, as are the next two.
    pub idle_seconds: Option<f64>,
    /// Bytes from the client.
    pub bytes_to_endpoint: Option<u64>,
    /// Bytes to the client.
    pub bytes_from_endpoint: Option<u64>,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConnectionState {
    /// TCP: no endpoint has answered yet.
    Connecting,
    /// TCP: open both ways.
    Open,
    /// TCP: the client has closed its side.
    ClientClosed,
    /// TCP: the endpoint has closed its side.
    EndpointClosed,
    /// TCP: one side was reset; what it sent before is still being delivered.
    Resetting,
    /// UDP: only the client has sent something.
    Unanswered,
    /// UDP: the endpoint has answered.
    Answered,
    /// The client's socket was translated when it connected: the agent takes no part.
    Translated,
}

/// `/v1/explain`: what would happen to a packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The client.
    pub client: IpAddr,
    /// Its assumed place: `localPod`, `node` or `outside`.
    pub origin: Origin,
    /// The reason for that assumption.
    pub origin_why: String,
    /// The address that it connects to.
    pub destination: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// What happens.
    pub outcome: Outcome,
    /// What happens earlier, at the client's socket, if socket mode is on or was asked for.
    #[serde(default)]
    pub at_socket: Option<AtSocket>,
    /// The service port that the destination is a frontend of.
    pub service_port: Option<String>,
    /// The field of the Service from which the destination comes.
    pub kind: Option<String>,
    /// How connections are balanced, if they are relayed.
    pub balance: Option<String>,
    /// How long an idle client keeps its endpoint, if it does.
    pub affinity_seconds: Option<u64>,
    /// Whose address endpoints see: `client` or `node`. A client whose endpoint is itself has the node's.
    pub source_address: Option<String>,
    /// The endpoints among which connections are balanced.
    pub endpoints: Vec<Endpoint>,
    /// Further remarks, one sentence each.
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

/// What happens to a connection at the client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketVerdict {
    /// It is translated to an endpoint.
    Translate,
    /// It is refused.
    Refuse,
    /// Nothing: its packets decide.
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

/// The answer to a bad question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Complaint {
    /// A sentence.
    pub error: String,
}
