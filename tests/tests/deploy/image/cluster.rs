//! What the cluster of the lab has: its Node, and one Service with one endpoint.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use sluice_model::Family;
use sluice_testbed::lab::Lab;

pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What kubeadm 1.36 writes.
pub(super) fn kube_proxy_config(apiserver: &str) -> Vec<(&'static str, String)> {
    let read = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/kubeadm");
        fs::read_to_string(folder.join(name)).unwrap().replace("https://apiserver:6443", apiserver)
    };
    vec![("config.conf", read("config.conf")), ("kubeconfig.conf", read("kubeconfig.conf"))]
}

pub(super) fn cluster_ip(family: Family) -> SocketAddr {
    match family {
        Family::V4 => "10.96.0.7:80".parse().unwrap(),
        Family::V6 => "[fd00:96::7]:80".parse().unwrap(),
    }
}

pub(super) fn service() -> Value {
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": 30_007 });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "NodePort",
            "clusterIP": cluster_ip(Family::V4).ip(),
            "clusterIPs": FAMILIES.map(|family| cluster_ip(family).ip()),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

pub(super) fn slice(lab: &Lab, family: Family) -> Value {
    let port =
        |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 8080 });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("web-{family}").to_lowercase(), "namespace": "default",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": family.to_string(),
        "ports": [port("TCP"), port("UDP")],
        "endpoints": [{ "addresses": [lab.pod(1).ip(family)], "conditions": { "ready": true }, "nodeName": "node" }],
    })
}
