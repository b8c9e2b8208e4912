//! Sockets that the programs of socket mode do not see or leave alone: the rules and the relay serve them all the same. And
//! which of its own addresses a socket of the node has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::Duration;

use sluice_model::{Change, Family, Protocol, Service, TrafficPolicy};
use sluice_table::NodePortAddresses;
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, Server, ask_on};
use socket2::{Domain, Socket, Type};

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, PROTOCOLS, Sockets, World, service, slices};

/// A lab with Service 1, whose endpoints `pod-1` and `other-pod-0` have served.
fn world() -> (World, [Server; 2]) {
    let sockets = Sockets::new();
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    let servers = [lab.pod(1), lab.other_pod(0)].map(|host| host.serve(BACKEND).unwrap());
    let mut world = World::with_sockets(sockets, lab);
    apply(&mut world, service(1, TrafficPolicy::Cluster));
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        let is_relayed = || {
            let before = carried(&world);
            (0..4).for_each(|_| drop(world.lab.pod(0).ask(Protocol::Tcp, to, PATIENCE)));
            carried(&world).1 > before.1
        };
        assert!((0..5).any(|_| !is_relayed()), "{family}");
    }
    (world, servers)
}

fn apply(world: &mut World, service: Service) {
    let endpoints = slices(1, &[(world.lab.pod(1), "node"), (world.lab.other_pod(0), "other")]);
    world.apply(std::iter::once(Change::Apply(service.into())).chain(endpoints));
}

/// How many connections and flows were translated, and how many were relayed.
fn carried(world: &World) -> (u64, u64) {
    let stats = world.proxy().stats();
    (world.proxy().observer().translated().unwrap(), stats.tcp_accepted + stats.udp_flows_opened)
}

fn socket(host: &Host, protocol: Protocol, family: Family) -> Socket {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let kind = if protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
    host.ns.run(|| Socket::new(domain, kind, None)).unwrap()
}

/// Connects and asks who is there.
fn ask(socket: Socket, protocol: Protocol, to: SocketAddr) -> String {
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
    answer(socket, protocol)
}

/// What the server at the other end says.
fn answer(socket: Socket, protocol: Protocol) -> String {
    if protocol == Protocol::Udp {
        let outcome = ask_on(&UdpSocket::from(socket), PATIENCE);
        return outcome.by().unwrap_or_else(|| panic!("{outcome:?}")).to_owned();
    }
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(std::net::TcpStream::from(socket)), &mut line)
        .unwrap();
    line
}

/// The kernel runs the programs of the cgroup that a socket was created in, wherever it is used: what systemd has opened for a
/// service, or was passed from elsewhere (`SCM_RIGHTS`), or was there before its process was moved.
#[test]
fn a_socket_that_was_created_outside_of_the_cgroup_is_relayed() {
    let (world, _servers) = world();
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        for host in [world.lab.pod(0), world.lab.node()] {
            for protocol in PROTOCOLS {
                let within = socket(host, protocol, family);
                let from_outside = world.outside_of_cgroup(|| socket(host, protocol, family));
                for (socket, is_translated) in [(within, true), (from_outside, false)] {
                    let before = carried(&world);
                    let by = ask(socket, protocol, to);
                    assert!(by.contains("pod-"), "{by}");
                    let (translated, relayed) = carried(&world);
                    let counted = (translated - before.0, relayed - before.1);
                    let wanted = if is_translated { (1, 0) } else { (0, 1) };
                    assert_eq!(counted, wanted, "{family} {protocol} {}", host.name);
                }
            }
        }
    }
}

