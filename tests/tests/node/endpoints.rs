//! Endpoints in unusual places: the client itself, the networks of nodes, an address of the Service, the node.

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::PATIENCE;

use super::hosts::{add_service, families_and_protocols, host_named, lab, serve, world};
use super::rules::{KINDS, Kind};
use super::world::{BACKEND, FAMILIES, World, service, slices};

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
