//! What is decided at the clients' sockets: that it is, that turns are exact, and that it goes on without an agent.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Instant;

use rustix::io::Errno;
use sluice::at_socket::AtSocketConfig;
use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Names, Namespace, Outcome, PATIENCE, SILENCE, Server};
use socket2::Socket;

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, PROTOCOLS, Sockets, World, service, slices};

/// A lab, and Service 1 with `pod-1` and `other-pod-0` behind it, which have served: nobody doubts them.
fn world() -> (World, Vec<Server>) {
    let (world, servers) = world_with(|_| {});
    prove(&world);
    (world, servers)
}

/// Connects until none is the relay's any more.
fn prove(world: &World) {
    for family in FAMILIES {
        let relayed =
            || (0..4).filter(|_| is_relayed(world, world.lab.pod(0), Protocol::Tcp, family)).count();
        assert!((0..5).any(|_| relayed() == 0), "{family}");
    }
}

/// The same, where nobody has connected to them.
fn world_with(change: impl FnOnce(&mut AtSocketConfig)) -> (World, Vec<Server>) {
    let sockets = Sockets::new();
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    let servers = [lab.pod(1), lab.other_pod(0)].map(|host| host.serve(BACKEND).unwrap()).into();
    let mut world = World::with_sockets_and(sockets, lab, change);
    let changes = with_both(&world);
    world.apply(changes);
    (world, servers)
}

fn with_both(world: &World) -> Vec<Change> {
    let mut changes = vec![Change::Apply(service(1, TrafficPolicy::Cluster).into())];
    changes.extend(slices(1, &[(world.lab.pod(1), "node"), (world.lab.other_pod(0), "other")]));
    changes
}

/// How many of these each has answered.
fn tally(outcomes: impl IntoIterator<Item = Outcome>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for outcome in outcomes {
        let by = outcome.by().map_or_else(|| format!("{outcome:?}"), str::to_owned);
        *tally.entry(by).or_default() += 1;
    }
    tally
}

fn each(times: usize) -> BTreeMap<String, usize> {
    [("pod-1".to_owned(), times), ("other-pod-0".to_owned(), times)].into()
}

#[test]
fn no_worker_has_a_part_in_it_and_turns_are_exact() {
    let (world, _servers) = world();
    let before = world.proxy().stats();
    for family in FAMILIES {
        for host in [world.lab.pod(0), world.lab.node()] {
            for protocol in PROTOCOLS {
                let to = world.address(Kind::ClusterIp, 1, family);
                let outcomes = (0..10).map(|_| host.ask(protocol, to, PATIENCE));
                assert_eq!(tally(outcomes), each(5), "{family} {protocol} {}", host.name);
            }
        }
    }
    assert_eq!(format!("{:?}", world.proxy().stats()), format!("{before:?}"));
    // From a pod to an external address the endpoint is to see the node's: that is the relay's.
    let to = world.address(Kind::NodePort, 1, Family::V4);
    assert!(world.lab.pod(0).ask(Protocol::Tcp, to, PATIENCE).by().is_some());
    assert_ne!(format!("{:?}", world.proxy().stats()), format!("{before:?}"));
}

#[test]
fn a_client_with_a_v4_mapped_address_is_one_of_ipv4() {
    let (world, _servers) = world();
    let before = world.proxy().stats();
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let SocketAddr::V4(v4) = to else { panic!("IPv4") };
    let mapped: SocketAddr = (v4.ip().to_ipv6_mapped(), v4.port()).into();
    for host in [world.lab.pod(0), world.lab.node()] {
        for protocol in PROTOCOLS {
            let outcomes: Vec<Outcome> = (0..4).map(|_| host.ask(protocol, mapped, PATIENCE)).collect();
            let source = Some(host.ip(Family::V4));
            assert!(outcomes.iter().all(|outcome| outcome.source() == source), "{outcomes:?}");
            assert_eq!(tally(outcomes), each(2), "{protocol} {}", host.name);
        }
        let (stream, socket) = (host.tcp_stream(mapped, PATIENCE).unwrap(), host.udp_socket(mapped).unwrap());
        let peers = [stream.peer_addr().unwrap(), socket.peer_addr().unwrap()];
        assert_eq!(peers, [mapped; 2], "it sees the Service's address");
    }
    assert_eq!(format!("{:?}", world.proxy().stats()), format!("{before:?}"), "no worker has a part in it");
}

