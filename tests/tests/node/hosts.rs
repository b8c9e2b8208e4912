//! Services whose endpoints are hosts of the lab, by their names.

use std::net::UdpSocket;

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Server};

use super::world::{BACKEND, FAMILIES, PROTOCOLS, World, service, slices};

pub fn lab() -> Lab {
    Lab::new().unwrap_or_else(|error| panic!("{error}"))
}

/// One whose node tracks connections, as most nodes do: there somebody's rule asks for their state.
pub fn tracking_lab() -> Lab {
    let lab = lab();
    track(&lab);
    lab
}

/// Has the node track connections, and know one.
pub fn track(lab: &Lab) {
    const RULE: &str = "table inet tracking { chain forward {
        type filter hook forward priority filter;
        ct state invalid counter
    }; }";
    let node = lab.node();
    node.ns.nft_file(RULE).unwrap();
    let socket = node.ns.run(|| UdpSocket::bind((node.v4, 0)).unwrap());
    socket.send_to(b"known", socket.local_addr().unwrap()).unwrap();
}

pub fn serve(host: &Host) -> Server {
    host.serve(BACKEND).unwrap_or_else(|error| panic!("{error}"))
}

/// A lab, and Service 1 with this policy and these endpoints.
pub fn world(policy: TrafficPolicy, endpoints: &[(&str, &str)]) -> (World, Vec<Server>) {
    world_in(lab(), policy, endpoints)
}

/// The same in a lab that is there.
pub fn world_in(lab: Lab, policy: TrafficPolicy, endpoints: &[(&str, &str)]) -> (World, Vec<Server>) {
    let mut world = World::new(lab, |_| {});
    let servers = add_service(&mut world, 1, policy, endpoints);
    (world, servers)
}

/// Adds a Service whose endpoints are hosts of the lab, by name.
pub fn add_service(
    world: &mut World,
    number: u8,
    policy: TrafficPolicy,
    endpoints: &[(&str, &str)],
) -> Vec<Server> {
    let hosts: Vec<(Host, &str)> =
        endpoints.iter().map(|(host, node)| (host_named(&world.lab, host).clone(), *node)).collect();
    let servers = hosts.iter().map(|(host, _)| serve(host)).collect();
    let mut changes = vec![Change::Apply(service(number, policy).into())];
    let endpoints: Vec<(&Host, &str)> = hosts.iter().map(|(host, node)| (host, *node)).collect();
    changes.extend(slices(number, &endpoints));
    world.apply(changes);
    servers
}

pub fn host_named<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    let hosts =
        [lab.node(), lab.pod(0), lab.pod(1), lab.other(), lab.other_pod(0), lab.other_pod(1), lab.outside()];
    hosts.into_iter().find(|host| host.name == name).unwrap()
}

pub fn families_and_protocols() -> impl Iterator<Item = (Family, Protocol)> {
    FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
}
