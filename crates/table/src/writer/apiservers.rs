//! Frontends that are not served, because the agent reaches the apiserver at their address.
//!
//! Whoever may give a Service an external address could name the apiserver's. The agent's own connections would lead to that
//! Service then, and it would never learn that the Service is gone. (kube-proxy's new connections do; its open watch goes on.)

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sluice_model::{Family, Frontend, FrontendKind, Protocol};

use super::Writer;

impl Writer {
    /// Learns where the agent reaches the apiserver. Frontends at these addresses are left out from the next plan on, unless
    /// they are cluster IPs: an apiserver is reached at the cluster IP of its Service as well, and nobody chooses those.
    pub fn set_apiservers(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.apiservers = addresses.into_iter().collect();
    }

    /// Frontends that Services name and that are not served, because the agent reaches the apiserver there.
    pub fn left_out(&self) -> &BTreeSet<Frontend> {
        &self.left_out
    }

    /// Works out anew which frontends are left out. Those that are so since, or not any more, are part of the next plan.
    pub(super) fn judge_apiservers(&mut self) {
        let mut left_out = BTreeSet::new();
        for address in &self.apiservers {
            let frontend = Frontend { address: *address, protocol: Protocol::Tcp };
            let claims = self.claims.of(&frontend);
            if claims.is_empty() || claims.iter().any(|claim| claim.kind == FrontendKind::ClusterIp) {
                continue;
            }
            left_out.insert(frontend);
            // A capture knows a nodePort by its number alone, on whichever address.
            if claims.iter().any(|claim| claim.kind == FrontendKind::NodePort) {
                left_out.extend(self.node_port_elsewhere(*address));
            }
        }
        self.dirty.extend(self.left_out.symmetric_difference(&left_out));
        self.left_out = left_out;
    }

    /// The frontends of a nodePort on all addresses of one family, as far as nothing but nodePorts claims them.
    fn node_port_elsewhere(&self, address: SocketAddr) -> impl Iterator<Item = Frontend> {
        let (family, port) = (Family::of(address.ip()), address.port());
        let addresses = self.node_port_addresses().into_iter().filter(move |ip| Family::of(*ip) == family);
        let frontends = addresses.map(move |ip| Frontend::new(ip, port, Protocol::Tcp));
        frontends.filter(|frontend| {
            let claims = self.claims.of(frontend);
            !claims.is_empty() && claims.iter().all(|claim| claim.kind == FrontendKind::NodePort)
        })
    }
}