#[test]
fn without_an_agent_it_goes_on_and_its_successor_takes_over_in_the_middle_of_a_turn() {
    let (mut world, _servers) = world();
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let first = world.lab.pod(0).ask(Protocol::Tcp, to, PATIENCE);
    world.stop();
    let during: Vec<Outcome> = (0..10).map(|_| world.lab.pod(0).ask(Protocol::Tcp, to, PATIENCE)).collect();
    assert_eq!(tally(during.clone()), each(5));
    let load = world.lab.pod(0).load(Protocol::Tcp, to);
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let changes = with_both(&world);
    world.start(changes);
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(first.by().is_some());
}

#[test]
fn endpoints_that_are_replaced_one_by_one_cost_no_connection() {
    let (mut world, _servers) = world();
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let loads = [world.lab.pod(0), world.lab.node()].map(|host| host.load(Protocol::Tcp, to));
    for round in 0..40 {
        let (here, there) = (world.lab.pod(1).clone(), world.lab.other_pod(0).clone());
        let endpoints: &[_] = match round % 3 {
            0 => &[(&here, "node")],
            1 => &[(&there, "other")],
            _ => &[(&here, "node"), (&there, "other")],
        };
        world.apply(slices(1, endpoints));
        for load in &loads {
            assert!(load.answers_more(1, PATIENCE), "round {round}: {:?}", load.report());
        }
    }
    for load in loads {
        let report = load.stop();
        assert_eq!(report.failed, 0, "{report:?}");
    }
}

/// What a pod's sockets are found by.
struct Process(std::process::Child);

