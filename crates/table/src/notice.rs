//! What the table reports to people about objects that do not fit together.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use sluice_model::{Frontend, FrontendKind, ObjectName, ServicePortName};

/// A part of an object that has no effect, and why. Reported once, when it arises.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Notice {
    /// Two Services with endpoints name the same frontend.
    Conflict {
        /// The frontend.
        frontend: Frontend,
        /// The service port that it leads to.
        holder: ServicePortName,
        /// The service port that does not get it.
        claimant: ServicePortName,
    },
    /// A Service names an address at which the agent reaches the apiserver.
    Apiserver {
        /// The frontend, which is left out.
        frontend: Frontend,
        /// Which field of the Service it comes from.
        kind: FrontendKind,
        /// The service port that does not get it.
        port: ServicePortName,
    },
    /// An endpoint is an address of its own Service.
    Loop {
        /// The service port.
        port: ServicePortName,
        /// The endpoint, which is left out.
        endpoint: SocketAddr,
    },
    /// An endpoint is a cluster IP of any Service.
    ClusterIpEndpoint {
        /// The service port.
        port: ServicePortName,
        /// The endpoint, which is left out.
        endpoint: SocketAddr,
    },
    /// The annotation `sluice.dev/balance` names no balancing policy.
    UnknownBalance {
        /// The Service.
        service: ObjectName,
        /// The annotation's value, truncated to fit on a line.
        value: Arc<str>,
    },
    /// An annotation below `sluice.dev/` is unknown.
    UnknownAnnotation {
        /// The Service.
        service: ObjectName,
        /// The annotation, without its prefix, truncated to fit on a line.
        name: Arc<str>,
    },
}

impl Notice {
    /// The maximum number of characters that are quoted of user-supplied text, which may be as long as an
    /// object may be.
    const SAID: usize = 300;

    /// The annotation `sluice.dev/balance` of a Service names no balancing policy.
    pub(crate) fn unknown_balance(service: ObjectName, value: &str) -> Self {
        Self::UnknownBalance { service, value: said(value) }
    }

    /// A Service has an unknown annotation below `sluice.dev/`.
    pub(crate) fn unknown_annotation(service: ObjectName, name: &str) -> Self {
        Self::UnknownAnnotation { service, name: said(name) }
    }

    /// The Service that it is about.
    pub fn service(&self) -> &ObjectName {
        match self {
            Self::Conflict { claimant, .. } => &claimant.service,
            Self::Apiserver { port, .. } | Self::Loop { port, .. } | Self::ClusterIpEndpoint { port, .. } => {
                &port.service
            }
            Self::UnknownBalance { service, .. } | Self::UnknownAnnotation { service, .. } => service,
        }
    }

    /// What it is about, in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "FrontendConflict",
            Self::Apiserver { .. } => "ApiserverAddress",
            Self::Loop { .. } | Self::ClusterIpEndpoint { .. } => "EndpointLeftOut",
            Self::UnknownBalance { .. } => "UnknownBalance",
            Self::UnknownAnnotation { .. } => "UnknownAnnotation",
        }
    }
}

fn said(text: &str) -> Arc<str> {
    let end = text.char_indices().nth(Notice::SAID).map_or(text.len(), |(end, _)| end);
    text[..end].into()
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { frontend, holder, claimant } => write!(
                f,
                "Service {claimant}: {frontend} belongs to Service {holder}, which comes first, and stays with it as \
                 long as it has endpoints; give one of them another address or port"
            ),
            Self::Apiserver { frontend, kind, port } => write!(
                f,
                "Service {port}: its {kind} {frontend} is the address of the apiserver that this agent follows, and is not \
                 served on this node; take it out of the Service, or have agents use another address of the apiserver \
                 (--master)"
            ),
            Self::Loop { port, endpoint } => write!(
                f,
                "Service {port}: endpoint {endpoint} is an address of the Service itself and is left out; \
                 connections to it would go round in circles"
            ),
            Self::ClusterIpEndpoint { port, endpoint } => write!(
                f,
                "Service {port}: endpoint {endpoint} is a Service's cluster IP and is left out; name that \
                 Service's own endpoints instead"
            ),
            Self::UnknownBalance { service, value } => write!(
                f,
                "Service {service}: annotation sluice.dev/balance: {value:?} is no policy; round-robin is used; \
                 there are round-robin, least-connections, random and source-hash"
            ),
            Self::UnknownAnnotation { service, name } => write!(
                f,
                "Service {service}: annotation sluice.dev/{} is none that is known and does nothing; \
                 there are sluice.dev/balance, sluice.dev/max-connections and sluice.dev/socket-mode",
                name.escape_debug()
            ),
        }
    }
}
