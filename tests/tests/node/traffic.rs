//! What else there is to traffic: source ranges, ports that no Service has, hairpins, endpoints in the node's
//! own network, large datagrams, bulk, who is a local pod, connection tracking.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};

use sluice::proxy::CaptureConfig;
use sluice_capture::tproxy;
use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_table::{LocalPods, NodePortAddresses};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, SILENCE, Server, Wiring, ask_on};
use socket2::{Domain, Socket, Type};

use super::rules::{KINDS, Kind};
use sluice_tests::wait;

use super::world::{BACKEND, FAMILIES, PORT, PROTOCOLS, World, service, slices};

fn lab() -> Lab {
    Lab::new().unwrap_or_else(|error| panic!("{error}"))
}

fn serve(host: &Host) -> Server {
    host.serve(BACKEND).unwrap_or_else(|error| panic!("{error}"))
}

/// A lab, and Service 1 with this policy and these endpoints.
fn world(policy: TrafficPolicy, endpoints: &[(&str, &str)]) -> (World, Vec<Server>) {
    let mut world = World::new(lab(), |_| {});
    let servers = add_service(&mut world, 1, policy, endpoints);
    (world, servers)
}

/// Adds a Service whose endpoints are hosts of the lab, by name.
fn add_service(
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

fn host_named<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    let hosts =
        [lab.node(), lab.pod(0), lab.pod(1), lab.other(), lab.other_pod(0), lab.other_pod(1), lab.outside()];
    hosts.into_iter().find(|host| host.name == name).unwrap()
}

fn families_and_protocols() -> impl Iterator<Item = (Family, Protocol)> {
    FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
}

#[test]
fn source_ranges_guard_load_balancer_addresses_and_nothing_else() {
    let mut world = World::new(lab(), |_| {});
    let _server = serve(world.lab.pod(1));
    // Outside is in, pods and the node are not.
    let mut guarded = service(1, TrafficPolicy::Cluster);
    let ranges = ["192.168.20.0/24", "192.168.20.20/32", "fd00:20::/64"];
    guarded.source_ranges = Some(ranges.map(|range| range.parse().unwrap()).into());
    // The node is in, outside is not. The node's address is in the range: so are its own processes.
    let mut reversed = service(2, TrafficPolicy::Cluster);
    reversed.source_ranges =
        Some(["192.168.10.0/24", "fd00:10::/64"].map(|range| range.parse().unwrap()).into());
    // Nobody answers, and who is not in the ranges must not even know that.
    let mut empty = service(3, TrafficPolicy::Cluster);
    empty.source_ranges = guarded.source_ranges.clone();
    let endpoint = world.lab.pod(1).clone();
    let mut changes: Vec<Change> =
        [guarded, reversed, empty].map(|service| Change::Apply(service.into())).into();
    changes.extend((1..=2).flat_map(|number| slices(number, &[(&endpoint, "node")])));
    world.apply(changes);

    let ask = |host: &Host, kind, number, family, protocol, patience| {
        host.ask(protocol, world.address(kind, number, family), patience)
    };
    let [outside, pod, node] = [world.lab.outside(), world.lab.pod(0), world.lab.node()];
    for (family, protocol) in families_and_protocols() {
        let context = format!("{family} {protocol}");
        let answered = |host, kind, number| {
            let outcome = ask(host, kind, number, family, protocol, PATIENCE);
            assert_eq!(outcome.by(), Some("pod-1"), "{context} {} {kind:?}: {outcome:?}", host.name);
        };
        let silent = |host: &Host, number| {
            let outcome = ask(host, Kind::LoadBalancer, number, family, protocol, SILENCE);
            assert_eq!(outcome, Outcome::Silent, "{context} {} {number}", host.name);
        };
        answered(outside, Kind::LoadBalancer, 1);
        silent(pod, 1);
        silent(node, 1);
        answered(node, Kind::LoadBalancer, 2);
        silent(outside, 2);
        silent(pod, 3);
        let refused = ask(outside, Kind::LoadBalancer, 3, family, protocol, PATIENCE);
        assert_eq!(refused, Outcome::Refused, "{context}");
        for kind in [Kind::ClusterIp, Kind::ExternalIp, Kind::NodePort] {
            answered(pod, kind, 1);
        }
    }
}

