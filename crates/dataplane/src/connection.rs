//! What is open, for whoever looks: connections are copied a few at a time, between a worker's events.
//!
//! Nobody's walk is remembered by a worker: each part says where the next one begins. So a walk that is not gone on
//! with has ended, and no more is held than one part.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Protocol, ServicePortName};

/// Connections in a part, at the most: some 50 us of a worker's time.
pub(crate) const PART: usize = 256;

/// A TCP session or a UDP flow as it was at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the client connects from.
    pub client: SocketAddr,
    /// Where it connects to; none where the client's socket has just gone.
    pub frontend: Option<SocketAddr>,
    /// The port of the Service that it was opened for, which may be gone by now.
    pub service_port: Arc<ServicePortName>,
    /// The endpoint; while it connects, the one that is being tried.
    pub endpoint: Option<SocketAddr>,
    /// How far it is.
    pub state: ConnectionState,
    /// When it was accepted (TCP) or opened (UDP).
    pub began: Instant,
    /// When something last came through; while nothing has, when it began.
    pub moved: Instant,
    /// Bytes of payload from the client that the endpoint's socket has taken.
    pub bytes_to_endpoint: u64,
    /// Bytes of payload from the endpoint that the client's socket has taken.
    pub bytes_from_endpoint: u64,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
}

/// Who talks to whom by a UDP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEnds {
    /// Where the client sends from.
    pub client: SocketAddr,
    /// Where the client sends to.
    pub frontend: SocketAddr,
    /// Where its datagrams are sent on to.
    pub endpoint: SocketAddr,
}

impl FlowEnds {
    /// Those of a UDP flow; `None` of a TCP session.
    pub fn of(connection: &Connection) -> Option<Self> {
        let Connection { protocol, client, frontend, endpoint, .. } = *connection;
        let ends = frontend.zip(endpoint).filter(|_| protocol == Protocol::Udp);
        ends.map(|(frontend, endpoint)| Self { client, frontend, endpoint })
    }
}

/// Where a walk over a worker's connections goes on; it begins at the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(crate) protocol: Protocol,
    pub(crate) slot: usize,
}

impl Place {
    /// Where a walk over the UDP flows alone begins.
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
    /// Where the next ones are, if there may be more.
    pub next: Option<Place>,
}

/// Somebody who wants the part at a place.
pub(crate) struct Look {
    pub(crate) place: Place,
    pub(crate) answer: Box<dyn FnOnce(Part) + Send>,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look").field("place", &self.place).finish_non_exhaustive()
    }
}
