//! Connections of others whose source port is a nodePort: a NAT chooses among all ports from 1024 on, and their answers
//! come to an address and port that are a Service's.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use ipnet::IpNet;
use sluice::proxy::CaptureConfig;
use sluice_model::{Change, Family, Protocol, ServiceCidr, TrafficPolicy};
use sluice_testbed::lab::{Host, Outcome, PATIENCE, SILENCE, WHO, ask_on};
use sluice_tests::wait;
use socket2::{Domain, Socket, Type};

use super::hosts::{add_service, families_and_protocols, tracking_lab, world_in};
use super::rules::Kind;
use super::world::{BACKEND, World};

/// What is sent to these ports by way of the node leaves with its address and the nodePort of Service 1.
const NAT: &str = "
    table inet others { chain postrouting {
        type nat hook postrouting priority 100;
        meta l4proto { tcp, udp } th dport 9000-9999 masquerade to :30001
    }; }";

fn assert_served(world: &World, context: &str) {
    for (family, protocol) in families_and_protocols() {
        let to = world.address(Kind::NodePort, 1, family);
        for client in [world.lab.outside(), world.lab.pod(0), world.lab.node()] {
            let outcome = client.ask(protocol, to, PATIENCE);
            assert_eq!(
                outcome.by(),
                Some("pod-1"),
                "{context}: {protocol} {to} {}: {outcome:?}",
                client.name
            );
        }
    }
}

#[test]
fn a_connection_whose_source_port_a_nat_has_made_a_node_port_is_answered() {
    let (world, _behind) = world_in(tracking_lab(), TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let [outside, pod, server, node] =
        [world.lab.outside(), world.lab.pod(0), world.lab.pod(1), world.lab.node()];
    let _servers = [(outside, 9_000), (server, 9_000), (server, 9_001), (server, 9_002)]
        .map(|(host, port)| host.serve(port).unwrap());
    node.ns.nft_file(NAT).unwrap();
    assert_served(&world, "before");
    for (family, protocol) in families_and_protocols() {
        // One at a time may have the port towards one of these.
        for (from, to, port) in
            [(pod, outside, 9_000), (pod, server, 9_000), (outside, server, 9_001), (node, server, 9_002)]
        {
            let outcome = from.ask(protocol, (to.ip(family), port).into(), PATIENCE);
            let context = format!("{family} {protocol} {} to {}: {outcome:?}", from.name, to.name);
            assert_eq!(outcome.by(), Some(&*to.name), "{context}");
            assert!(outcome.source().is_some_and(|source| world.is_nodes(source)), "masqueraded? {context}");
        }
    }
    assert_served(&world, "after");
}

/// Nothing keeps a process from a nodePort as its own, and connection tracking knows what it has asked.
#[test]
fn a_process_that_asks_from_a_node_port_is_answered() {
    let (world, _behind) = world_in(tracking_lab(), TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let [outside, pod, node] = [world.lab.outside(), world.lab.pod(0), world.lab.node()];
    let peers = [outside, pod, node];
    let _servers = peers.map(|host| host.serve(9_000).unwrap());
    for family in [Family::V4, Family::V6] {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        for peer in peers {
            let to = (peer.ip(family), 9_000).into();
            assert_eq!(greeting(node, (node.ip(family), 30_001).into(), to), peer.name, "{family} TCP");

            let socket = bound(node, (node.ip(family), 30_001).into());
            socket.connect(to).unwrap();
            let outcome = ask_on(&socket, PATIENCE);
            assert_eq!(outcome.by(), Some(&*peer.name), "{family} UDP: {outcome:?}");
            drop(socket);

            let socket = bound(node, (any, 30_001).into());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(WHO, to).unwrap();
            let mut answer = [0; 256];
            let (length, from) = socket
                .recv_from(&mut answer)
                .unwrap_or_else(|error| panic!("{family} UDP, any address, {}: {error}", peer.name));
            assert!(from == to && answer[..length].starts_with(peer.name.as_bytes()), "{from}");
        }
    }
    assert_served(&world, "after");
}

/// Programs that other tests are starting have a copy, until they run, of a socket that was just closed.
fn bound(host: &Host, to: SocketAddr) -> UdpSocket {
    let mut socket = None;
    wait::until("the address is free", || {
        socket = host.ns.run(|| UdpSocket::bind(to)).ok();
        socket.is_some()
    });
    socket.unwrap()
}

/// Who a process meets that connects from a port of its own.
fn greeting(host: &Host, from: SocketAddr, to: SocketAddr) -> String {
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(TcpStream::from(socket)).read_line(&mut line)?;
        Ok(line)
    };
    let line: std::io::Result<String> = host.ns.run(connect);
    let line = line.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    line.split(' ').next().unwrap_or_default().to_owned()
}

/// A process that others may reach at a nodePort's own address has its connections; datagrams are the Service's.
#[test]
fn datagrams_to_a_node_port_are_the_services_whoever_has_the_port() {
    let (world, _behind) = world_in(tracking_lab(), TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let node = world.lab.node();
    for family in [Family::V4, Family::V6] {
        let to = world.address(Kind::NodePort, 1, family);
        let theirs = node.ns.run(|| Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap());
        theirs.set_reuse_address(true).unwrap();
        theirs.bind(&to.into()).unwrap();
        for client in [world.lab.pod(0), node, world.lab.outside()] {
            let outcome = client.ask(Protocol::Udp, to, PATIENCE);
            assert_eq!(outcome.by(), Some("pod-1"), "{family} {}: {outcome:?}", client.name);
        }
    }
}

/// Of a connection that was answered with a cookie there is nothing but what the client sends back.
#[test]
fn node_ports_and_external_ips_are_served_with_syn_cookies() {
    for track in [false, true] {
        let mut world = World::new(tracking_lab(), |config| {
            let CaptureConfig::Tproxy(capture) = &mut config.capture else { panic!("not capturing") };
            capture.track = track;
        });
        let _behind = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("pod-1", "node")]);
        world.lab.node().ns.set("net/ipv4/tcp_syncookies", "2").unwrap();
        assert_served(&world, "cookies");
        for (kind, family) in [Kind::NodePort, Kind::ExternalIp]
            .into_iter()
            .flat_map(|kind| [Family::V4, Family::V6].map(|family| (kind, family)))
        {
            let to = world.address(kind, 1, family);
            for client in [world.lab.outside(), world.lab.pod(0), world.lab.node()] {
                client
                    .echo_tcp(to, 1_000_000, PATIENCE)
                    .unwrap_or_else(|error| panic!("tracked: {track}, {} to {to}: {error}", client.name));
            }
        }
    }
}

