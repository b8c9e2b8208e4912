//! A table with one Service, for tests of this crate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, SlicePort,
};
use sluice_table::{Client, FrontendKey, Origin, Selection, Writer, WriterConfig};

/// A writer with one Service at `frontend` and these endpoints.
pub(crate) fn writer(frontend: SocketAddr, protocol: Protocol, endpoints: &[SocketAddr]) -> Writer {
    let mut writer = Writer::new(WriterConfig::new("here"));
    add_service(&mut writer, "web", frontend, protocol, endpoints);
    writer
}

/// Adds a Service.
pub(crate) fn add_service(
    writer: &mut Writer,
    name: &str,
    frontend: SocketAddr,
    protocol: Protocol,
    endpoints: &[SocketAddr],
) {
    let port = ServicePort { name: "".into(), protocol, port: frontend.port(), node_port: None };
    let service = Service::new(ObjectName::new("default", name), vec![frontend.ip()], vec![port]);
    writer.apply(Change::Apply(service.into()));
    for (n, endpoint) in endpoints.iter().enumerate() {
        writer.apply(Change::Apply(
            EndpointSlice {
                last_change: None,
                name: ObjectName::new("default", format!("{name}-{n}")),
                service: ObjectName::new("default", name),
                family: Family::of(endpoint.ip()),
                ports: vec![SlicePort { name: "".into(), protocol, number: endpoint.port() }],
                endpoints: vec![Endpoint::ready(endpoint.ip())],
            }
            .into(),
        ));
    }
    let mut plan = writer.plan();
    writer.publish(&mut plan);
    writer.finish(&mut plan);
}

/// A selection among the endpoints `10.0.0.1` to `10.0.0.N`.
pub(crate) fn selection(endpoints: u8) -> Selection {
    selections(endpoints)()
}

/// Any number of such selections, one after the other.
pub(crate) fn selections(endpoints: u8) -> impl FnMut() -> Selection {
    let frontend = SocketAddr::from(([10, 96, 0, 1], 80));
    let endpoints: Vec<_> = (1..=endpoints).map(|n| SocketAddr::from(([10, 0, 0, n], 8080))).collect();
    let writer = writer(frontend, Protocol::Tcp, &endpoints);
    let mut reader = writer.table().reader();
    let key = FrontendKey::new(frontend.ip(), frontend.port(), Protocol::Tcp);
    let route = Arc::clone(reader.lookup(key).expect("the route was just published"));
    let client = Client { ip: [10, 1, 0, 1].into(), origin: Origin::Outside };
    move || route.select(client, Instant::now()).expect("it has endpoints")
}
