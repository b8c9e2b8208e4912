//! Endpoints that are addresses of Services, and nodePorts where the Node object says little: what manifests by hand and
//! single-stack Nodes come to.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use sluice_model::{Change, Family, Node, Object, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, Server, ask_on};
use socket2::{Domain, Socket, Type};

use super::rules::{KINDS, Kind};
use super::world::{BACKEND, FAMILIES, PROTOCOLS, World, service, slices};

fn lab() -> Lab {
    Lab::new().unwrap_or_else(|error| panic!("{error}"))
}

/// A Service with one endpoint.
fn with_endpoint(number: u8, policy: TrafficPolicy, endpoint: &Host) -> Vec<Change> {
    let service = Change::Apply(service(number, policy).into());
    [service].into_iter().chain(slices(number, &[(endpoint, "node")])).collect()
}

/// A lab, and Service 1 with `pod-1` behind it.
fn world() -> (World, Server) {
    let mut world = World::new(lab(), |_| {});
    let pod = world.lab.pod(1).clone();
    let server = pod.serve(BACKEND).unwrap();
    world.apply(with_endpoint(1, TrafficPolicy::Cluster, &pod));
    (world, server)
}

#[test]
fn a_service_whose_endpoint_is_another_services_cluster_ip_is_refused() {
    let (mut world, _server) = world();
    let v4 = world.address(Kind::ClusterIp, 1, Family::V4).ip();
    let v6 = world.address(Kind::ClusterIp, 1, Family::V6).ip();
    let (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) = (v4, v6) else { panic!("{v4} {v6}") };
    let cluster_ip = Host { v4, v6, ..world.lab.pod(1).clone() };
    world.apply(with_endpoint(2, TrafficPolicy::Cluster, &cluster_ip));
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
        for (host, kind) in [world.lab.pod(0), world.lab.node(), world.lab.outside()]
            .into_iter()
            .flat_map(|host| KINDS.map(|kind| (host, kind)))
        {
            let outcome = host.ask(protocol, world.address(kind, 2, family), PATIENCE);
            let is_forbidden = protocol == Protocol::Udp && host.name == "node" && kind != Kind::NodePort;
            let wanted = if is_forbidden { Outcome::Forbidden } else { Outcome::Refused };
            assert_eq!(outcome, wanted, "{family} {protocol} {} {kind:?}", host.name);
        }
    }
    // Beside another endpoint nobody notices it.
    let pod = world.lab.pod(1).clone();
    world.apply(slices(2, &[(&cluster_ip, "node"), (&pod, "node")]));
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|p| (family, p))) {
        for _ in 0..4 {
            let outcome = world.lab.pod(0).ask(protocol, world.address(Kind::ClusterIp, 2, family), PATIENCE);
            assert_eq!(outcome.by(), Some("pod-1"), "{family} {protocol}: {outcome:?}");
        }
    }
    assert_eq!(world.proxy().stats().tcp_retries, 0);
}

#[test]
fn node_ports_are_served_on_all_addresses_of_a_family_that_the_node_object_has_none_of() {
    let (mut world, _server) = world();
    let node = world.lab.node().clone();
    for (address, family) in [("192.168.10.99/24", Family::V4), ("fd00:10::99/64", Family::V6)] {
        node.ns
            .ip(&format!("-{} address add {address} dev eth0", if family == Family::V4 { 4 } else { 6 }))
            .unwrap();
    }
    let others = ["192.168.10.99", "fd00:10::99"].map(|ip| SocketAddr::new(ip.parse().unwrap(), 30_001));
    let ask = |world: &World, to| world.lab.outside().ask(Protocol::Tcp, to, PATIENCE);
    world.tick();
    for other in others {
        assert_eq!(ask(&world, other), Outcome::Refused, "not the Node's address");
    }
    for (known, own, other) in [(Family::V4, others[0], others[1]), (Family::V6, others[1], others[0])] {
        let object = Node {
            name: "node".into(),
            zone: None,
            addresses: vec![node.ip(known)],
            pod_cidrs: Vec::new(),
            eligible: true,
        };
        world.apply([Change::Apply(Object::Node(object))]);
        assert_eq!(ask(&world, other).by(), Some("pod-1"), "the Node has no address of this family");
        assert_eq!(ask(&world, own), Outcome::Refused, "it has another one of that family");
        for family in FAMILIES {
            assert_eq!(ask(&world, world.address(Kind::NodePort, 1, family)).by(), Some("pod-1"));
        }
    }
}

/// A link-local address of a host, with its interface.
fn link_local(host: &Host, interface: &str) -> SocketAddrV6 {
    let listed = host.ns.ip(&format!("-6 -o address show dev {interface} scope link")).unwrap();
    let mut words = listed.split_whitespace();
    let index = words.next().unwrap().trim_end_matches(':').parse().unwrap();
    let address = words.find_map(|word| word.split_once('/').filter(|(ip, _)| ip.starts_with("fe80")));
    let address: Ipv6Addr = address.unwrap().0.parse().unwrap();
    SocketAddrV6::new(address, 0, 0, index)
}

#[test]
fn a_link_local_client_is_answered_and_refused() {
    let (mut world, _server) = world();
    let (pod, node) = (world.lab.pod(1).clone(), world.lab.node().clone());
    world.apply(with_endpoint(2, TrafficPolicy::Local, &pod));
    let _on_node = node.serve(BACKEND).unwrap();
    world.apply(with_endpoint(3, TrafficPolicy::Cluster, &node));
    let closed = world.lab.pod(0).clone();
    world.apply(with_endpoint(4, TrafficPolicy::Cluster, &closed));
    let router = world.lab.router();
    let client = link_local(router, "lan");
    let connect = |kind, number| {
        router.ns.run(|| {
            let socket = Socket::new(Domain::IPV6, kind, None).unwrap();
            socket.bind(&client.into()).unwrap();
            let to = world.address(Kind::NodePort, number, Family::V6);
            socket.connect_timeout(&to.into(), PATIENCE).map(|()| socket)
        })
    };
    assert_eq!(ask_on(&UdpSocket::from(connect(Type::DGRAM, 4).unwrap()), PATIENCE), Outcome::Refused);
    for (number, name) in [(1, "pod-1"), (2, "pod-1"), (3, "node")] {
        let flow = UdpSocket::from(connect(Type::DGRAM, number).unwrap());
        let outcome = ask_on(&flow, PATIENCE);
        assert_eq!(outcome.by(), Some(name), "Service {number}: {outcome:?}");
        let stream = std::net::TcpStream::from(connect(Type::STREAM, number).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(&stream), &mut line).unwrap();
        assert!(line.starts_with(name), "Service {number}: {line}");
    }
}