/// A range that has a node's network in it: what this node has is not Services', and its peers are outside of the range.
#[test]
fn a_node_whose_address_is_in_a_service_cidr_is_not_cut_off() {
    let (mut world, _behind) = world_in(tracking_lab(), TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let range = |family| IpNet::new(world.lab.node().ip(family), length(family)).unwrap().trunc();
    let cidrs = [Family::V4, Family::V6].map(range).into();
    let range = ServiceCidr { name: "too-wide".into(), cidrs };
    world.apply([Change::Apply(range.into())]);
    let [node, outside] = [world.lab.node(), world.lab.outside()];
    let _servers = [node, outside].map(|host| host.serve(9_000).unwrap());
    for (family, protocol) in families_and_protocols() {
        for (from, to) in [(outside, node), (node, outside), (world.lab.pod(0), node)] {
            let outcome = from.ask(protocol, (to.ip(family), 9_000).into(), PATIENCE);
            assert_eq!(outcome.by(), Some(&*to.name), "{family} {protocol} from {}: {outcome:?}", from.name);
        }
    }
    assert_served(&world, "nodePorts");
}

/// The node's own address and no other of the lab.
fn length(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// A Service that is another proxy's (`service.kubernetes.io/service-proxy-name`) has an address that we know nothing of.
#[test]
fn an_address_that_another_program_leads_somewhere_is_left_to_it() {
    let (world, _behind) = world_in(tracking_lab(), TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let node = world.lab.node();
    let [v4, v6] = [Family::V4, Family::V6].map(|family| world.lab.pod(1).ip(family));
    let nat = format!(
        "table inet others {{ chain prerouting {{
            type nat hook prerouting priority dstnat;
            ip daddr 10.96.0.77 meta l4proto {{ tcp, udp }} th dport 80 dnat ip to {v4}:{BACKEND}
            ip6 daddr fd00:96::77 meta l4proto {{ tcp, udp }} th dport 80 dnat ip6 to [{v6}]:{BACKEND}
        }}; }}"
    );
    let ask = |protocol, family, patience| {
        let to = match family {
            Family::V4 => "10.96.0.77:80",
            Family::V6 => "[fd00:96::77]:80",
        };
        [world.lab.pod(0), world.lab.outside()]
            .map(|client| client.ask(protocol, to.parse().unwrap(), patience))
    };
    for (family, protocol) in families_and_protocols() {
        let outcomes = ask(protocol, family, SILENCE);
        assert_eq!(outcomes, [Outcome::Silent, Outcome::Silent], "{family} {protocol}: nobody has it");
    }
    node.ns.nft_file(&nat).unwrap();
    for (family, protocol) in families_and_protocols() {
        let outcomes = ask(protocol, family, PATIENCE);
        assert!(outcomes.iter().all(|o| o.by() == Some("pod-1")), "{family} {protocol}: {outcomes:?}");
    }
}

/// Only Services' ports are behind their addresses: who pings one is told so, and no router learns of it.
#[test]
fn what_is_neither_tcp_nor_udp_stays_on_the_node() {
    const COUNT: &str = "table inet count { chain forward {
        type filter hook forward priority 0;
        ip daddr 10.96.0.0/16 counter comment \"left\"
    }; }";
    let (world, _behind) = world_in(tracking_lab(), TrafficPolicy::Cluster, &[("pod-1", "node")]);
    let node = world.lab.node();
    node.ns.nft_file(COUNT).unwrap();
    let ping = |to: &str| {
        let to: Ipv4Addr = to.parse().unwrap();
        world.lab.pod(0).ns.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::ICMPV4)).unwrap();
            // An echo request, with its checksum.
            socket.send_to(&[8, 0, 0xf7, 0xfe, 0, 1, 0, 0], &SocketAddr::from((to, 0)).into()).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            let mut answer = [0; 256];
            // Behind the header of IPv4 without options: the type of ICMP.
            (&socket).read(&mut answer).ok().map(|_| answer[20])
        })
    };
    assert_eq!(ping("10.96.0.1"), Some(3), "destination unreachable");
    assert_eq!(ping("10.96.0.77"), None, "no Service has it");
    let counted = node.ns.nft("list table inet count").unwrap();
    assert!(counted.contains("counter packets 0 bytes 0"), "{counted}");
}