#[test]
fn ports_that_a_service_does_not_have_are_refused_and_addresses_that_none_has_are_silent() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("pod-1", "node")]);
    for (family, protocol) in families_and_protocols() {
        let of_service = SocketAddr::new(world.address(Kind::ClusterIp, 1, family).ip(), 81);
        let of_nobody = SocketAddr::new(world.address(Kind::ClusterIp, 99, family).ip(), PORT);
        for host in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
            let outcome = host.ask(protocol, of_service, PATIENCE);
            let is_refused = match (protocol, host.name.as_str()) {
                (Protocol::Udp, "node") => outcome == Outcome::Forbidden,
                _ => outcome == Outcome::Refused,
            };
            assert!(is_refused, "{family} {protocol} {}: {outcome:?}", host.name);
            let outcome = host.ask(protocol, of_nobody, SILENCE);
            assert_eq!(outcome, Outcome::Silent, "{family} {protocol} {}", host.name);
        }
        // nodePorts are not served on loopback.
        let loopback: IpAddr =
            if family == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
        let outcome = world.lab.node().ask(protocol, (loopback, 30_001).into(), PATIENCE);
        assert_eq!(outcome, Outcome::Refused, "{family} {protocol}");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("pod-0", "node")]);
    for (family, protocol) in families_and_protocols() {
        for kind in KINDS {
            let outcome = world.lab.pod(0).ask(protocol, world.address(kind, 1, family), PATIENCE);
            let context = format!("{family} {protocol} {kind:?}: {outcome:?}");
            assert_eq!(outcome.by(), Some("pod-0"), "{context}");
            assert!(outcome.source().is_some_and(|seen| world.is_nodes(seen)), "{context}");
        }
    }
}

#[test]
fn endpoints_in_the_networks_of_nodes_see_a_pods_own_address_too() {
    let (mut world, _here) = world(TrafficPolicy::Cluster, &[("node", "node")]);
    let _there = add_service(&mut world, 2, TrafficPolicy::Cluster, &[("other", "other")]);
    let pod = world.lab.pod(0);
    for (family, protocol) in families_and_protocols() {
        for (number, name) in [(1, "node"), (2, "other")] {
            let to = world.address(Kind::ClusterIp, number, family);
            let outcome = pod.ask(protocol, to, PATIENCE);
            let context = format!("{family} {protocol} {name}: {outcome:?}");
            assert_eq!(outcome.by(), Some(name), "{context}");
            assert_eq!(outcome.source(), Some(pod.ip(family)), "{context}");
            // The same endpoint, directly: nobody is taken for somebody else.
            let direct =
                pod.ask(protocol, (host_named(&world.lab, name).ip(family), BACKEND).into(), PATIENCE);
            assert_eq!((direct.by(), direct.source()), (Some(name), Some(pod.ip(family))));
        }
        // Of the node's own processes, through an external address: an endpoint that is a frontend's node.
        let outcome = world.lab.node().ask(protocol, world.address(Kind::NodePort, 1, family), PATIENCE);
        assert_eq!(outcome.by(), Some("node"), "{outcome:?}");
    }
}

