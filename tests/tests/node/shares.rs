//! What one client or Service can have leaves something for others.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};

use sluice_model::{Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Outcome, PATIENCE, ask_on};
use sluice_tests::wait;
use socket2::{Domain, Socket, Type};

use super::hosts::{add_service, lab};
use super::rules::Kind;
use super::world::{FAMILIES, World};

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
fn a_client_of_udp_is_refused_where_this_node_has_no_descriptors_left() {
    // For the socket that a flow replies by, and none for the flow.
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (1, 1));
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let clients = [world.lab.pod(0), world.lab.node(), world.lab.outside()].map(Host::clone);
    let mut asked = 0;
    for family in FAMILIES {
        for client in &clients {
            let inside = client.name != world.lab.outside().name;
            let kind = if inside { Kind::ClusterIp } else { Kind::NodePort };
            let outcome = client.ask(Protocol::Udp, world.address(kind, 1, family), PATIENCE);
            assert_eq!(outcome, Outcome::Refused, "{family}: {}", client.name);
            asked += 1;
            assert_eq!(world.proxy().stats().udp_over_limit, asked, "{family}: {}", client.name);
        }
    }
    wait::until("it is counted that all were told", || world.proxy().stats().udp_refusals == asked);
}

#[test]
fn a_pod_with_as_many_connections_as_it_can_have_takes_nothing_from_others() {
    // What it may not have is enough for a few flows, with a socket for replies in each worker, and a connection.
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (2, 48));
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
        assert_eq!(outcome.by(), Some("other-pod-0"), "{outcome:?}: {:?}", world.proxy().stats());
        wait::until("it has ended", || its_own() == before);
    }
    assert_eq!(world.proxy().stats().udp_over_limit, 0);
    drop(connections);
}

#[test]
fn questions_over_udp_are_answered_while_several_clients_together_have_all_descriptors_of_tcp() {
    // An eighth of them is for UDP alone.
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (1, 48));
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let clients: Vec<_> = FAMILIES
        .into_iter()
        .flat_map(|family| {
            let [inside, outside] =
                [Kind::ClusterIp, Kind::NodePort].map(|kind| world.address(kind, 1, family));
            let lab = &world.lab;
            [(lab.pod(0), inside), (lab.node(), inside), (lab.outside(), outside), (lab.other(), outside)]
        })
        .collect();
    let mut held = Vec::new();
    let turned_away = || {
        let stats = world.proxy().stats();
        stats.tcp_over_share + stats.tcp_over_limit
    };
    // Each takes all that it may of what those before it have left, until there is none for the next one.
    for (host, to) in &clients {
        let before = turned_away();
        while turned_away() == before {
            held.push(host.tcp_stream(*to, PATIENCE));
            let is_decided = || world.proxy().stats().tcp_active + turned_away() == held.len() as u64;
            wait::until("it is decided", is_decided);
        }
    }
    let before = world.proxy().stats();
    assert!(before.tcp_over_share > 1 && before.tcp_over_limit > 0, "{before:?}");
    let pod = world.lab.pod(1);
    for family in FAMILIES.into_iter().cycle().take(20) {
        let to = world.address(Kind::ClusterIp, 1, family);
        let outcome = pod.ask(Protocol::Udp, to, PATIENCE);
        assert_eq!(outcome.by(), Some("other-pod-0"), "{family}: {outcome:?}: {:?}", world.proxy().stats());
        let outcome = pod.ask(Protocol::Tcp, to, PATIENCE);
        assert_eq!(outcome, Outcome::Reset, "{family}: {:?}", world.proxy().stats());
    }
    let stats = world.proxy().stats();
    assert_eq!((stats.udp_over_limit, stats.tcp_active), (0, before.tcp_active), "{stats:?}");
    drop(held);
}

#[test]
fn an_outside_host_with_an_address_of_its_network_for_each_connection_has_one_share() {
    let mut world =
        World::new(lab(), |config| (config.dataplane.workers, config.dataplane.descriptors) = (1, 48));
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let to = world.address(Kind::NodePort, 1, Family::V6);
    let outside = &world.lab.outside().ns;
    let connections: Vec<TcpStream> = (1..=20)
        .filter_map(|n| {
            let from: Ipv6Addr = format!("fd00:20::1:{n}").parse().unwrap();
            outside.ip(&format!("address add {from}/64 dev eth0 nodad")).unwrap();
            outside.run(|| connect_from(from, to)).ok()
        })
        .collect();
    wait::until("all are decided", || {
        let stats = world.proxy().stats();
        stats.tcp_active + stats.tcp_over_share + stats.tcp_over_limit == 20
    });
    let stats = world.proxy().stats();
    assert_eq!(stats.tcp_over_limit, 0, "{stats:?}");
    assert!(stats.tcp_over_share > 0, "{stats:?}");
    let outcome = world.lab.pod(1).ask(Protocol::Tcp, to, PATIENCE);
    assert_eq!(outcome.by(), Some("other-pod-0"), "{outcome:?}: {:?}", world.proxy().stats());
    drop(connections);
}

