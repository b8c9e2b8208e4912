//! Frontends: what clients connect to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A transport protocol that Sluice carries. SCTP is not: objects that name it are reported and
/// that port skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

/// As Kubernetes spells it: `TCP`, `UDP`.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// An IP address family. A dual-stack Service is served as two independent halves, as kube-proxy
/// does with its two proxiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// As Kubernetes spells it: `IPv4`, `IPv6`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address, port and protocol that clients use to reach a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Address and port as the client sees them.
    pub address: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// A frontend from its parts.
    pub fn new(ip: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { address: SocketAddr::new(ip, port), protocol }
    }
}

/// `10.96.0.80:80/TCP`.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// Which field of the Service a frontend comes from. It decides which traffic policy holds, whether
/// source ranges guard it, and the source address that endpoints see.
///
/// The order is that of precedence when one Service names the same address twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`: internal traffic.
    ClusterIp,
    /// `spec.externalIPs`: external traffic.
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`: external traffic.
    LoadBalancer,
    /// `spec.ports[].nodePort` on the node's own addresses: external traffic.
    NodePort,
}

impl FrontendKind {
    /// Whether `externalTrafficPolicy` (rather than `internalTrafficPolicy`) decides.
    pub fn is_external(self) -> bool {
        self != Self::ClusterIp
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "clusterIP",
            Self::ExternalIp => "externalIP",
            Self::LoadBalancer => "loadBalancer",
            Self::NodePort => "nodePort",
        })
    }
}