impl Process {
    fn of(host: &Host) -> Self {
        let cat = || std::process::Command::new("cat").stdin(Stdio::piped()).spawn();
        Self(host.ns.run(cat).expect("cat is here"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connected(host: &Host, to: SocketAddr) -> UdpSocket {
    host.ns.run(|| {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(to).unwrap();
        socket
    })
}

/// As every program does it: a call with a time limit is not begun again by itself after it was interrupted (signal(7)).
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// Who answers a connected socket; an error if it cannot be asked.
fn answer(socket: &UdpSocket) -> io::Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who")?;
    let mut buffer = [0; 256];
    let length = receive(socket, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// The error that a socket has which was not used meanwhile, once it has one. The agent does what it does now and then: one
/// that has just been started may find its predecessor's pins locked for a moment, by a program that another test starts.
fn error_of(world: &mut World, socket: &UdpSocket) -> Option<io::ErrorKind> {
    let deadline = Instant::now() + PATIENCE;
    socket.set_read_timeout(Some(SILENCE / 5)).unwrap();
    loop {
        world.tick();
        match receive(socket, &mut [0; 1]).err().map(|error| error.kind()) {
            Some(io::ErrorKind::WouldBlock) if Instant::now() < deadline => {}
            error => return error,
        }
    }
}

/// Sockets of a pod and of the node that are connected to Service 1, and whom each is answered by.
fn pairs(world: &World) -> Vec<(UdpSocket, String)> {
    let mut sockets = Vec::new();
    for family in FAMILIES {
        let to = world.address(Kind::ClusterIp, 1, family);
        for host in [world.lab.pod(0), world.lab.node()] {
            for _ in 0..2 {
                let socket = connected(host, to);
                let by = answer(&socket).unwrap();
                sockets.push((socket, by));
            }
        }
    }
    sockets
}

#[test]
fn connected_datagram_sockets_of_an_endpoint_that_went_have_an_error_and_no_others() {
    let (mut world, _servers) = world();
    let _processes = [world.lab.pod(0), world.lab.node()].map(Process::of);
    let sockets = pairs(&world);
    let changes = slices(1, &[(world.lab.other_pod(0), "other")]);
    world.apply(changes);
    let mut ended = 0;
    for (socket, by) in &sockets {
        if by.contains("other-pod-0") {
            assert!(answer(socket).unwrap().contains("other-pod-0"));
        } else {
            assert_eq!(error_of(&mut world, socket), Some(io::ErrorKind::ConnectionAborted), "{by}");
            // It is not connected any more, which is all that is told to who sends before it receives; and it may be again.
            let unconnected = socket.send(b"who").unwrap_err();
            assert_eq!(Errno::from_io_error(&unconnected), Some(Errno::DESTADDRREQ), "{by}");
            let family = Family::of(socket.local_addr().unwrap().ip());
            socket.connect(world.address(Kind::ClusterIp, 1, family)).unwrap();
            assert!(answer(socket).unwrap().contains("other-pod-0"));
            ended += 1;
        }
    }
    assert_eq!(ended, sockets.len() / 2);

    // A Service that is deleted leads nowhere, whoever is behind it.
    world.apply([Change::Delete(sluice_model::ObjectRef::Service(super::world::name(1)))]);
    for (socket, _) in &sockets {
        assert_eq!(error_of(&mut world, socket), Some(io::ErrorKind::ConnectionAborted));
    }
}

#[test]
fn so_have_those_whose_endpoint_went_while_no_agent_was_there() {
    an_endpoint_goes_between_two_agents(|_| {});
}

#[test]
fn so_have_they_where_the_next_agent_has_maps_of_another_size() {
    an_endpoint_goes_between_two_agents(|config| config.endpoints *= 2);
}

fn an_endpoint_goes_between_two_agents(change: impl FnOnce(&mut AtSocketConfig)) {
    let (mut world, _servers) = world();
    let _processes = [world.lab.pod(0), world.lab.node()].map(Process::of);
    let sockets = pairs(&world);
    world.stop();
    world.change_sockets(change);
    let mut changes = with_both(&world);
    changes.truncate(1);
    changes.extend(slices(1, &[(world.lab.pod(1), "node")]));
    world.start(changes);
    for (socket, by) in &sockets {
        if by.contains("other-pod-0") {
            assert_eq!(error_of(&mut world, socket), Some(io::ErrorKind::ConnectionAborted), "{by}");
        } else {
            assert!(answer(socket).unwrap().contains("pod-1"));
        }
    }
}

#[test]
fn a_socket_that_is_not_connected_goes_on_with_another_endpoint() {
    let (mut world, _servers) = world();
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let socket = world.lab.pod(0).ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let ask = || {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"who", to).unwrap();
        let mut buffer = [0; 256];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to);
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    for _ in 0..3 {
        let first = ask();
        assert_eq!(ask(), first, "it keeps its endpoint");
        let (here, there) = (world.lab.pod(1).clone(), world.lab.other_pod(0).clone());
        let left = if first.contains("other-pod-0") { (&here, "node") } else { (&there, "other") };
        world.apply(slices(1, &[left]));
        assert!(ask().contains(&left.0.name), "{first}");
        world.apply(slices(1, &[(&here, "node"), (&there, "other")]));
    }
}

/// Whether a worker has a part in a connection of this host to Service 1.
fn is_relayed(world: &World, host: &Host, protocol: Protocol, family: Family) -> bool {
    // Both are counted before the client is answered; what ends is counted at some time after it.
    let begun = |world: &World| {
        let stats = world.proxy().stats();
        stats.tcp_accepted + stats.udp_flows_opened
    };
    let before = begun(world);
    let outcome = host.ask(protocol, world.address(Kind::ClusterIp, 1, family), PATIENCE);
    assert!(outcome.by().is_some(), "{family} {protocol} {}: {outcome:?}", host.name);
    begun(world) > before
}

#[test]
fn with_host_only_pods_are_relayed_and_the_nodes_processes_are_not() {
    let (world, _servers) = world_with(|config| config.host_only = true);
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            assert!(is_relayed(&world, world.lab.pod(0), protocol, family));
            assert!(!is_relayed(&world, world.lab.node(), protocol, family));
        }
    }
}

#[test]
fn a_service_is_kept_out_by_its_annotation_and_let_in_again() {
    let (mut world, _servers) = world();
    let both = |world: &World| {
        [world.lab.pod(0), world.lab.node()].map(|host| is_relayed(world, host, Protocol::Tcp, Family::V4))
    };
    for (value, wanted) in [(None, false), (Some("false"), true), (Some("true"), false), (Some("off"), true)]
    {
        let mut service = service(1, TrafficPolicy::Cluster);
        service.annotations.extend(value.map(|value| ("socket-mode".into(), value.into())));
        world.apply([Change::Apply(service.into())]);
        // To those who decide at sockets its endpoints are new again.
        if !wanted {
            prove(&world);
        }
        assert_eq!(both(&world), [wanted; 2], "{value:?}");
    }
}

#[test]
fn what_does_not_fit_is_relayed() {
    let (mut world, _servers) = world_with(|config| config.endpoints = 3);
    let relayed = |world: &World| {
        let clients = FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (protocol, family)));
        let is_relayed = |protocol, family| is_relayed(world, world.lab.pod(0), protocol, family);
        // The first connection to each of two endpoints is relayed in any case.
        let at_last = |protocol, family| [(); 3].map(|()| is_relayed(protocol, family))[2];
        clients.filter(|(protocol, family)| at_last(*protocol, *family)).count()
    };
    // Two endpoints in each of four service ports, and there is room for one and a half.
    assert_eq!(relayed(&world), 3);
    world.apply(slices(1, &[(world.lab.pod(1), "node")]));
    world.tick();
    assert_eq!(relayed(&world), 1);
    let changes = with_both(&world);
    world.apply(changes);
    assert_eq!(relayed(&world), 3);
}

