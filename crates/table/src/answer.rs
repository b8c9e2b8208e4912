//! The complete answer about one frontend and one kind of client, with the reason, for people.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Frontend, FrontendKind, ServicePortName, TrafficPolicy};

use crate::backends::Backends;
use crate::policy::SetName;
use crate::topology::Basis;
use crate::{Balance, Client, Origin, Reason, ServicePort, SourceAddress, Upstream, Verdict};

/// What happens to the connections of one client to one frontend.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The frontend.
    pub frontend: Frontend,
    /// Which field of the Service it comes from.
    pub kind: FrontendKind,
    /// The service port that it leads to.
    pub port: ServicePortName,
    /// Relay, refuse or drop.
    pub verdict: Verdict,
    /// The reason for the verdict and the choice of endpoints.
    pub why: Why,
    /// The endpoints that the connections spread over; empty if they are not relayed.
    pub endpoints: Vec<Arc<Upstream>>,
    /// How they spread.
    pub balance: Balance,
    /// For how long an idle client keeps its endpoint, if it does.
    pub affinity: Option<Duration>,
    /// The source address that endpoints see. Two kinds of endpoints see another one: the client itself sees
    /// the node's address, and processes of this node see the client's unless the client is one of them too.
    pub source: SourceAddress,
}

/// The reason for a verdict and its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// All endpoints of the cluster that can serve.
    Cluster {
        /// Which ones those are.
        basis: Basis,
        /// How many.
        chosen: usize,
        /// How many are ready, wherever they are.
        ready: usize,
        /// Whether policy Local would have applied to a client from outside.
        short_circuit: bool,
    },
    /// Policy Local: the endpoints on this node.
    Local {
        /// Which ones those are.
        basis: Basis,
        /// How many.
        chosen: usize,
        /// How many others could serve.
        elsewhere: usize,
    },
    /// Policy Local, and no endpoint on this node.
    NoneHere {
        /// How many could serve elsewhere.
        elsewhere: usize,
    },
    /// No endpoint can serve.
    None {
        /// How many are known that cannot serve.
        known: usize,
    },
    /// The client is not in the source ranges.
    SourceNotAllowed,
}

impl Answer {
    pub(crate) fn new(frontend: Frontend, kind: FrontendKind, port: &ServicePort, client: Client) -> Self {
        let client = client.canonical();
        let backends = port.load();
        let decision = backends.decide(kind, client);
        let (verdict, endpoints, source) = match decision {
            Ok((set, source)) => (Verdict::Relay, backends.set(set).upstreams().to_vec(), source),
            Err(verdict) => (verdict, Vec::new(), SourceAddress::Client),
        };
        Self {
            frontend,
            kind,
            port: port.name().clone(),
            verdict,
            why: why(&backends, kind, client.origin, decision.map(|(set, _)| set)),
            endpoints,
            balance: backends.balance(),
            affinity: backends.affinity(),
            source,
        }
    }
}

/// What happens to clients with this origin if they are allowed to connect.
pub(crate) fn outlook(kind: FrontendKind, port: &ServicePort, origin: Origin) -> (Verdict, Why) {
    let backends = port.load();
    let decision = backends.choose(kind, origin);
    (decision.err().unwrap_or(Verdict::Relay), why(&backends, kind, origin, decision))
}

fn why(backends: &Backends, kind: FrontendKind, origin: Origin, decision: Result<SetName, Verdict>) -> Why {
    let (facts, tally) = (&backends.facts, backends.facts.tally);
    match decision {
        Ok(SetName::Cluster) => Why::Cluster {
            basis: facts.cluster_basis,
            chosen: backends.cluster.upstreams().len(),
            ready: tally.ready,
            short_circuit: kind.is_external()
                && origin.is_inside()
                && backends.rules.policies.external == TrafficPolicy::Local,
        },
        Ok(SetName::Local) => Why::Local {
            basis: facts.local_basis,
            chosen: backends.local.upstreams().len(),
            elsewhere: tally.elsewhere,
        },
        Err(Verdict::Drop(Reason::SourceNotAllowed)) => Why::SourceNotAllowed,
        Err(Verdict::Drop(_)) => Why::NoneHere { elsewhere: tally.elsewhere },
        Err(_) => Why::None { known: tally.known },
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cluster { basis, chosen, ready, short_circuit } => {
                if short_circuit {
                    f.write_str("client on this node, policy Local does not bind it, ")?;
                }
                match basis {
                    Basis::Ready => write!(f, "{} ready", endpoints(chosen)),
                    Basis::SameNode => {
                        write!(f, "{} of {ready} ready, hinted to this node", endpoints(chosen))
                    }
                    Basis::SameZone => {
                        write!(f, "{} of {ready} ready, hinted to this zone", endpoints(chosen))
                    }
                    Basis::Draining => write!(f, "none ready, {} terminating and serving", endpoints(chosen)),
                }
            }
            Self::Local { basis, chosen, elsewhere } => {
                let what = if basis == Basis::Draining { "terminating and serving" } else { "ready" };
                write!(f, "policy Local, {} {what} here, {elsewhere} elsewhere", endpoints(chosen))
            }
            Self::NoneHere { elsewhere } => write!(f, "policy Local, {} elsewhere", endpoints(elsewhere)),
            Self::None { known: 0 } => f.write_str("no endpoints"),
            Self::None { known } => write!(f, "{}, none ready or serving", endpoints(known)),
            Self::SourceNotAllowed => Reason::SourceNotAllowed.fmt(f),
        }
    }
}

fn endpoints(n: usize) -> String {
    if n == 1 { "1 endpoint".to_owned() } else { format!("{n} endpoints") }
}

/// For example `10.96.0.1:80/TCP (clusterIP of default/web): relay; 3 endpoints ready; round-robin,
/// source address of the client`.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} of {}): ", self.frontend, self.kind, self.port)?;
        match self.verdict {
            Verdict::Relay => f.write_str("relay")?,
            Verdict::Refuse(_) => return write!(f, "refuse; {}", self.why),
            Verdict::Drop(_) => return write!(f, "drop; {}", self.why),
        }
        let source = match self.source {
            SourceAddress::Client => "client",
            SourceAddress::Node => "node",
        };
        write!(f, "; {}; {}, source address of the {source}", self.why, self.balance)?;
        match self.affinity {
            Some(timeout) => write!(f, ", client keeps its endpoint until idle for {} s", timeout.as_secs()),
            None => Ok(()),
        }
    }
}
