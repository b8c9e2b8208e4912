//! Services as manifests, told apart by their numbers: Service N has 10.96.0.N and fd00:96::N, 203.0.113.N and
//! fd00:cb::N, and nodePort 30000 + N.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use sluice_model::Family;
use sluice_testbed::lab::Host;

/// The port that all endpoints listen on.
pub(crate) const BACKEND: u16 = 8080;

/// The port that Services have, TCP and UDP, unless they are given another one.
pub(crate) const PORT: u16 = 80;

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A Service and its endpoints.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) number: u8,
    pub(crate) port: u16,
    /// Both traffic policies.
    pub(crate) policy: &'static str,
    pub(crate) health_check_port: Option<u16>,
    /// Whether clients keep their endpoints.
    pub(crate) affinity: bool,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// A host as an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    addresses: [IpAddr; 2],
    node: &'static str,
}

impl Service {
    /// Without endpoints.
    pub(crate) fn new(number: u8) -> Self {
        Self {
            number,
            port: PORT,
            policy: "Cluster",
            health_check_port: None,
            affinity: false,
            endpoints: Vec::new(),
        }
    }

    /// With one endpoint more, on the node with the agent.
    pub(crate) fn here(self, host: &Host) -> Self {
        self.with(host, "node")
    }

    /// With one endpoint more, somewhere else.
    pub(crate) fn there(self, host: &Host) -> Self {
        self.with(host, "other")
    }

    fn with(mut self, host: &Host, node: &'static str) -> Self {
        self.endpoints.push(Endpoint { addresses: FAMILIES.map(|family| host.ip(family)), node });
        self
    }

    pub(crate) fn name(&self) -> String {
        format!("s{}", self.number)
    }

    /// The Service and its slices, as a `List`.
    pub(crate) fn manifest(&self) -> String {
        json!({ "apiVersion": "v1", "kind": "List", "items": self.objects() }).to_string()
    }

    /// The Service, and then its slices.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let slices = FAMILIES.map(|family| self.slice(family));
        [self.service()].into_iter().chain(slices).collect()
    }

    fn service(&self) -> Value {
        let ips = |kind: fn(u8, Family) -> SocketAddr| FAMILIES.map(|family| kind(self.number, family).ip());
        let port = |protocol: &str| {
            json!({
                "name": protocol.to_lowercase(), "protocol": protocol, "port": self.port, "nodePort": 30_000 + u16::from(self.number),
            })
        };
        let mut spec = json!({
            "type": "LoadBalancer",
            "clusterIP": ips(cluster_ip)[0],
            "clusterIPs": ips(cluster_ip),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": ips(external_ip),
            "ports": [port("TCP"), port("UDP")],
            "internalTrafficPolicy": self.policy,
            "externalTrafficPolicy": self.policy,
        });
        if self.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
        }
        if let Some(port) = self.health_check_port {
            spec["healthCheckNodePort"] = port.into();
        }
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name(), "namespace": "default" },
            "spec": spec,
        })
    }

    fn slice(&self, family: Family) -> Value {
        let index = usize::from(family == Family::V6);
        let endpoint = |endpoint: &Endpoint| {
            json!({
                "addresses": [endpoint.addresses[index]], "conditions": { "ready": true }, "nodeName": endpoint.node,
            })
        };
        let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": BACKEND });
        let name = format!("{}-{}", self.name(), family).to_lowercase();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": self.name() },
            },
            "addressType": family.to_string(),
            "ports": [port("TCP"), port("UDP")],
            "endpoints": self.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }
}

pub(crate) fn cluster_ip(number: u8, family: Family) -> SocketAddr {
    (ip("10.96.0.", "fd00:96::", number, family), PORT).into()
}

pub(crate) fn external_ip(number: u8, family: Family) -> SocketAddr {
    (ip("203.0.113.", "fd00:cb::", number, family), PORT).into()
}

/// The nodePort on the node's own address.
pub(crate) fn node_port(number: u8, family: Family) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => [192, 168, 10, 10].into(),
        Family::V6 => [0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10].into(),
    };
    (ip, 30_000 + u16::from(number)).into()
}

fn ip(v4: &str, v6: &str, number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => format!("{v4}{number}"),
        Family::V6 => format!("{v6}{number:x}"),
    }
    .parse()
    .unwrap()
}