#[test]
fn an_endpoint_at_an_external_address_of_its_own_service_serves() {
    let mut world = World::new(lab(), |_| {});
    let _server = serve(world.lab.node());
    let node = world.lab.node().clone();
    let mut service = service(1, TrafficPolicy::Cluster);
    service.external_ips = FAMILIES.map(|family| node.ip(family)).into();
    service.ports.iter_mut().for_each(|port| port.port = BACKEND);
    let changes = [Change::Apply(service.into())].into_iter().chain(slices(1, &[(&node, "node")]));
    world.apply(changes.collect::<Vec<_>>());
    // TCP alone: replies to datagrams would need a socket with the very address that the endpoint's has.
    for family in FAMILIES {
        for host in [world.lab.pod(0), world.lab.outside(), world.lab.node()] {
            let outcome = host.ask(Protocol::Tcp, (node.ip(family), BACKEND).into(), PATIENCE);
            assert_eq!(outcome.by(), Some("node"), "{family} {}: {outcome:?}", host.name);
        }
    }
    assert_eq!(world.proxy().stats().endpoint_loops, 0);
}

/// As NodeLocal DNSCache does it with the address of kube-dns.
#[test]
fn a_process_of_the_node_that_has_a_cluster_ip_serves_it() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let node = world.lab.node();
    node.ns.ip(&format!("address add {}/32 dev lo", to.ip())).unwrap();
    let _server = node.serve_at(&[to]).unwrap();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for host in [world.lab.pod(0), node] {
            let outcome = host.ask(protocol, to, PATIENCE);
            assert_eq!(outcome.by(), Some("node"), "{protocol} {}: {outcome:?}", host.name);
        }
    }
}

#[test]
fn datagrams_of_any_size_and_bulk_pass_whole() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    for family in FAMILIES {
        for (host, kind) in [
            (world.lab.pod(0), Kind::ClusterIp),
            (world.lab.node(), Kind::ClusterIp),
            (world.lab.outside(), Kind::NodePort),
            (world.lab.outside(), Kind::LoadBalancer),
        ] {
            let to = world.address(kind, 1, family);
            let context = format!("{family} {} {kind:?}", host.name);
            // What a node sends itself over lo in IPv6 fragments, the kernel puts together only so far.
            let longest = if (family, host.name.as_str()) == (Family::V6, "node") { 65_000 } else { 65_507 };
            for length in [0, 2_000, 60_000, longest] {
                let echoed = host.echo_udp(to, length, PATIENCE);
                assert!(echoed.is_ok(), "{context}, {length} bytes: {echoed:?}");
            }
            let echoed = host.echo_tcp(to, 20_000_000, PATIENCE);
            assert!(echoed.is_ok(), "{context}: {echoed:?}");
        }
    }
    let stats = world.proxy().stats();
    assert_eq!((stats.udp_dropped_error, stats.udp_unroutable, stats.tcp_unroutable), (0, 0, 0), "{stats:?}");
}

