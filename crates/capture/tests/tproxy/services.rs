//! Services as the table tells of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use sluice_capture::tproxy::{Config, FlowIdle, LocalPods, Ports, Tproxy};
use sluice_capture::{Capture, Change};
use sluice_model::{Frontend, FrontendKind, ObjectName, Protocol, ServicePortName};
use sluice_table::{ClusterAddressChange, FrontendState, Reason, Verdict};

pub(crate) const REFUSE: Verdict = Verdict::Refuse(Reason::NoEndpoints);

pub(crate) fn config() -> Config {
    Config {
        ports: Ports::from_first(10_265),
        local_pods: LocalPods::Cidrs(vec!["10.244.0.0/16".parse().unwrap()]),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        track: false,
        asks_conntrack: false,
        bridge_netfilter_off: true,
        pod_ports: 32_768..=60_999,
        flow_idle: FlowIdle { any: Duration::from_secs(30), conversation: Duration::from_secs(120) },
    }
}

pub(crate) fn state(kind: FrontendKind, ip: IpAddr, port: u16, verdict: Verdict) -> FrontendState {
    let service = ObjectName::new("default", "web");
    FrontendState {
        frontend: Frontend::new(ip, port, Protocol::Tcp),
        kind,
        port: ServicePortName { service, port: "".into(), protocol: Protocol::Tcp },
        inside: verdict,
        outside: verdict,
        allowed_sources: None,
    }
}

/// A frontend of a load balancer for these sources.
pub(crate) fn guarded(ip: &str, sources: &str) -> FrontendState {
    let sources = sources.split(' ').map(|source| source.parse().unwrap());
    FrontendState {
        allowed_sources: Some(sources.collect()),
        ..state(FrontendKind::LoadBalancer, ip.parse().unwrap(), 80, Verdict::Relay)
    }
}

/// So many Services: two ports on the cluster IPs of both families, and a nodePort on an address of each.
pub(crate) fn services(number: u16) -> (Vec<FrontendState>, ClusterAddressChange) {
    let mut states = Vec::new();
    let mut addresses = ClusterAddressChange {
        ranges: Some(vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()]),
        ..ClusterAddressChange::default()
    };
    for service in 0..number {
        let [high, low] = service.to_be_bytes();
        let ips: [IpAddr; 2] = [
            Ipv4Addr::new(10, 96, high, low).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, service).into(),
        ];
        for ip in ips {
            addresses.added.push(ip);
            states.push(state(FrontendKind::ClusterIp, ip, 80, Verdict::Relay));
            states.push(state(FrontendKind::ClusterIp, ip, 443, REFUSE));
        }
        for ip in ["192.0.2.1", "2001:db8::1"] {
            let ip = ip.parse().unwrap();
            states.push(state(FrontendKind::NodePort, ip, 30_000 + service, Verdict::Relay));
        }
    }
    (states, addresses)
}

pub(crate) fn offer(tproxy: &mut Tproxy, states: &[FrontendState]) {
    change(tproxy, &[], states, &ClusterAddressChange::default());
}

pub(crate) fn withdraw(tproxy: &mut Tproxy, states: &[FrontendState]) {
    change(tproxy, states, &[], &ClusterAddressChange::default());
}

fn change(
    tproxy: &mut Tproxy,
    withdraw: &[FrontendState],
    offer: &[FrontendState],
    cluster_addresses: &ClusterAddressChange,
) {
    tproxy.change(Change { withdraw, offer, cluster_addresses }, Instant::now());
}

/// A capture that serves so many Services.
pub(crate) fn serving(config: Config, number: u16) -> Tproxy {
    let mut tproxy = Tproxy::start(config).unwrap();
    let (states, addresses) = services(number);
    change(&mut tproxy, &[], &states, &addresses);
    assert_eq!(tproxy.stats().failures, 0, "see the log");
    tproxy
}
