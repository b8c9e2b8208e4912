//! What the end-to-end tests share: a proxy with Services on loopback addresses, and backends.
//!
//! Every test has a loopback address of its own, and ports that the kernel picks on it, so that tests
//! run side by side.

#![expect(clippy::expect_used, reason = "a test that cannot be set up has failed")]

pub mod backend;
pub mod wait;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice::proxy::{Proxy, ProxyConfig};
use sluice_dataplane::Config;
use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, ObjectName, ObjectRef, Protocol, Service, ServicePort, SlicePort,
};
use sluice_table::WriterConfig;

/// A loopback address that no other test of this or another process uses.
pub fn loopback_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 255;
    let [.., number] = number.to_be_bytes();
    Ipv4Addr::new(127, 64 | high & 63, low, number)
}

/// A port that is free on an address at the moment.
pub fn free_port(ip: IpAddr) -> u16 {
    let listener = TcpListener::bind((ip, 0)).expect("a loopback address can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// An address for a Service, which nobody listens on.
fn free_frontend() -> SocketAddr {
    let ip = loopback_address().into();
    (ip, free_port(ip)).into()
}

/// A proxy with a Service, and maybe more of them.
pub struct World {
    /// The proxy under test.
    pub proxy: Proxy,
    /// The first Service's address.
    pub frontend: SocketAddr,
    protocol: Protocol,
    service: Service,
    endpoints: Vec<SocketAddr>,
}

impl World {
    /// Two workers, and a Service of `protocol` with these endpoints.
    pub fn new(protocol: Protocol, endpoints: &[SocketAddr]) -> Self {
        Self::with_config(protocol, endpoints, Self::CONFIG)
    }

    /// What [`World::new`] uses.
    pub const CONFIG: Config = Config {
        workers: 2,
        descriptors: 4_096,
        // All clients have one address here.
        client_share: 100,
        udp_idle: Config::UDP_IDLE,
        half_closed_idle: Config::HALF_CLOSED_IDLE,
        connection_log: None,
        service_times: true,
        marks: None,
    };

    /// The same with another data plane.
    pub fn with_config(protocol: Protocol, endpoints: &[SocketAddr], dataplane: Config) -> Self {
        Self::at(free_frontend(), protocol, endpoints, dataplane)
    }

    /// The same at a given address.
    pub fn at(frontend: SocketAddr, protocol: Protocol, endpoints: &[SocketAddr], dataplane: Config) -> Self {
        let config = ProxyConfig::bind(WriterConfig::new("here"), dataplane);
        let proxy = Proxy::start(config).expect("workers start");
        let service = service("web", frontend, protocol);
        let mut world = Self { proxy, frontend, protocol, service, endpoints: Vec::new() };
        world.edit(|_| {});
        world.set_endpoints(endpoints);
        world
    }

    /// Adds another Service with these endpoints; returns its address.
    pub fn add_service(&mut self, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
        let frontend = free_frontend();
        let slices = endpoints.iter().map(|endpoint| slice(name, *endpoint, self.protocol).into());
        let service = service(name, frontend, self.protocol).into();
        self.proxy.apply(std::iter::once(service).chain(slices).map(Change::Apply));
        frontend
    }

    /// Gives the first Service these endpoints, all ready.
    pub fn set_endpoints(&mut self, endpoints: &[SocketAddr]) {
        let gone = self.endpoints.iter().filter(|endpoint| !endpoints.contains(endpoint));
        let changes: Vec<Change> = gone
            .map(|endpoint| Change::Delete(ObjectRef::EndpointSlice(slice_name("web", *endpoint))))
            .chain(endpoints.iter().map(|at| Change::Apply(slice("web", *at, self.protocol).into())))
            .collect();
        self.proxy.apply(changes);
        self.endpoints = endpoints.to_vec();
    }

    /// Changes the first Service.
    pub fn edit(&mut self, change: impl FnOnce(&mut Service)) {
        change(&mut self.service);
        self.proxy.apply([Change::Apply(self.service.clone().into())]);
    }

    /// Takes the first Service away.
    pub fn delete_service(&mut self) {
        self.proxy.apply([Change::Delete(ObjectRef::Service(ObjectName::new("default", "web")))]);
    }
}

fn service(name: &str, frontend: SocketAddr, protocol: Protocol) -> Service {
    let port = ServicePort { name: "".into(), protocol, port: frontend.port(), node_port: None };
    Service::new(ObjectName::new("default", name), vec![frontend.ip()], vec![port])
}

/// A slice for a single endpoint: endpoints here have ports of their own, and a slice has one for all.
fn slice(service: &str, endpoint: SocketAddr, protocol: Protocol) -> EndpointSlice {
    EndpointSlice {
        last_change: None,
        name: slice_name(service, endpoint),
        service: ObjectName::new("default", service),
        family: Family::of(endpoint.ip()),
        ports: vec![SlicePort { name: "".into(), protocol, number: endpoint.port() }],
        endpoints: vec![Endpoint::ready(endpoint.ip())],
    }
}

fn slice_name(service: &str, endpoint: SocketAddr) -> ObjectName {
    ObjectName::new("default", format!("{service}-{endpoint}"))
}

/// How long a test waits for what must happen, before it calls it a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);