/// Services 1 and 2 with the same endpoint, and 3 with another one.
fn world_of_shared_endpoints() -> (World, Vec<Server>) {
    let (mut world, mut servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    servers.extend(add_service(&mut world, 3, TrafficPolicy::Cluster, &[("other-pod-1", "other")]));
    let endpoint = world.lab.other_pod(0).clone();
    let service = Change::Apply(service(2, TrafficPolicy::Cluster).into());
    world.apply([service].into_iter().chain(slices(2, &[(&endpoint, "other")])).collect::<Vec<_>>());
    (world, servers)
}

/// Ports for a client to bind: any one, which the node's kernel could choose too, and one that it could not.
const CLIENT_PORTS: [u16; 2] = [0, 20_000];

/// A socket of this host that shares its port with others.
fn bound(host: &Host, kind: Type, at: SocketAddr) -> Socket {
    host.ns.run(|| {
        let socket = Socket::new(Domain::for_address(at), kind, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&at.into()).unwrap();
        socket
    })
}

fn local_port(socket: &Socket) -> u16 {
    socket.local_addr().unwrap().as_socket().unwrap().port()
}

/// Whether a client's kernel chooses such a port for its own conversations, by default.
fn is_ephemeral(port: u16) -> bool {
    (32_768..=60_999).contains(&port)
}

#[test]
fn the_clients_udp_port_is_kept_towards_every_endpoint_once_unless_its_kernel_chose_it() {
    let (mut world, _servers) = world_of_shared_endpoints();
    let (pod, server) = (world.lab.pod(0).clone(), world.lab.other_pod(0).clone());
    for (family, port) in FAMILIES.into_iter().flat_map(|family| CLIENT_PORTS.map(|port| (family, port))) {
        let socket = bound(&pod, Type::DGRAM, (pod.ip(family), port).into());
        let port = local_port(&socket);
        let socket = std::net::UdpSocket::from(socket);
        let ask = |world: &World, number| {
            socket.connect(world.address(Kind::ClusterIp, number, family)).unwrap();
            match ask_on(&socket, PATIENCE) {
                Outcome::Answered { by, source_port, .. } => {
                    assert!(!is_ephemeral(source_port), "{family} Service {number}: from {source_port}");
                    (by, source_port == port)
                }
                outcome => panic!("{family} {port} Service {number}: {outcome:?}"),
            }
        };
        let [endpoint, other_endpoint] = ["other-pod-0", "other-pod-1"].map(str::to_owned);
        let is_kept = !is_ephemeral(port);
        for _ in 0..2 {
            assert_eq!(ask(&world, 1), (endpoint.clone(), is_kept), "{family} {port}");
            assert_eq!(
                ask(&world, 3),
                (other_endpoint.clone(), is_kept),
                "{family} {port}: another endpoint"
            );
            assert_eq!(
                ask(&world, 2),
                (endpoint.clone(), false),
                "{family} {port}: Service 1's flow has the port"
            );
        }
        world.apply(slices(1, &[]));
        world.apply(slices(1, &[(&server, "other")]));
        assert_eq!(
            ask(&world, 1),
            (endpoint, is_kept),
            "{family} {port}: the flow that had the port has ended"
        );
    }
    assert_eq!(world.proxy().stats().udp_flows_opened, 16, "four of each client");
}

#[test]
fn a_pod_uses_one_udp_port_for_a_service_and_directly_for_its_endpoint() {
    let (world, _servers) =
        world(TrafficPolicy::Cluster, &[("other-pod-0", "other"), ("pod-1", "node"), ("node", "node")]);
    let pod = world.lab.pod(0);
    let patience = Some(PATIENCE);
    for family in FAMILIES {
        let socket = std::net::UdpSocket::from(bound(pod, Type::DGRAM, (pod.ip(family), 0).into()));
        socket.set_read_timeout(patience).unwrap();
        let service = world.address(Kind::ClusterIp, 1, family);
        let hosts = [world.lab.other_pod(0), world.lab.pod(1), world.lab.node()];
        let endpoints = hosts.map(|host| SocketAddr::new(host.ip(family), BACKEND));
        let ask = |to: SocketAddr| {
            socket.send_to(b"?", to).unwrap();
            let (_, from) = socket.recv_from(&mut [0; 64]).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(from, to, "the answer comes from whom was asked");
        };
        for _ in 0..3 {
            ask(service);
            endpoints.into_iter().for_each(ask);
        }
    }
}

#[test]
fn the_clients_tcp_port_is_kept_towards_every_endpoint_once_unless_its_kernel_chose_it() {
    let (world, _servers) = world_of_shared_endpoints();
    let pod = world.lab.pod(0);
    for (family, port) in FAMILIES.into_iter().flat_map(|family| CLIENT_PORTS.map(|port| (family, port))) {
        let mut at = SocketAddr::new(pod.ip(family), port);
        // One client port for three connections, which last until all have been looked at.
        let mut connections = Vec::new();
        for (number, name, is_free) in
            [(1, "other-pod-0", true), (3, "other-pod-1", true), (2, "other-pod-0", false)]
        {
            let socket = bound(pod, Type::STREAM, at);
            at.set_port(local_port(&socket));
            socket.connect_timeout(&world.address(Kind::ClusterIp, number, family).into(), PATIENCE).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answers = BufReader::new(std::net::TcpStream::from(socket));
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            let [by, _, source_port] = words[..] else { panic!("{line}") };
            let context = format!("{family} {at} Service {number}: {line}");
            let source_port: u16 = source_port.parse().unwrap();
            assert!(!is_ephemeral(source_port), "{context}");
            let is_kept = is_free && !is_ephemeral(at.port());
            assert_eq!((by, source_port == at.port()), (name, is_kept), "{context}");
            connections.push(answers);
        }
        for answers in &mut connections {
            let mut line = String::new();
            answers.get_ref().write_all(b"still here\n").unwrap();
            answers.read_line(&mut line).unwrap();
            assert_eq!(line, "still here\n");
        }
    }
}

/// Whether a line that is sent comes back.
fn echoes(stream: &std::net::TcpStream, line: &str) -> bool {
    let (mut writer, mut back) = (stream, String::new());
    let written = writer.write_all(line.as_bytes());
    written.and_then(|()| BufReader::new(stream).read_line(&mut back)).is_ok() && back == line
}

#[test]
fn a_pod_uses_one_tcp_port_for_a_service_and_directly_for_its_endpoint() {
    let (world, _servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let (pod, endpoint) = (world.lab.pod(0), world.lab.other_pod(0));
    for (family, service_first) in FAMILIES.into_iter().flat_map(|family| [(family, true), (family, false)]) {
        let mut at = SocketAddr::new(pod.ip(family), 0);
        let [service, direct] =
            [world.address(Kind::ClusterIp, 1, family), (endpoint.ip(family), BACKEND).into()];
        let order = if service_first { [service, direct] } else { [direct, service] };
        let streams = order.map(|to| {
            let socket = bound(pod, Type::STREAM, at);
            at.set_port(local_port(&socket));
            socket
                .connect_timeout(&to.into(), PATIENCE)
                .unwrap_or_else(|error| panic!("{at} to {to}: {error}"));
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let stream = std::net::TcpStream::from(socket);
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream
        });
        for _ in 0..3 {
            assert!(streams.iter().all(|stream| echoes(stream, "still here\n")), "{family} {order:?}");
        }
    }
}

#[test]
fn a_program_of_the_node_on_a_frontends_port_keeps_replies_back_only_if_it_does_not_share_it() {
    for (family, is_shared) in FAMILIES.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        // A lab for each: sockets of another round, of us or the program, would be in the way.
        let (world, _servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
        let to = world.address(Kind::ClusterIp, 1, family);
        let everywhere: SocketAddr = match family {
            Family::V4 => ([0; 4], to.port()).into(),
            Family::V6 => ([0; 16], to.port()).into(),
        };
        let program = bound(world.lab.node(), Type::DGRAM, everywhere);
        program.set_reuse_address(is_shared).unwrap();
        let patience = if is_shared { PATIENCE } else { SILENCE };
        let outcome = world.lab.pod(0).ask(Protocol::Udp, to, patience);
        assert_eq!(outcome.by(), is_shared.then_some("other-pod-0"), "{family}: {outcome:?}");
        let stats = world.proxy().stats();
        let lost = (stats.udp_no_reply_socket, stats.udp_unroutable);
        assert_eq!(lost, (u64::from(!is_shared), 0), "{family}: {stats:?}");
    }
}

/// A connection of this host from exactly this port, which the kernel is left to find free or not, as for any
/// connect(2) that comes with no port.
fn connect_from_port(host: &Host, port: u16, to: SocketAddr) -> std::io::Result<Socket> {
    host.ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        sluice_sys::local_port::choose_from(&socket, port..=port)?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket)
    })
}

