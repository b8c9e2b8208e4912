//! The rules for the connections of a Service, from the object and the node's settings.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use sluice_model::{Family, Node, Service};

use super::WriterConfig;
use crate::backends::PortRules;
use crate::cluster_addresses::ClusterAddresses;
use crate::connection_limit::ConnectionLimit;
use crate::policy::Policies;
use crate::source_address::Masquerade;
use crate::topology::Locality;
use crate::{Balance, node_ports, source_ranges};

/// The annotation that excludes a Service from socket mode. Any value but `true` does so: a Service that is
/// relayed by mistake still works.
const AT_SOCKET: &str = "socket-mode";

/// All annotations of a Service below `sluice.dev/`.
const ANNOTATIONS: [&str; 3] = [Balance::ANNOTATION, "max-connections", AT_SOCKET];

/// Number of unknown annotations that are reported for a Service at once: it may have any number.
const MISTAKEN: usize = 4;

/// The first few unknown annotations of a Service.
pub(super) fn unknown_annotations(service: &Service) -> impl Iterator<Item = &str> {
    let names = service.annotations.keys().map(|name| &**name);
    names.filter(|name| !ANNOTATIONS.contains(name)).take(MISTAKEN)
}

/// What the rules need to know about the node and the cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) config: &'a WriterConfig,
    pub(super) node: Option<&'a Node>,
    /// The addresses of its interfaces.
    pub(super) interfaces: &'a BTreeSet<IpAddr>,
    pub(super) cluster_addresses: &'a ClusterAddresses,
}

impl<'a> Surroundings<'a> {
    pub(super) fn locality(self) -> Locality<'a> {
        Locality { node: &self.config.node, zone: self.node.and_then(|node| node.zone.as_deref()) }
    }

    /// Whether an endpoint with this address is a process of the node that sees its clients' own addresses.
    /// False in bind mode, because replies to other addresses than the node's would not come back; and on
    /// loopback addresses, which cannot talk to others.
    pub(super) fn has_process_at(self, ip: IpAddr) -> bool {
        !self.config.frontends_lead_back && !ip.is_loopback() && self.interfaces.contains(&ip)
    }

    /// Whether connections to an endpoint with this address are refused on this node: it is the cluster IP of
    /// a Service (kube-proxy: the chain `cluster-ips-check`, which packets pass even after their endpoint was
    /// chosen), and no process here has it, as NodeLocal DNSCache does. Always false in bind mode, which has
    /// no such rule.
    pub(super) fn refuses(self, ip: IpAddr) -> bool {
        !self.config.frontends_lead_back
            && self.cluster_addresses.is_live(ip)
            && !self.interfaces.contains(&ip)
    }

    /// The rules for the connections to a Service in one family.
    pub(super) fn rules(
        self,
        service: &Service,
        family: Family,
        used_connections: &Arc<AtomicU32>,
    ) -> PortRules {
        PortRules {
            policies: Policies { internal: service.internal_policy, external: service.external_policy },
            balance: balance(service).unwrap_or_default(),
            affinity: service.affinity,
            allowed_sources: source_ranges::allowed_sources(
                service.source_ranges.as_deref(),
                family,
                self.node.and_then(|node| node_ports::primary(node, family)),
                &service.load_balancer_ips,
            ),
            masquerade: Masquerade {
                always: self.config.frontends_lead_back,
                all: self.config.masquerade_all,
                detects_local_pods: self.config.local_pods.are_detected(family, self.node),
            },
            passive_health: self.config.passive_health,
            at_socket: service.annotations.get(AT_SOCKET).is_none_or(|value| &**value == "true"),
            limit: service.max_connections.map(|max| ConnectionLimit::new(max, used_connections)),
        }
    }
}

/// The balancing policy in the Service's annotation, or the default one without an annotation.
///
/// # Errors
/// The annotation's value, if it names no policy.
pub(super) fn balance(service: &Service) -> Result<Balance, &str> {
    match service.annotations.get(Balance::ANNOTATION) {
        None => Ok(Balance::default()),
        Some(name) => Balance::parse(name).ok_or(name),
    }
}
