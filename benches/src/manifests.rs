//! Services and endpoints as objects, and as manifest files for the agent.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_testbed::lab::Lab;

use crate::site::{TCP, UDP};

/// A directory of manifests.
#[derive(Debug, Clone)]
pub struct Manifests {
    new: PathBuf,
    path: PathBuf,
}

impl Manifests {
    /// Creates it, with the Node of a lab.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(directory: &Path, lab: &Lab) -> Result<Self> {
        let manifests = Self { new: directory.join("new"), path: directory.join("manifests") };
        fs::create_dir_all(&manifests.path)?;
        manifests.put("node", &[node(lab)])?;
        Ok(manifests)
    }

    /// The argument of `--manifests`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes objects to a file, or replaces it atomically by a rename.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, name: &str, objects: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        fs::write(&self.new, list.to_string())?;
        Ok(fs::rename(&self.new, self.file(name))?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name).with_extension("json")
    }
}

/// The Node object of a lab's node.
pub fn node(lab: &Lab) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": lab.node().v4 }] },
    })
}

/// A Service with all ports of a site's servers, and its slice.
pub fn service(name: &str, ip: Ipv4Addr, endpoints: &[Ipv4Addr]) -> Vec<Value> {
    let tcp = TCP.map(|port| ("TCP", port, port));
    let ports: Vec<_> = tcp.into_iter().chain(UDP.map(|port| ("UDP", port, port))).collect();
    vec![service_with(name, ip, &ports), slice(name, name, &ports, endpoints)]
}

/// A Service with these ports: protocol, its own port, the endpoints' port.
pub fn service_with(name: &str, ip: Ipv4Addr, ports: &[(&str, u16, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(protocol, port, _)| json!({ "name": port_name(protocol, *port), "protocol": protocol, "port": port }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": { "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": ports },
    })
}

/// A slice of a Service. All endpoints are ready and on the node.
pub fn slice(name: &str, service: &str, ports: &[(&str, u16, u16)], endpoints: &[Ipv4Addr]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(protocol, port, number)| {
            json!({ "name": port_name(protocol, *port), "protocol": protocol, "port": number })
        })
        .collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true }, "nodeName": "node" }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

fn port_name(protocol: &str, port: u16) -> String {
    format!("{}-{port}", protocol.to_lowercase())
}