#[test]
fn a_port_of_a_client_stays_free_for_the_nodes_own_connections() {
    let lab = lab();
    // A node whose processes may be given any port that clients are.
    lab.node().ns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65535")).unwrap();
    let mut world = World::new(lab, |_| ());
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let (pod, node) = (world.lab.pod(0), world.lab.node());
    for family in FAMILIES {
        let stream = pod.tcp_stream(world.address(Kind::ClusterIp, 1, family), PATIENCE).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let port = line.split_whitespace().last().unwrap().parse().unwrap();

        let endpoint = (world.lab.other_pod(0).ip(family), BACKEND).into();
        match connect_from_port(node, port, endpoint) {
            Ok(own) => assert_eq!(own.local_addr().unwrap().as_socket().unwrap().port(), port),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error()) => {
                eprintln!("skipped: this kernel is older than 6.3");
            }
            Err(error) => panic!("{family}: {error}"),
        }
    }
}

#[test]
fn a_service_without_flows_is_served_while_another_one_has_all_descriptors() {
    // Two for UDP: a flow, and the socket that it replies by.
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (1, 4));
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let _others = add_service(&mut world, 2, TrafficPolicy::Cluster, &[("other-pod-1", "other")]);
    for family in FAMILIES {
        for (number, name) in [(1, "other-pod-0"), (1, "other-pod-0"), (2, "other-pod-1"), (1, "other-pod-0")]
        {
            let outcome =
                world.lab.pod(0).ask(Protocol::Udp, world.address(Kind::ClusterIp, number, family), PATIENCE);
            assert_eq!(outcome.by(), Some(name), "{family}: {outcome:?}");
        }
    }
    let stats = world.proxy().stats();
    assert_eq!(
        (stats.udp_over_limit, stats.udp_flows_opened, stats.udp_flows_evicted),
        (0, 8, 7),
        "{stats:?}"
    );
}

