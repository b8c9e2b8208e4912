//! One version of everything that decides about the connections of a service port.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sluice_model::FrontendKind;

use crate::connection_limit::ConnectionLimit;
use crate::policy::{Policies, SetName, Usable};
use crate::source_address::{Masquerade, SourceAddress, source_address};
use crate::topology::{Basis, Tally};
use crate::{Balance, Client, EndpointSet, Origin, Reason, Verdict, source_ranges};

/// One version of a service port's endpoints and of the rules that choose among them. They are swapped
/// together, so no connection meets new endpoints with old rules.
#[derive(Debug, Default)]
pub struct Backends {
    pub(crate) cluster: EndpointSet,
    pub(crate) local: EndpointSet,
    pub(crate) rules: PortRules,
    /// In a box, because picks do not read it.
    pub(crate) facts: Box<Facts>,
}

/// Facts about the endpoints that picks do not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    pub(crate) cluster_basis: Basis,
    pub(crate) local_basis: Basis,
    pub(crate) tally: Tally,
}

/// The rules for the connections of one service port in one family, from the Service and the settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PortRules {
    pub(crate) policies: Policies,
    pub(crate) balance: Balance,
    pub(crate) affinity: Option<Duration>,
    pub(crate) allowed_sources: Option<Arc<[IpNet]>>,
    pub(crate) masquerade: Masquerade,
    pub(crate) passive_health: bool,
    /// Whether socket mode may translate connections.
    pub(crate) at_socket: bool,
    pub(crate) limit: Option<ConnectionLimit>,
}

impl PortRules {
    /// Returns the same rules, with the previous list of sources if it is equal: comparing lists then
    /// compares pointers first.
    pub(crate) fn keeping(self, before: Option<Arc<[IpNet]>>) -> Self {
        let allowed_sources = if self.allowed_sources == before { before } else { self.allowed_sources };
        Self { allowed_sources, ..self }
    }
}

impl Backends {
    /// Endpoints for traffic policy Cluster.
    pub fn cluster(&self) -> &EndpointSet {
        &self.cluster
    }

    /// Endpoints for traffic policy Local.
    pub fn local(&self) -> &EndpointSet {
        &self.local
    }

    /// Number of endpoints in each condition.
    pub fn tally(&self) -> Tally {
        self.facts.tally
    }

    /// The balancing policy.
    pub fn balance(&self) -> Balance {
        self.rules.balance
    }

    /// For how long an idle client keeps its endpoint, if it does.
    pub fn affinity(&self) -> Option<Duration> {
        self.rules.affinity
    }

    /// What happens to connections to this kind of frontend from this kind of client, if the client is
    /// allowed to connect.
    pub fn verdict(&self, kind: FrontendKind, origin: Origin) -> Verdict {
        self.choose(kind, origin).err().unwrap_or(Verdict::Relay)
    }

    /// The set that serves this kind of client at this kind of frontend, or the verdict if none does.
    pub(crate) fn choose(&self, kind: FrontendKind, origin: Origin) -> Result<SetName, Verdict> {
        self.rules.policies.choose(kind, origin, self.usable())
    }

    /// The sources that may connect to this kind of frontend; `None` for any.
    pub(crate) fn allowed_sources(&self, kind: FrontendKind) -> Option<&Arc<[IpNet]>> {
        self.rules.allowed_sources.as_ref().filter(|_| kind == FrontendKind::LoadBalancer)
    }

    /// Returns the set that serves this client, which is never empty, and the source address that endpoints
    /// see, unless the endpoint is the client itself. Otherwise, returns the verdict.
    ///
    /// A client outside the source ranges is dropped even if others are refused: the firewall comes first
    /// (kube-proxy: `firewall-check` before `service-endpoints-check`).
    pub(crate) fn decide(
        &self,
        kind: FrontendKind,
        client: Client,
    ) -> Result<(SetName, SourceAddress), Verdict> {
        if !source_ranges::admits(self.rules.allowed_sources.as_deref(), kind, client.ip) {
            return Err(Verdict::Drop(Reason::SourceNotAllowed));
        }
        let set = self.choose(kind, client.origin)?;
        let external = self.rules.policies.external;
        Ok((set, source_address(kind, client.origin, external, self.rules.masquerade)))
    }

    pub(crate) fn set(&self, name: SetName) -> &EndpointSet {
        match name {
            SetName::Cluster => &self.cluster,
            SetName::Local => &self.local,
        }
    }

    fn usable(&self) -> Usable {
        Usable { cluster: !self.cluster.upstreams().is_empty(), local: !self.local.upstreams().is_empty() }
    }
}

impl Client {
    /// The same client, with a v4-mapped address (from a dual-stack socket) converted to IPv4.
    pub(crate) fn canonical(self) -> Self {
        let ip: IpAddr = self.ip.to_canonical();
        Self { ip, ..self }
    }
}
