//! Frontends that are not served, because the agent reaches the apiserver at their address.
//!
//! A user who may set a Service's external addresses could name the apiserver's. The agent's own connections
//! would then lead to that Service, and the agent would never learn that the Service is gone. (The same holds
//! for kube-proxy's new connections, but its open watch continues.)

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sluice_model::{Family, Frontend, FrontendKind, Protocol};

use super::Writer;

impl Writer {
    /// Sets the addresses at which the agent reaches the apiserver. From the next plan on, frontends at these
    /// addresses are left out, unless they are cluster IPs: the apiserver is also reached at the cluster IP
    /// of its Service, and users do not choose those.
    pub fn set_apiservers(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.apiservers = addresses.into_iter().collect();
    }

    /// Frontends that Services name but that are not served, because the agent reaches the apiserver there.
    pub fn left_out(&self) -> &BTreeSet<Frontend> {
        &self.left_out
    }

    /// Recomputes which frontends are left out. Those for which this has changed are part of the next plan.
    pub(super) fn judge_apiservers(&mut self) {
        let mut left_out = BTreeSet::new();
        for address in &self.apiservers {
            let frontend = Frontend { address: *address, protocol: Protocol::Tcp };
            let claims = self.claims.of(&frontend);
            if claims.is_empty() || claims.iter().any(|claim| claim.kind == FrontendKind::ClusterIp) {
                continue;
            }
            left_out.insert(frontend);
            // The capture matches nodePorts by number only, on any address.
            if claims.iter().any(|claim| claim.kind == FrontendKind::NodePort) {
                left_out.extend(self.node_port_elsewhere(*address));
            }
        }
        self.dirty.extend(self.left_out.symmetric_difference(&left_out));
        self.left_out = left_out;
    }

    /// The frontends of a nodePort on all addresses of one family, except those that have other claims than
    /// for nodePorts.
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
