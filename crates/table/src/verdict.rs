//! What happens to a connection, and why it is not relayed.

use std::fmt;

/// What happens to a new connection or flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is relayed to an endpoint.
    Relay,
    /// It is refused: TCP reset, UDP port unreachable.
    Refuse(Reason),
    /// It is silently dropped.
    Drop(Reason),
}

/// Why a connection is not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No endpoint of the Service is usable anywhere in the cluster.
    NoEndpoints,
    /// The traffic policy is Local and the usable endpoints are all on other nodes.
    NoLocalEndpoints,
    /// The Service's connection limit is reached (`sluice.dev/max-connections`). This is found when a
    /// connection comes; frontends are never offered to the capture with this reason.
    TooManyConnections,
    /// The client is outside `loadBalancerSourceRanges`.
    SourceNotAllowed,
    /// The address is a cluster IP of a Service that has no such port.
    NoSuchPort,
    /// The address lies in a ServiceCIDR, and no Service has it.
    Unallocated,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay => f.write_str("relay"),
            Self::Refuse(reason) => write!(f, "refuse: {reason}"),
            Self::Drop(reason) => write!(f, "drop: {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoints => "no usable endpoint in the cluster",
            Self::NoLocalEndpoints => "policy Local, and no usable endpoint on this node",
            Self::TooManyConnections => "as many connections as sluice.dev/max-connections allows",
            Self::SourceNotAllowed => "client outside loadBalancerSourceRanges",
            Self::NoSuchPort => "the Service with this address has no such port",
            Self::Unallocated => "no Service has this address of a ServiceCIDR",
        })
    }
}

impl Reason {
    /// A stable name: the value of a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::NoLocalEndpoints => "no_local_endpoints",
            Self::TooManyConnections => "too_many_connections",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::NoSuchPort => "no_such_port",
            Self::Unallocated => "unallocated",
        }
    }
}
