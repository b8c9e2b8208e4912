//! The node loses a route towards endpoints, or the address that they see.

use std::net::{IpAddr, UdpSocket};

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Lab, Outcome, PATIENCE, Server, ask_on};
use sluice_tests::wait;

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, World, service, slices};

/// A node whose packets to pods of the other node have an address that it may lose, and Service 1 with such a pod.
struct Scene {
    world: World,
    _server: Server,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
        let server = lab.other_pod(0).serve(BACKEND).unwrap();
        for family in FAMILIES {
            lab.node().ns.ip(&format!("address add {}/{} dev eth0", lost(family), bits(family))).unwrap();
        }
        let world = World::new(lab, |_| {});
        let mut scene = Self { world, _server: server };
        FAMILIES.into_iter().for_each(|family| scene.send_from(family, lost(family)));
        let mut changes = vec![Change::Apply(service(1, TrafficPolicy::Cluster).into())];
        changes.extend(slices(1, &[(scene.world.lab.other_pod(0), "other")]));
        scene.world.apply(changes);
        scene
    }

    /// Has the node's packets to the other node's pods come from an address.
    fn send_from(&self, family: Family, address: IpAddr) {
        let lab = &self.world.lab;
        let pods = other_pods(family);
        let route = format!("route replace {pods} via {} dev eth0 src {address}", lab.other().ip(family));
        lab.node().ns.ip(&route).unwrap();
    }

    /// A client from outside, whose flow's endpoint sees the address that the node may lose.
    fn flow(&self, family: Family) -> UdpSocket {
        let flow =
            self.world.lab.outside().udp_socket(self.world.address(Kind::NodePort, 1, family)).unwrap();
        assert_eq!(ask_on(&flow, PATIENCE).source(), Some(lost(family)));
        flow
    }

    /// Failures that endpoints are blamed for.
    fn failures(&self) -> u64 {
        let endpoints = self.world.proxy().observer().endpoints();
        assert_eq!(endpoints.len(), 4, "for each family and protocol");
        endpoints.iter().map(|(_, endpoint)| endpoint.stats().traffic().failures).sum()
    }

    /// The node loses it, and has another one.
    fn lose(&self, family: Family) {
        let node = self.world.lab.node();
        node.ns.ip(&format!("address del {}/{} dev eth0", lost(family), bits(family))).unwrap();
        self.send_from(family, node.ip(family));
    }
}

fn other_pods(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.2.0/24",
        Family::V6 => "fd00:244:2::/64",
    }
}

fn lost(family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 168, 10, 50].into(),
        Family::V6 => [0xfd00, 0x10, 0, 0, 0, 0, 0, 0x50].into(),
    }
}

fn bits(family: Family) -> &'static str {
    match family {
        Family::V4 => "24",
        Family::V6 => "64 nodad",
    }
}

#[test]
fn what_cannot_be_sent_from_an_address_that_is_gone_goes_by_a_new_flow_and_no_endpoint_is_blamed() {
    let scene = Scene::new();
    let flow = scene.flow(Family::V4);
    scene.lose(Family::V4);
    assert_eq!(ask_on(&flow, PATIENCE).source(), Some(scene.world.lab.node().ip(Family::V4)));
    let stats = scene.world.proxy().stats();
    assert_eq!((stats.udp_flows_opened, stats.udp_flows_active, stats.udp_dropped_error), (2, 1, 0));
    assert_eq!(scene.failures(), 0);
}

#[test]
fn an_endpoint_that_this_node_has_no_route_to_is_not_blamed_and_serves_once_there_is_one() {
    let scene = Scene::new();
    let (outside, mut lost_so_far) = (scene.world.lab.outside(), 0);
    for family in FAMILIES {
        let to = scene.world.address(Kind::NodePort, 1, family);
        // Before and after it is lost: a flow that is open, and such as are to be.
        let flow = scene.flow(family);
        scene.world.lab.node().ns.ip(&format!("route del {}", other_pods(family))).unwrap();
        scene.world.lab.node().ns.ip(&format!("route add unreachable {}", other_pods(family))).unwrap();
        for _ in 0..5 {
            assert_eq!(outside.ask(Protocol::Tcp, to, PATIENCE), Outcome::Reset, "{family}");
            flow.send(b"lost").unwrap();
        }
        lost_so_far += 5;
        wait::until("datagrams are lost", || scene.world.proxy().stats().udp_unroutable >= lost_so_far);
        assert_eq!(scene.failures(), 0, "{family}");
        scene.world.lab.node().ns.ip(&format!("route del unreachable {}", other_pods(family))).unwrap();
        scene.send_from(family, lost(family));
        assert!(outside.ask(Protocol::Tcp, to, PATIENCE).by().is_some());
        assert!(ask_on(&flow, PATIENCE).by().is_some());
    }
}

#[test]
fn flows_end_with_the_address_of_the_node_that_they_are_sent_from() {
    let mut scene = Scene::new();
    let flows = FAMILIES.map(|family| (family, scene.flow(family)));
    for (at, (family, flow)) in flows.iter().enumerate() {
        scene.world.tick();
        assert_eq!(scene.world.proxy().stats().udp_flows_active, 2, "{family}: nothing is gone");
        scene.lose(*family);
        scene.world.tick();
        let stats = scene.world.proxy().stats();
        assert_eq!((stats.udp_flows_active, stats.udp_flows_opened), (1, 2 + at as u64), "{family}");
        assert_eq!(ask_on(flow, PATIENCE).source(), Some(scene.world.lab.node().ip(*family)));
    }
}