/// As Istio and Linkerd do it: rules in the pod's namespace turn what leaves it to a proxy there, which asks the kernel
/// where it was to go.
#[test]
fn a_sidecar_sees_the_services_address() {
    let (world, _servers) = world();
    let (pod, to) = (world.lab.pod(0), world.address(Kind::ClusterIp, 1, Family::V4));
    let port = AtSocketConfig::SIDECAR_PORTS[0];
    let mesh = format!(
        "table ip mesh {{
            chain output {{
                type nat hook output priority -100
                ip protocol tcp redirect to :{port}
            }}
        }}"
    );
    pod.ns.nft_file(&mesh).unwrap();
    let proxy = pod.ns.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
    let _client = pod.ns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    let taken: Socket = proxy.accept().unwrap().0.into();
    assert_eq!(taken.original_dst_v4().unwrap().as_socket(), Some(to));
}

/// As network policies of Calico and others do it; and that nobody may rely on it.
#[test]
fn rules_about_forwarded_packets_see_the_pods_at_both_ends_but_for_what_is_in_doubt() {
    let (mut world, _servers) = world();
    let (client, server) = (world.lab.pod(0).clone(), world.lab.pod(1));
    let policy = format!(
        "table ip policies {{
            chain forward {{
                type filter hook forward priority 0
                ip saddr {} ip daddr {} tcp dport {BACKEND} reject with tcp reset
            }}
        }}",
        client.v4, server.v4
    );
    world.lab.node().ns.nft_file(&policy).unwrap();
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    // By turns.
    let outcomes: Vec<Outcome> = (0..2).map(|_| client.ask(Protocol::Tcp, to, PATIENCE)).collect();
    let refused = outcomes.iter().filter(|outcome| outcome.by().is_none()).count();
    let by_the_other = outcomes.iter().filter(|outcome| outcome.by() == Some("other-pod-0")).count();
    assert_eq!((refused, by_the_other), (1, 1), "{outcomes:?}");
    // By its refusal it is in doubt: while an agent lives that is a matter of its relay, whose packets are not forwarded.
    let ask = || {
        world.tick();
        client.ask(Protocol::Tcp, to, PATIENCE)
    };
    let outcomes: Vec<Outcome> = std::iter::repeat_with(ask).take(4).collect();
    assert!(outcomes.iter().any(|outcome| outcome.by() == Some("pod-1")), "{outcomes:?}");
}

