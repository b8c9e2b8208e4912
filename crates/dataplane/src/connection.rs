//! Listing the open connections: they are copied a part at a time, between a worker's events.
//!
//! Workers keep no state of a walk, because each part says where the next one begins. So an abandoned walk
//! costs nothing, and no more than one part is held at a time.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Protocol, ServicePortName};

/// The maximum number of connections in a part: about 50 us of a worker's time.
pub(crate) const PART: usize = 256;

/// A TCP session or a UDP flow as it was at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the client connects from.
    pub client: SocketAddr,
    /// Where the client connects to; `None` if the client's socket has just gone.
    pub frontend: Option<SocketAddr>,
    /// The Service port that it was opened for, which may have been removed since.
    pub service_port: Arc<ServicePortName>,
    /// The endpoint; while it connects, the one that is being tried.
    pub endpoint: Option<SocketAddr>,
    /// The state of the connection.
    pub state: ConnectionState,
    /// When it was accepted (TCP) or opened (UDP).
    pub began: Instant,
    /// When data was last relayed; until then, when the connection began.
    pub moved: Instant,
    /// Bytes of payload from the client that were written to the endpoint's socket.
    pub bytes_to_endpoint: u64,
    /// Bytes of payload from the endpoint that were written to the client's socket.
    pub bytes_from_endpoint: u64,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionState {
    /// TCP: no endpoint has answered so far.
    Connecting,
    /// TCP: open in both directions.
    Open,
    /// TCP: the client has sent a FIN.
    ClientClosed,
    /// TCP: the endpoint has sent a FIN.
    EndpointClosed,
    /// TCP: one side was reset; data that it sent before is still being delivered.
    Resetting,
    /// UDP: only the client has sent something.
    Unanswered,
    /// UDP: both the client and the endpoint have sent something.
    Answered,
}

/// The addresses of a UDP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEnds {
    /// Where the client sends from.
    pub client: SocketAddr,
    /// Where the client sends to.
    pub frontend: SocketAddr,
    /// Where the client's datagrams are forwarded to.
    pub endpoint: SocketAddr,
}

impl FlowEnds {
    /// The ends of a UDP flow; `None` for a TCP session.
    pub fn of(connection: &Connection) -> Option<Self> {
        let Connection { protocol, client, frontend, endpoint, .. } = *connection;
        let ends = frontend.zip(endpoint).filter(|_| protocol == Protocol::Udp);
        ends.map(|(frontend, endpoint)| Self { client, frontend, endpoint })
    }
}

/// Where a walk over a worker's connections continues; the default is its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(crate) protocol: Protocol,
    pub(crate) slot: usize,
}

impl Place {
    /// The beginning of a walk over the UDP flows only.
    pub const UDP: Self = Self { protocol: Protocol::Udp, slot: 0 };
}

impl Default for Place {
    fn default() -> Self {
        Self { protocol: Protocol::Tcp, slot: 0 }
    }
}

/// Some of a worker's connections.
#[derive(Debug, Default)]
pub struct Part {
    /// In no particular order.
    pub connections: Vec<Connection>,
    /// Where the next part begins, if there may be more.
    pub next: Option<Place>,
}

/// A request for the part at a place.
pub(crate) struct Look {
    pub(crate) place: Place,
    pub(crate) answer: Box<dyn FnOnce(Part) + Send>,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look").field("place", &self.place).finish_non_exhaustive()
    }
}