/// As in kube-proxy's mode `nftables`, and whoever decides.
#[test]
fn node_ports_are_not_served_on_loopback_at_sockets_either() {
    let loopback = |family| match family {
        Family::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let lab = || Lab::new().unwrap_or_else(|error| panic!("{error}"));
    for has_sockets in [false, true] {
        for node_ports in [NodePortAddresses::Primary, NodePortAddresses::Inside(Vec::new())] {
            // Before the lab, whose clients are to be in its cgroup.
            let sockets = has_sockets.then(Sockets::new);
            let mut world = World::with_node_ports(sockets, lab(), node_ports.clone());
            // They end before the world does, which waits for whoever is in its cgroup.
            let servers = [world.lab.pod(1), world.lab.other_pod(0)];
            let _servers = servers.map(|host| host.serve(BACKEND).unwrap());
            apply(&mut world, service(1, TrafficPolicy::Cluster));
            for family in FAMILIES {
                let at_node = world.address(Kind::NodePort, 1, family);
                for protocol in PROTOCOLS {
                    let ask = |to| world.lab.node().ask(protocol, to, PATIENCE);
                    assert!(ask(at_node).by().is_some());
                    let at_loopback = SocketAddr::new(loopback(family), at_node.port());
                    let context = format!("{protocol} {family} {has_sockets} {node_ports:?}");
                    assert_eq!(ask(at_loopback), Outcome::Refused, "{context}");
                    assert_eq!(
                        world.lab.pod(0).ask(protocol, at_loopback, PATIENCE),
                        Outcome::Refused,
                        "{context}"
                    );
                }
            }
        }
    }
}

/// Where the route to the endpoint leads out; a relayed connection has that of the route to the Service.
#[test]
fn a_socket_of_the_node_has_the_address_that_the_node_has_towards_the_endpoint() {
    let (mut world, _servers) = world();
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        let (node, pod) = (world.lab.node(), world.lab.pod(1).ip(family));
        // One of its addresses is for this pod alone.
        let address = if family == Family::V4 { "192.168.77.1" } else { "fd00:77::1" };
        let at_once = if family == Family::V4 { "" } else { "nodad" };
        let device = after(&node.ns.ip(&format!("route get {pod}")).unwrap(), "dev");
        node.ns.ip(&format!("address add {address} dev lo {at_once}")).unwrap();
        node.ns.ip(&format!("route replace {pod} dev {device} src {address}")).unwrap();
        assert_ne!(source(node, to.ip()), source(node, pod));
        for protocol in PROTOCOLS {
            for is_translated in [true, false] {
                let mut changed = service(1, TrafficPolicy::Cluster);
                if !is_translated {
                    changed.annotations.insert("socket-mode".into(), "false".into());
                }
                apply(&mut world, changed);
                let node = world.lab.node();
                // To the programs the endpoints are new again, so each is left to the relay once over TCP.
                let mut as_wanted = 0;
                for _ in 0..20 {
                    let socket = socket(node, protocol, family);
                    let before = carried(&world);
                    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
                    let own = socket.local_addr().unwrap().as_socket().unwrap().ip();
                    let by = answer(socket, protocol);
                    let endpoint = [world.lab.pod(1), world.lab.other_pod(0)];
                    let endpoint = endpoint.into_iter().find(|host| by.contains(&host.name)).unwrap();
                    let towards = if carried(&world).0 > before.0 { endpoint.ip(family) } else { to.ip() };
                    assert_eq!(own, source(node, towards), "{protocol} {family} {is_translated} {by}");
                    as_wanted += usize::from((towards == to.ip()) != is_translated);
                }
                assert!(as_wanted > 10, "{protocol} {family} {is_translated}: {as_wanted}");
            }
        }
    }
}

/// The address that a host's routes give to what it sends there.
fn source(host: &Host, to: IpAddr) -> IpAddr {
    after(&host.ns.ip(&format!("route get {to}")).unwrap(), "src").parse().unwrap()
}

/// What a route has after a word.
fn after(route: &str, word: &str) -> String {
    let mut words = route.split_whitespace().skip_while(|other| *other != word);
    words.nth(1).unwrap_or_else(|| panic!("{route}")).to_owned()
}

#[test]
fn a_socket_that_is_not_connected_goes_on_by_the_relay_once_its_service_is_one_for_the_relay() {
    let (mut world, _servers) = world();
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        for host in [world.lab.pod(0).clone(), world.lab.node().clone()] {
            let limited =
                Service { max_connections: NonZeroU32::new(1000), ..service(1, TrafficPolicy::Cluster) };
            let kept =
                Service { affinity: Some(Duration::from_secs(60)), ..service(1, TrafficPolicy::Cluster) };
            for change in [limited, kept] {
                apply(&mut world, service(1, TrafficPolicy::Cluster));
                let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
                let socket = host.ns.run(|| UdpSocket::bind(any)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let ask = |world: &World| {
                    let before = carried(world);
                    socket.send_to(b"who", to).unwrap();
                    let (_, from) = socket.recv_from(&mut [0; 256]).unwrap();
                    assert_eq!(from, to);
                    let after = carried(world);
                    (after.0 - before.0, after.1 - before.1)
                };
                assert_eq!(ask(&world), (1, 0), "{family} {}", host.name);
                assert_eq!(ask(&world), (0, 0), "it keeps its endpoint");
                apply(&mut world, change);
                assert_eq!(ask(&world), (0, 1), "{family} {}", host.name);
            }
        }
    }
}
