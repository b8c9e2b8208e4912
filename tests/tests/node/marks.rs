//! Settings of the kernel by which packets and sockets of this node have the marks of what they answer.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};

use sluice_model::{Change, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE};

use super::rules::{KINDS, Kind};
use super::world::{BACKEND, FAMILIES, PROTOCOLS, World, service, slices};

/// What nodes with several uplinks set (ip-sysctl).
const SETTINGS: [(&str, &str); 3] =
    [("net/ipv4/fwmark_reflect", "1"), ("net/ipv6/fwmark_reflect", "1"), ("net/ipv4/tcp_fwmark_accept", "1")];

/// Whoever is behind each Service: a pod, and the node itself.
const BEHIND: [(u8, &str); 2] = [(1, "pod-1"), (2, "node")];

fn world() -> World {
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    lab.node().ns.set_all(&SETTINGS).unwrap();
    let mut world = World::new(lab, |_| {});
    let changes = services(&world);
    world.apply(changes);
    world
}

fn services(world: &World) -> Vec<Change> {
    let (pod, node) = (world.lab.pod(1), world.lab.node());
    let services = [(1, pod), (2, node)].into_iter().flat_map(|(number, host)| {
        let service = Change::Apply(service(number, TrafficPolicy::Cluster).into());
        [service].into_iter().chain(slices(number, &[(host, "node")]))
    });
    services.collect()
}

#[test]
fn everybody_is_served_where_the_kernel_passes_marks_on() {
    let world = world();
    let _servers = [world.lab.pod(1), world.lab.node()].map(|host| host.serve(BACKEND).unwrap());
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
        for (kind, (number, name)) in KINDS.into_iter().flat_map(|kind| BEHIND.map(|behind| (kind, behind))) {
            for client in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
                let outcome = client.ask(protocol, world.address(kind, number, family), PATIENCE);
                let context = format!("{family} {protocol} {kind:?} {number} {}", client.name);
                assert_eq!(outcome.by(), Some(name), "{context}: {outcome:?}");
            }
        }
    }
}

#[test]
fn a_closed_port_is_refused_where_the_kernel_passes_marks_on() {
    let world = world();
    for (family, (number, _)) in FAMILIES.into_iter().flat_map(|family| BEHIND.map(|behind| (family, behind)))
    {
        for client in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
            let to = world.address(Kind::ExternalIp, number, family);
            let context = format!("{family} {} Service {number}", client.name);
            assert_eq!(client.ask(Protocol::Udp, to, PATIENCE), Outcome::Refused, "{context}");
            let outcome = client.ask(Protocol::Tcp, to, PATIENCE);
            assert!(matches!(outcome, Outcome::Refused | Outcome::Reset), "{context}: {outcome:?}");
        }
    }
}

/// As after an end whose resets were lost, and as kube-proxy has left them.
#[test]
fn a_connection_that_nobody_knows_is_reset_where_the_kernel_passes_marks_on() {
    let mut world = world();
    let _server = world.lab.pod(1).serve(BACKEND).unwrap();
    let clients = [world.lab.pod(0).clone(), world.lab.outside().clone()];
    let connect = |client: &Host| {
        FAMILIES.map(|family| {
            let to = world.address(Kind::ExternalIp, 1, family);
            let mut reader = BufReader::new(client.tcp_stream(to, PATIENCE).unwrap());
            reader.read_line(&mut String::new()).unwrap();
            reader.into_inner()
        })
    };
    let streams = clients.each_ref().map(connect);
    let deaf = "table inet deaf { chain input { type filter hook input priority 0; drop; }; }";
    clients.iter().for_each(|client| client.ns.nft_file(deaf).unwrap());
    world.stop();
    let changes = services(&world);
    world.start(changes);
    for (client, mut stream) in clients.iter().zip(streams).flat_map(|(c, streams)| streams.map(|s| (c, s))) {
        let _ = client.ns.nft("delete table inet deaf");
        stream.write_all(b"?").unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{} {:?}", client.name, stream.peer_addr());
    }
}
