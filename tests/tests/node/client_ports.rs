//! Which port an endpoint sees a client at, and who else may need that port.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, Server, Wiring, ask_on};
use sluice_tests::wait;
use socket2::{Domain, Socket, Type};

use super::hosts::{add_service, host_named, lab, serve, world};
use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, World, service, slices};

/// Services 1 and 2 with the same endpoint, and 3 with another one.
fn world_of_shared_endpoints() -> (World, Vec<Server>) {
    let (mut world, mut servers) = world(TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    servers.extend(add_service(&mut world, 3, TrafficPolicy::Cluster, &[("other-pod-1", "other")]));
    let endpoint = world.lab.other_pod(0).clone();
    let service = Change::Apply(service(2, TrafficPolicy::Cluster).into());
    world.apply([service].into_iter().chain(slices(2, &[(&endpoint, "other")])).collect::<Vec<_>>());
    (world, servers)
}

/// Ports for a client to bind: any one, which the node's kernel could choose too, one that it could not, and a privileged
/// one.
const CLIENT_PORTS: [u16; 3] = [0, 20_000, 900];

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
    assert_eq!(world.proxy().stats().udp_flows_opened, 24, "four of each client");
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
fn the_clients_tcp_port_is_kept_towards_every_endpoint_once_if_it_is_privileged() {
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
            let is_kept = is_free && at.port() < 1_024;
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

/// Services 1 to 3, each with one of these endpoints.
const ENDPOINTS: [(u8, &str, &str); 3] =
    [(1, "other-pod-0", "other"), (2, "pod-1", "node"), (3, "node", "node")];

#[test]
fn a_pod_uses_one_tcp_port_for_a_service_and_directly_for_its_endpoint() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let lab = Lab::builder().wiring(wiring).build().unwrap_or_else(|error| panic!("{error}"));
        let mut world = World::new(lab, |_| {});
        let _servers = ENDPOINTS.map(|(number, name, node)| {
            add_service(&mut world, number, TrafficPolicy::Cluster, &[(name, node)])
        });
        // Those that its kernel does not choose nobody has had before.
        let mut unchosen = (20_000..).step_by(2);
        for (family, (number, name, _)) in
            FAMILIES.into_iter().flat_map(|family| ENDPOINTS.map(|endpoint| (family, endpoint)))
        {
            let first = unchosen.next().unwrap();
            for (port, service_first) in [(0, true), (0, false), (first, true), (first + 1, false)] {
                let context =
                    format!("{wiring:?} {family} {name} from {port}, first the Service: {service_first}");
                assert_is_used_for_both(&world, (number, name), family, (port, service_first), &context);
            }
        }
    }
}

/// A pod connects to a Service, and to its endpoint, from one port, and both go on.
fn assert_is_used_for_both(
    world: &World,
    (number, endpoint): (u8, &str),
    family: Family,
    (port, service_first): (u16, bool),
    context: &str,
) {
    let pod = world.lab.pod(0);
    let mut at = SocketAddr::new(pod.ip(family), port);
    let service = world.address(Kind::ClusterIp, number, family);
    let direct = SocketAddr::new(host_named(&world.lab, endpoint).ip(family), BACKEND);
    let order = if service_first { [service, direct] } else { [direct, service] };
    let streams = order.map(|to| {
        let socket = bound(pod, Type::STREAM, at);
        at.set_port(local_port(&socket));
        socket
            .connect_timeout(&to.into(), PATIENCE)
            .unwrap_or_else(|error| panic!("{context}: {at} to {to}: {error}"));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let stream = std::net::TcpStream::from(socket);
        let greeted = BufReader::new(&stream).read_line(&mut String::new());
        assert!(greeted.is_ok(), "{context}: {at} to {to}: {greeted:?}");
        stream
    });
    for _ in 0..3 {
        assert!(streams.iter().all(|stream| echoes(stream, "still here\n")), "{context}: {at}");
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
        let outcome = world.lab.pod(0).ask(Protocol::Udp, to, PATIENCE);
        assert_eq!(outcome.by(), is_shared.then_some("other-pod-0"), "{family}: {outcome:?}");
        assert!(is_shared || outcome == Outcome::Refused, "{family}: {outcome:?}");
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
                sluice_sys::skipped("this kernel is older than 6.3");
            }
            Err(error) => panic!("{family}: {error}"),
        }
    }
}

#[test]
fn who_is_seen_with_the_nodes_address_gets_another_endpoint_where_the_ports_towards_one_are_used_up() {
    let lab = lab();
    lab.node().ns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001")).unwrap();
    let mut world = World::new(lab, |config| {
        (config.dataplane.workers, config.dataplane.client_share) = (1, 100);
    });
    let endpoints = [("other-pod-0", "other"), ("other-pod-1", "other")];
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &endpoints[..1]);
    let to = world.address(Kind::NodePort, 1, Family::V4);
    // Who answers, and the connection, which stays.
    let connect = |world: &World| {
        let stream = world.lab.outside().tcp_stream(to, PATIENCE).ok()?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).ok()?;
        Some((line.split_whitespace().next()?.to_owned(), stream))
    };
    let two: Vec<_> = (0..2).map(|_| connect(&world).expect("there is a port")).collect();
    assert!(two.iter().all(|(by, _)| by == "other-pod-0"));
    for lost in 1..=3 {
        assert!(connect(&world).is_none());
        assert_eq!(world.proxy().stats().tcp_over_limit, lost);
    }
    let pods = endpoints.map(|(name, node)| (host_named(&world.lab, name).clone(), node));
    let _other = serve(&pods[1].0);
    world.apply(slices(1, &pods.each_ref().map(|(pod, node)| (pod, *node))));
    let others: Vec<_> = (0..2).map(|_| connect(&world).expect("the other endpoint has ports")).collect();
    assert!(others.iter().all(|(by, _)| by == "other-pod-1"));
    assert!(connect(&world).is_none(), "now neither has");
    assert_eq!(world.proxy().stats().tcp_over_limit, 4);
    drop(two);
    wait::until("it is tried again", || connect(&world).is_some_and(|(by, _)| by == "other-pod-0"));
}