#[test]
fn a_pod_that_reaches_itself_sees_its_own_address() {
    let (mut world, _servers) = world();
    let own = world.lab.pod(1).clone();
    world.apply(slices(1, &[(&own, "node")]));
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let outcome = own.ask(protocol, world.address(Kind::ClusterIp, 1, family), PATIENCE);
            let told = (outcome.by(), outcome.source());
            assert_eq!(told, (Some("pod-1"), Some(own.ip(family))), "{family} {protocol}");
        }
    }
}

/// As with kind or a cluster in Docker within a pod of CI: its Services have the addresses that those of the node's cluster have.
#[test]
fn a_cluster_within_a_pod_has_its_own_services_at_the_same_addresses_and_pods_are_known_by_name() {
    let names = Names::new().unwrap();
    let (mut world, _servers) = world_with(|config| config.namespaces = vec![names.path().into()]);
    let pod = world.lab.pod(0).clone();
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    // Its node and its client are on a cable of their own.
    let [inner_node, inner_client] = ["inner-node", "inner-client"].map(|name| Namespace::new(name).unwrap());
    let cable = format!("link add eth0 type veth peer name eth0 netns {}", inner_client.path().display());
    inner_node
        .ip_batch(&format!(
            "{cable}\nlink set eth0 up\naddr add 172.31.0.1/24 dev eth0\nlink set lo up\naddr add {} dev lo\n",
            to.ip()
        ))
        .unwrap();
    inner_client
        .ip_batch(
            "link set eth0 up\naddr add 172.31.0.2/24 dev eth0\nroute add 10.96.0.0/16 via 172.31.0.1\n",
        )
        .unwrap();
    let listener = inner_node.run(|| TcpListener::bind(to)).unwrap();
    let receiver = inner_node.run(|| UdpSocket::bind(to)).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();

    let until_relayed = |world: &mut World, wanted: bool| {
        let deadline = Instant::now() + PATIENCE;
        let mut in_line = 0;
        // Endpoints in doubt are relayed once in any case.
        while in_line < 4 {
            world.tick();
            let is_so = is_relayed(world, &pod, Protocol::Tcp, Family::V4) == wanted;
            in_line = if is_so { in_line + 1 } else { 0 };
            assert!(Instant::now() < deadline, "relayed: {}", !wanted);
        }
    };
    // Without any name all would be taken for pods.
    names.add(&world.lab.pod(1).ns).unwrap();
    until_relayed(&mut world, true);
    names.add(&pod.ns).unwrap();
    until_relayed(&mut world, false);

    world.tick();
    let client = inner_client.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    for connects in [true, false] {
        world.tick();
        let client = inner_client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        if connects {
            inner_client.run(|| client.connect(to)).unwrap();
            client.send(b"who").unwrap();
        } else {
            client.send_to(b"who", to).unwrap();
        }
        let (_, from) = receiver.recv_from(&mut [0; 16]).unwrap();
        assert_eq!((from.ip(), from.port()), ([172, 31, 0, 2].into(), client.local_addr().unwrap().port()));
    }

    names.remove(&pod.ns).unwrap();
    until_relayed(&mut world, true);
}
