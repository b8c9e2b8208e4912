//! The frontends of a Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_model::{Family, Frontend, FrontendKind, Service, ServicePort, ServicePortName};

use crate::claims::Claim;

/// Every frontend that a Service names. If it names one twice, the kind that comes first counts.
///
/// A family is served only if the Service has a cluster IP of it. Otherwise its external addresses and
/// nodePorts of that family are not served (kube-proxy: each family's proxier skips a Service without a
/// cluster IP of its own).
pub(super) fn frontends_of(service: &Service, node_addresses: &[IpAddr]) -> BTreeMap<Frontend, Claim> {
    let is_served = |ip: &&IpAddr| service.cluster_ips.iter().any(|own| Family::of(*own) == Family::of(**ip));
    let mut frontends = BTreeMap::new();
    let mut add = |kind, addresses: &[IpAddr], port: &ServicePort, number| {
        for ip in addresses.iter().filter(is_served) {
            let frontend = Frontend::new(*ip, number, port.protocol);
            let name = || ServicePortName {
                service: service.name.clone(),
                port: Arc::clone(&port.name),
                protocol: port.protocol,
            };
            frontends.entry(frontend).or_insert_with(|| Claim {
                created: service.created,
                port: name(),
                kind,
            });
        }
    };
    for port in &service.ports {
        add(FrontendKind::ClusterIp, &service.cluster_ips, port, port.port);
        // Before external IPs: source ranges apply to a load balancer's address even if it is an external IP
        // too (kube-proxy: the map firewall-ips).
        add(FrontendKind::LoadBalancer, &service.load_balancer_ips, port, port.port);
        add(FrontendKind::ExternalIp, &service.external_ips, port, port.port);
    }
    // After the addresses of all ports (kube-proxy: the map service-ips is asked before service-nodeports).
    for port in &service.ports {
        if let Some(number) = port.node_port {
            add(FrontendKind::NodePort, node_addresses, port, number);
        }
    }
    frontends
}

#[cfg(test)]
mod tests {
    use sluice_model::{ObjectName, Protocol};

    use super::*;

    /// Name of the case, ports (`name:port[/UDP][@nodePort]`), addresses by field, frontends as
    /// `address kind port-name`. The node's addresses are 192.0.2.1 and 2001:db8::1.
    struct Case {
        name: &'static str,
        ports: &'static str,
        cluster: &'static str,
        external: &'static str,
        load_balancer: &'static str,
        frontends: &'static [&'static str],
    }

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        Case { name: "a cluster IP on every port", ports: "http:80 https:443", cluster: "10.96.0.1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "10.96.0.1:443/TCP clusterIP https"] },
        Case { name: "one number for two protocols", ports: "dns:53/UDP dns-tcp:53", cluster: "10.96.0.1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:53/TCP clusterIP dns-tcp", "10.96.0.1:53/UDP clusterIP dns"] },
        Case { name: "an unnamed port", ports: ":80", cluster: "10.96.0.1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP "] },
        Case { name: "dual stack: both cluster IPs", ports: "http:80", cluster: "10.96.0.1 fd00::1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "[fd00::1]:80/TCP clusterIP http"] },
        Case { name: "external IPs", ports: "http:80", cluster: "10.96.0.1", external: "198.51.100.1 198.51.100.2", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "198.51.100.1:80/TCP externalIP http", "198.51.100.2:80/TCP externalIP http"] },
        Case { name: "load-balancer addresses", ports: "http:80", cluster: "10.96.0.1", external: "", load_balancer: "203.0.113.1",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "203.0.113.1:80/TCP loadBalancer http"] },
        Case { name: "a nodePort on the node's address", ports: "http:80@30080", cluster: "10.96.0.1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "192.0.2.1:30080/TCP nodePort http"] },
        Case { name: "a nodePort on both families of a dual-stack Service", ports: "http:80@30080", cluster: "10.96.0.1 fd00::1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "192.0.2.1:30080/TCP nodePort http", "[2001:db8::1]:30080/TCP nodePort http", "[fd00::1]:80/TCP clusterIP http"] },
        Case { name: "single-stack IPv6: the nodePort on IPv6 only", ports: "http:80@30080", cluster: "fd00::1", external: "", load_balancer: "",
            frontends: &["[2001:db8::1]:30080/TCP nodePort http", "[fd00::1]:80/TCP clusterIP http"] },
        Case { name: "an external IP of a family without cluster IP", ports: "http:80", cluster: "10.96.0.1", external: "2001:db8:9::1", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http"] },
        Case { name: "a load-balancer address of a family without cluster IP", ports: "http:80", cluster: "fd00::1", external: "", load_balancer: "203.0.113.1 2001:db8:9::1",
            frontends: &["[2001:db8:9::1]:80/TCP loadBalancer http", "[fd00::1]:80/TCP clusterIP http"] },
        Case { name: "an address as external IP and load balancer: the load balancer's counts, it may have source ranges", ports: "http:80", cluster: "10.96.0.1", external: "203.0.113.1", load_balancer: "203.0.113.1",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "203.0.113.1:80/TCP loadBalancer http"] },
        Case { name: "two ports with the same number and protocol: the first counts", ports: "a:80 b:80", cluster: "10.96.0.1", external: "", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP a"] },
        Case { name: "a nodePort that is also a port of the node's external IP", ports: "http:80@80", cluster: "10.96.0.1", external: "192.0.2.1", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP http", "192.0.2.1:80/TCP externalIP http"] },
        Case { name: "a nodePort that is another port of the node's external IP: the address counts", ports: "a:8080@80 b:80", cluster: "10.96.0.1", external: "192.0.2.1", load_balancer: "",
            frontends: &["10.96.0.1:80/TCP clusterIP b", "10.96.0.1:8080/TCP clusterIP a", "192.0.2.1:80/TCP externalIP b", "192.0.2.1:8080/TCP externalIP a"] },
        Case { name: "no ports: no frontends", ports: "", cluster: "10.96.0.1", external: "198.51.100.1", load_balancer: "", frontends: &[] },
    ];

    fn port(text: &str) -> ServicePort {
        let (text, node_port) = match text.split_once('@') {
            Some((text, number)) => (text, Some(number.parse().unwrap())),
            None => (text, None),
        };
        let (text, protocol) = match text.strip_suffix("/UDP") {
            Some(text) => (text, Protocol::Udp),
            None => (text, Protocol::Tcp),
        };
        let (name, number) = text.split_once(':').unwrap();
        ServicePort { name: name.into(), protocol, port: number.parse().unwrap(), node_port }
    }

    #[test]
    fn cases() {
        let parse =
            |text: &str| -> Vec<IpAddr> { text.split_whitespace().map(|ip| ip.parse().unwrap()).collect() };
        for case in CASES {
            let ports = case.ports.split_whitespace().map(port).collect();
            let service = Service {
                external_ips: parse(case.external),
                load_balancer_ips: parse(case.load_balancer),
                ..Service::new(ObjectName::new("default", "web"), parse(case.cluster), ports)
            };
            let got: Vec<String> = frontends_of(&service, &parse("192.0.2.1 2001:db8::1"))
                .iter()
                .map(|(frontend, claim)| format!("{frontend} {} {}", claim.kind, claim.port.port))
                .collect();
            assert_eq!(got, case.frontends, "{}", case.name);
        }
    }
}
