//! A table of a cluster with many Services.

use std::net::{IpAddr, Ipv4Addr};

use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, Object, ObjectName, Protocol, Service, ServicePort, SlicePort,
};
use sluice_table::{Writer, WriterConfig};

/// The port of every Service.
pub const PORT: u16 = 80;

/// A table with many Services.
#[derive(Debug)]
pub struct Cluster {
    /// Its writer. Everything is published.
    pub writer: Writer,
    services: u32,
    endpoints: u32,
}

impl Cluster {
    /// A cluster of `services` Services, each with one port and `endpoints` endpoints.
    pub fn new(services: u32, endpoints: u32) -> Self {
        Self { writer: Self::of(objects(services, endpoints)), services, endpoints }
    }

    /// A writer with these objects. Everything is published.
    pub fn of(objects: Vec<Object>) -> Writer {
        let mut writer = Writer::new(WriterConfig::new("here"));
        objects.into_iter().for_each(|object| writer.apply(Change::Apply(object)));
        let mut plan = writer.plan();
        writer.publish(&mut plan);
        writer.finish(&mut plan);
        writer
    }

    /// Applies endpoint change number `n`.
    pub fn change_an_endpoint(&mut self, n: u32) {
        self.writer.apply(endpoint_change(n, self.services, self.endpoints));
    }
}

/// All objects of the cluster.
pub fn objects(services: u32, endpoints: u32) -> Vec<Object> {
    (0..services).flat_map(|n| [service(n).into(), slice(n, 0..endpoints).into()]).collect()
}

/// Endpoint change number `n`: removes an endpoint somewhere in the cluster, or adds it again.
pub fn endpoint_change(n: u32, services: u32, endpoints: u32) -> Change {
    // Two changes of one Service, then another Service.
    let service = u32::try_from(u64::from(n / 2) * 7_919 % u64::from(services)).unwrap_or(0);
    Change::Apply(slice(service, n % 2..endpoints).into())
}

/// The cluster IP of Service `n`.
pub fn cluster_ip(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + n).into()
}

/// Service `n`.
pub fn service(n: u32) -> Service {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: PORT, node_port: None };
    Service::new(ObjectName::new("default", format!("service-{n}")), vec![cluster_ip(n)], vec![port])
}

fn slice(n: u32, endpoints: std::ops::Range<u32>) -> EndpointSlice {
    EndpointSlice {
        last_change: None,
        name: ObjectName::new("default", format!("service-{n}-a")),
        service: ObjectName::new("default", format!("service-{n}")),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, number: 8_080 }],
        endpoints: endpoints
            .map(|endpoint| Endpoint::ready(Ipv4Addr::from(0x1000_0000 + n * 256 + endpoint).into()))
            .collect(),
    }
}