#[test]
fn an_outside_host_that_holds_ports_towards_an_endpoint_leaves_some_to_others() {
    let lab = lab();
    lab.node().ns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40031")).unwrap();
    let mut world = World::new(lab, |config| config.dataplane.workers = 1);
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    for family in FAMILIES {
        let to = world.address(Kind::NodePort, 1, family);
        let before = world.proxy().stats();
        let held: Vec<_> =
            (0..40).filter_map(|_| world.lab.outside().tcp_stream(to, PATIENCE).ok()).collect();
        // Three quarters, and one when there was as much as that left. A session that is refused counts as active until then.
        wait::until("all are decided", || {
            let stats = world.proxy().stats();
            let refused = stats.tcp_over_share - before.tcp_over_share;
            (stats.tcp_active, refused, stats.tcp_over_limit) == (25, 15, 0)
        });
        for client in [world.lab.pod(0), world.lab.other(), world.lab.pod(1)] {
            let outcome = client.ask(Protocol::Tcp, to, PATIENCE);
            assert_eq!(
                outcome.by(),
                Some("other-pod-0"),
                "{family}: {outcome:?}: {:?}",
                world.proxy().stats()
            );
        }
        drop(held);
        wait::until("all have ended", || world.proxy().stats().tcp_active == 0);
        let outcome = world.lab.outside().ask(Protocol::Tcp, to, PATIENCE);
        assert_eq!(outcome.by(), Some("other-pod-0"), "{family}: what has ended does not count: {outcome:?}");
    }
}

fn connect_from(from: Ipv6Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
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
fn a_pod_that_takes_all_ports_for_udp_ends_no_flow_of_others_and_keeps_nobody_from_a_port() {
    let lab = lab();
    // Sixteen are for UDP.
    lab.node().ns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40031")).unwrap();
    let mut world = World::new(lab, |config| config.dataplane.workers = 1);
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    for family in FAMILIES {
        let [cluster_ip, node_port] =
            [Kind::ClusterIp, Kind::NodePort].map(|kind| world.address(kind, 1, family));
        let ask = |socket: &std::net::UdpSocket| {
            let outcome = ask_on(socket, PATIENCE);
            assert_eq!(outcome.by(), Some("other-pod-0"), "{family}: {outcome:?}");
        };
        // Pods keep their addresses and need no port.
        let quiet: Vec<_> = (0..5).map(|_| world.lab.pod(1).udp_socket(cluster_ip).unwrap()).collect();
        quiet.iter().for_each(ask);
        let asked_twice = |socket: std::net::UdpSocket| {
            ask(&socket);
            ask(&socket);
            socket
        };
        let before = world.proxy().stats();
        let held: Vec<_> =
            (0..100).map(|_| asked_twice(world.lab.pod(0).udp_socket(node_port).unwrap())).collect();
        // Others of the node's own have ports, too.
        ask(&world.lab.node().udp_socket(cluster_ip).unwrap());
        let stats = world.proxy().stats();
        quiet.iter().for_each(ask);
        assert_eq!(
            world.proxy().stats().udp_flows_opened,
            stats.udp_flows_opened,
            "{family}: nobody else's ended"
        );
        let evicted = stats.udp_flows_evicted_for_port - before.udp_flows_evicted_for_port;
        assert!(evicted >= 85, "{family}: {stats:?}");
        assert_eq!((stats.udp_flows_evicted, stats.udp_flows_over_share, stats.udp_over_limit), (0, 0, 0));
        drop(held);
    }
}

/// Its answers wait in the kernel for its neighbour entry, and are charged to the socket that they were sent by.
#[test]
fn a_pod_that_answers_no_arp_takes_no_answers_from_others() {
    const EXCHANGES: usize = 100;
    let lab = lab();
    let node = &lab.node().ns;
    // As many as a socket has room for, for as long as the test takes.
    node.set("net/ipv4/neigh/veth0/unres_qlen_bytes", "67108864").unwrap();
    node.set("net/ipv4/neigh/veth0/mcast_solicit", "100000").unwrap();
    lab.pod(0).ns.set("net/ipv4/conf/eth0/arp_ignore", "8").unwrap();
    node.ip("neigh flush dev veth0").unwrap();
    let mut world = World::new(lab, |config| config.dataplane.workers = 1);
    let _servers = add_service(&mut world, 1, TrafficPolicy::Cluster, &[("other-pod-0", "other")]);
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let dead = world.lab.pod(0).udp_socket(to).unwrap();
    let lost = || world.proxy().stats().udp_dropped_full;
    let quiet = world.lab.pod(1).udp_socket(to).unwrap();
    let ask = |socket: &std::net::UdpSocket| {
        let outcome = ask_on(socket, PATIENCE);
        assert_eq!(outcome.by(), Some("other-pod-0"), "{outcome:?}: {:?}", world.proxy().stats());
    };
    ask(&quiet);
    wait::until("what it is sent has no room any more", || {
        (0..16).for_each(|_| _ = dead.send(&[0; 1400]));
        lost() > 0
    });
    for _ in 0..EXCHANGES {
        let before = lost();
        wait::until("it asks on", || {
            dead.send(&[0; 1400]).unwrap();
            lost() > before
        });
        ask(&quiet);
        ask(&world.lab.pod(1).udp_socket(to).unwrap());
    }
    let stats = world.proxy().stats();
    assert_eq!(
        (stats.udp_dropped_error, stats.udp_no_reply_socket, stats.udp_over_limit),
        (0, 0, 0),
        "{stats:?}"
    );
}