#[test]
fn a_pod_with_as_many_connections_as_it_can_have_takes_nothing_from_others() {
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (2, 40));
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let connections: Vec<_> =
        (0..20).filter_map(|_| world.lab.pod(0).tcp_stream(to, PATIENCE).ok()).collect();
    wait::until("it has its share", || world.proxy().stats().tcp_over_share > 0);
    let its_own = || world.proxy().stats().tcp_active;
    wait::until("all are decided", || its_own() + world.proxy().stats().tcp_over_share == 20);
    let before = its_own();
    for protocol in [Protocol::Udp, Protocol::Tcp].into_iter().cycle().take(12) {
        let outcome = world.lab.pod(1).ask(protocol, to, PATIENCE);
        assert_eq!(outcome.by(), Some("other-pod-0"), "{outcome:?}");
        // There is room for one, with all those flows.
        wait::until("it has ended", || its_own() == before);
    }
    assert_eq!(world.proxy().stats().udp_over_limit, 0);
    drop(connections);
}

#[test]
fn a_pod_that_floods_udp_from_many_ports_ends_no_flow_of_others() {
    // Forty for UDP.
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (1, 60));
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        let quiet: Vec<_> = (0..5).map(|_| world.lab.pod(1).udp_socket(to).unwrap()).collect();
        let ask = |sockets: &[std::net::UdpSocket]| {
            for socket in sockets {
                let outcome = ask_on(socket, PATIENCE);
                assert_eq!(outcome.by(), Some("other-pod-0"), "{family}: {outcome:?}");
            }
        };
        ask(&quiet);
        for _ in 0..200 {
            // As soon as it is answered, so that none is lost before it reaches the proxy.
            ask(&[world.lab.pod(0).udp_socket(to).unwrap()]);
        }
        let before = world.proxy().stats();
        assert!(before.udp_flows_over_share > 100, "{family}: {before:?}");
        ask(&quiet);
        let opened = world.proxy().stats().udp_flows_opened - before.udp_flows_opened;
        assert_eq!(opened, 0, "{family}: the flows of the quiet one were all there");
    }
}

