//! What is decided at the clients' sockets: that it is, that turns are exact, and that it goes on without an agent.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, Server};
use socket2::{Domain, Socket, Type};

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, PROTOCOLS, Sockets, World, service, slices};

/// A lab, and Service 1 with `pod-1` and `other-pod-0` behind it.
fn world() -> (World, Vec<Server>) {
    let sockets = Sockets::new();
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    let servers = [lab.pod(1), lab.other_pod(0)].map(|host| host.serve(BACKEND).unwrap()).into();
    let mut world = World::with_sockets(sockets, lab);
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
fn a_client_with_a_v4_mapped_address_is_served_too() {
    let (world, _servers) = world();
    let SocketAddr::V4(to) = world.address(Kind::ClusterIp, 1, Family::V4) else { panic!("IPv4") };
    let mapped: SocketAddr = (IpAddr::V6(to.ip().to_ipv6_mapped()), to.port()).into();
    let ask = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.connect_timeout(&mapped.into(), PATIENCE).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(mapped), "it sees the Service's address");
        let mut line = String::new();
        let stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    let line = world.lab.pod(0).ns.run(ask);
    assert!(line.contains("pod-"), "{line}");
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

/// Who answers a connected socket; an error if it cannot be asked.
fn answer(socket: &UdpSocket) -> io::Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// The error that a socket has which was not used meanwhile, once it has one.
fn error_of(socket: &UdpSocket) -> Option<io::ErrorKind> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.recv(&mut [0; 1]).err().map(|error| error.kind())
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
            assert_eq!(error_of(socket), Some(io::ErrorKind::ConnectionAborted), "{by}");
            ended += 1;
        }
    }
    assert_eq!(ended, sockets.len() / 2);

    // A Service that is deleted leads nowhere, whoever is behind it.
    world.apply([Change::Delete(sluice_model::ObjectRef::Service(super::world::name(1)))]);
    for (socket, _) in sockets.iter().filter(|(_, by)| by.contains("other-pod-0")) {
        assert_eq!(error_of(socket), Some(io::ErrorKind::ConnectionAborted));
    }
}

#[test]
fn so_have_those_whose_endpoint_went_while_no_agent_was_there() {
    let (mut world, _servers) = world();
    let _processes = [world.lab.pod(0), world.lab.node()].map(Process::of);
    let sockets = pairs(&world);
    world.stop();
    let mut changes = with_both(&world);
    changes.truncate(1);
    changes.extend(slices(1, &[(world.lab.pod(1), "node")]));
    world.start(changes);
    for (socket, by) in &sockets {
        if by.contains("other-pod-0") {
            assert_eq!(error_of(socket), Some(io::ErrorKind::ConnectionAborted), "{by}");
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