#[test]
fn a_udp_client_is_refused_where_its_endpoints_port_is_closed() {
    let mut world = World::new(lab(), |_| {});
    for (number, name, on) in [(1, "other-pod-0", "other"), (2, "pod-1", "node")] {
        let endpoint = host_named(&world.lab, name).clone();
        let service = Change::Apply(service(number, TrafficPolicy::Cluster).into());
        world.apply([service].into_iter().chain(slices(number, &[(&endpoint, on)])).collect::<Vec<_>>());
    }
    for (family, number) in FAMILIES.into_iter().flat_map(|family| [1, 2].map(|number| (family, number))) {
        for (host, kind) in [
            (world.lab.pod(0), Kind::ClusterIp),
            (world.lab.node(), Kind::ClusterIp),
            (world.lab.outside(), Kind::NodePort),
        ] {
            let outcome = host.ask(Protocol::Udp, world.address(kind, number, family), PATIENCE);
            assert_eq!(outcome, Outcome::Refused, "{family} {} Service {number}", host.name);
        }
    }
    // Counted once it is sent: a client may be faster than that.
    wait::until("every refusal is counted", || world.proxy().stats().udp_refusals == 12);
}

#[test]
fn nothing_captured_is_tracked_unless_asked_for() {
    for track in [false, true] {
        let mut world = World::new(lab(), |config| {
            let CaptureConfig::Tproxy(config) = &mut config.capture else { panic!("not capturing") };
            config.track = track;
        });
        let _servers = add_service(
            &mut world,
            1,
            TrafficPolicy::Cluster,
            &[("pod-1", "node"), ("other-pod-0", "other")],
        );
        // Somebody has to want connection tracking, or there is none.
        let firewall = "table inet firewall { chain forward { type filter hook forward priority 0; ct state invalid drop; }; \
                        chain input { type filter hook input priority 0; ct state invalid drop; }; \
                        chain output { type filter hook output priority 0; ct state invalid drop; }; }";
        world.lab.node().ns.nft_file(firewall).unwrap();
        for (family, protocol) in families_and_protocols() {
            for host in [world.lab.pod(0), world.lab.node(), world.lab.outside()] {
                for _ in 0..2 {
                    let outcome = host.ask(protocol, world.address(Kind::ClusterIp, 1, family), PATIENCE);
                    assert!(outcome.by().is_some(), "{track} {family} {protocol} {}: {outcome:?}", host.name);
                }
            }
        }
        let entries = world.lab.node().ns.conntrack_entries().unwrap();
        assert_eq!(entries > 0, track, "{entries} entries");
    }
}

#[test]
fn local_pods_are_told_by_interface_and_by_node_too() {
    type Detector = (&'static str, LocalPods, tproxy::LocalPods);
    let detectors: [Detector; 3] = [
        ("by prefix", LocalPods::Detected, tproxy::LocalPods::Interface { pattern: "veth*".into() }),
        ("by the Node's CIDRs", LocalPods::DetectedByNodeCidrs, tproxy::LocalPods::NodeCidrs),
        ("by nothing", LocalPods::DetectedIn(Vec::new()), tproxy::LocalPods::None),
    ];
    for (name, table, capture) in detectors {
        let mut world = World::new(lab(), |config| {
            config.table.local_pods = table;
            let CaptureConfig::Tproxy(config) = &mut config.capture else { panic!("not capturing") };
            config.local_pods = capture.clone();
            config.cluster_cidrs = Vec::new();
        });
        let _servers = add_service(&mut world, 1, TrafficPolicy::Local, &[("pod-1", "node")]);
        let _elsewhere = add_service(&mut world, 2, TrafficPolicy::Local, &[("other-pod-0", "other")]);
        let is_detected = capture != tproxy::LocalPods::None;
        for (family, protocol) in families_and_protocols() {
            let ask = |host: &Host, kind, number| {
                host.ask(
                    protocol,
                    world.address(kind, number, family),
                    if is_detected { PATIENCE } else { SILENCE },
                )
            };
            let context = format!("{name} {family} {protocol}");
            let [pod, outside] = [world.lab.pod(0), world.lab.outside()];
            // A pod keeps its address; others do only where no pod can be told.
            assert_eq!(ask(pod, Kind::ClusterIp, 1).source(), Some(pod.ip(family)), "{context}");
            let seen = ask(outside, Kind::ClusterIp, 1).source().unwrap();
            assert_eq!(world.is_nodes(seen), is_detected, "{context}");
            // Only a local pod is not bound by policy Local.
            let outcome = ask(pod, Kind::NodePort, 2);
            assert_eq!(outcome.by().is_some(), is_detected, "{context}: {outcome:?}");
        }
    }
}

#[test]
fn masquerade_all_hides_pods_at_cluster_ips() {
    let mut world = World::new(lab(), |config| config.table.masquerade_all = true);
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node")]);
    for (family, protocol) in families_and_protocols() {
        let outcome = world.lab.pod(0).ask(protocol, world.address(Kind::ClusterIp, 1, family), PATIENCE);
        assert!(outcome.source().is_some_and(|seen| world.is_nodes(seen)), "{outcome:?}");
    }
}

#[test]
fn node_ports_are_served_on_the_addresses_in_the_cidrs_as_they_come_and_go() {
    let mut world = World::new(lab(), |config| {
        config.node_ports = NodePortAddresses::Inside(vec!["198.51.100.0/24".parse().unwrap()]);
    });
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let at: SocketAddr = ([198, 51, 100, 7], 30_001).into();
    let router = &world.lab.router().ns;
    router.ip("route add 198.51.100.0/24 via 192.168.10.10").unwrap();
    let ask = |world: &World, to| world.lab.outside().ask(Protocol::Tcp, to, SILENCE);
    assert_eq!(ask(&world, ([192, 168, 10, 10], 30_001).into()), Outcome::Refused, "not in the CIDR");
    // IPv6 has no CIDR in the list: all of its addresses.
    let outcome =
        world.lab.outside().ask(Protocol::Tcp, world.address(Kind::NodePort, 1, Family::V6), PATIENCE);
    assert_eq!(outcome.by(), Some("pod-1"));

    world.lab.node().ns.ip("address add 198.51.100.7/32 dev eth0").unwrap();
    world.tick();
    assert_eq!(ask(&world, at).by(), Some("pod-1"));
    world.lab.node().ns.ip("address del 198.51.100.7/32 dev eth0").unwrap();
    world.tick();
    assert_eq!(ask(&world, at).by(), None);
}

#[test]
fn pods_on_a_bridge_are_served() {
    let lab = Lab::builder().wiring(Wiring::Bridged).build().unwrap_or_else(|error| panic!("{error}"));
    for setting in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        // As kube-proxy needs it. Not there without br_netfilter.
        let _ = lab.node().ns.set(setting, "1");
    }
    let mut world = World::new(lab, |_| {});
    let _servers =
        add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node"), ("other-pod-0", "other")]);
    let pod = world.lab.pod(0);
    for (family, protocol) in families_and_protocols() {
        for kind in KINDS {
            let outcomes = [(); 2].map(|()| pod.ask(protocol, world.address(kind, 1, family), PATIENCE));
            let context = format!("{family} {protocol} {kind:?}: {outcomes:?}");
            let mut answered: Vec<_> = outcomes.iter().filter_map(Outcome::by).collect();
            answered.sort_unstable();
            assert_eq!(answered, ["other-pod-0", "pod-1"], "{context}");
            let keeps_address = kind == Kind::ClusterIp;
            let is_kept = |outcome: &Outcome| outcome.source() == Some(pod.ip(family));
            assert!(outcomes.iter().all(|outcome| is_kept(outcome) == keeps_address), "{context}");
        }
    }
}
