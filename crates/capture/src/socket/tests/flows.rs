//! Which flows of unconnected UDP sockets keep their endpoint when objects change: the same as for relayed flows
//! in the table. A flow continues as long as its endpoint id keeps its meaning.

use sluice_model::{Node, TrafficPolicy};
use sluice_table::SocketNumber;

use super::*;

struct Scene {
    service: Service,
    slice: EndpointSlice,
    node: Node,
}

/// A change of objects, and what it does to a flow to endpoint 1.
type Case = (&'static str, fn(&mut Scene), bool);

impl Scene {
    fn endpoints(&mut self) -> &mut Vec<Endpoint> {
        &mut self.slice.endpoints
    }

    fn first(&mut self, ready: bool, serving: bool, terminating: bool) {
        let first = &mut self.endpoints()[0];
        (first.ready, first.serving, first.terminating) = (ready, serving, terminating);
    }
}

/// The flow continues.
const STAYS: bool = true;
const ENDS: bool = false;

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("nothing changes",                              |_| {}, STAYS),
    ("its endpoint is removed",                      |s| _ = s.endpoints().remove(0), ENDS),
    ("another endpoint is removed",                  |s| _ = s.endpoints().remove(1), STAYS),
    ("an endpoint is added",                         |s| s.endpoints().push(Endpoint::ready(at(9).ip())), STAYS),
    ("its endpoint terminates and still serves",     |s| s.first(false, true, true), STAYS),
    ("its endpoint terminates and serves no more",   |s| s.first(false, false, true), ENDS),
    ("its endpoint is not ready and does not serve", |s| s.first(false, false, false), ENDS),
    ("its endpoint is not ready but serves",         |s| s.first(false, true, false), STAYS),
    ("so it is, and there is no other",              |s| { s.first(false, true, false); s.endpoints().truncate(1); }, STAYS),
    ("its endpoints go to zero",                     |s| s.endpoints().clear(), ENDS),
    ("none of its endpoints serves any more",        |s| { s.first(false, false, false); s.endpoints().truncate(1); }, ENDS),
    ("the endpoint's port number changes",           |s| s.slice.ports[0].number = 9, ENDS),
    ("session affinity is switched on",              |s| s.service.affinity = Some(std::time::Duration::from_secs(9)), STAYS),
    ("the traffic policy becomes Local elsewhere",   |s| s.service.internal_policy = TrafficPolicy::Local, STAYS),
    ("it becomes Local, and another one is here",    |s| { s.service.internal_policy = TrafficPolicy::Local; s.endpoints()[1].node = Some("here".into()); }, STAYS),
    ("the node gets a zone",                         |s| s.node.zone = Some("z1".into()), STAYS),
    ("hints lead elsewhere",                         |s| s.endpoints()[1].node_hints = Box::from(["here".into()]), STAYS),
];

/// Two endpoints, which hints assign to two zones; the node is in none.
fn world() -> (World, Scene) {
    let mut world = World::new(Protocol::Udp, &[1, 2]);
    let name = ObjectName::new("default", "web");
    let ip = frontend(Protocol::Udp).address.ip();
    let port =
        sluice_model::ServicePort { name: "main".into(), protocol: Protocol::Udp, port: 80, node_port: None };
    let zoned = |(number, zone): (u8, &str)| Endpoint {
        zone_hints: Box::from([zone.into()]),
        ..Endpoint::ready(at(number).ip())
    };
    let scene = Scene {
        service: Service::new(name.clone(), vec![ip], vec![port]),
        slice: EndpointSlice {
            last_change: None,
            name: name.clone(),
            service: name,
            family: Family::V4,
            ports: vec![SlicePort { name: "main".into(), protocol: Protocol::Udp, number: 8080 }],
            endpoints: [(1, "z2"), (2, "z1")].map(zoned).into(),
        },
        node: Node {
            name: "here".into(),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            eligible: true,
        },
    };
    world.show(&scene);
    (world, scene)
}

impl World {
    fn show(&mut self, scene: &Scene) {
        let Scene { service, slice, node } = scene;
        let objects = [service.clone().into(), slice.clone().into(), node.clone().into()];
        objects.into_iter().for_each(|object| self.writer.apply(Change::Apply(object)));
        let mut plan = self.writer.plan();
        self.writer.publish(&mut plan);
        self.writer.finish(&mut plan);
        self.sockets.change(&self.writer.take_changed());
    }

    /// The id of a current endpoint.
    fn number(&self, number: u8) -> Option<SocketNumber> {
        let key = offered::key(&self.port(Protocol::Udp));
        let maps = &self.sockets.written.maps;
        [SetName::Cluster, SetName::Local]
            .into_iter()
            .find_map(|name| maps.numbers(key, name).find(|(address, _)| *address == at(number)))
            .map(|(_, number)| number)
    }

    /// Whether a flow with this id continues.
    fn keeps(&self, number: SocketNumber) -> bool {
        self.sockets.written.maps.kernel().endpoint(number.id).incarnation == number.incarnation
    }
}

#[test]
fn cases() {
    for (name, change, stays) in CASES {
        let (mut world, mut scene) = world();
        let first = world.number(1).unwrap();
        change(&mut scene);
        world.show(&scene);
        assert_eq!(world.keeps(first), *stays, "{name}");
        world.sockets.withdraw(&[frontend(Protocol::Udp)]);
        assert!(!world.keeps(first), "{name}, and the Service goes");
        world.sockets.written.maps.reclaim();
        assert_eq!(world.sockets.stats().endpoints, 0, "{name}");
    }
}

#[test]
fn an_endpoint_that_still_served_ends_its_flows_when_it_does_not_any_more_and_is_itself_when_it_is_back() {
    let (mut world, mut scene) = world();
    let [first, second] = [1, 2].map(|number| world.number(number).unwrap());
    scene.first(false, true, true);
    world.show(&scene);
    assert_eq!(world.number(1), None, "nothing new is led there");
    // The word was too early: it is ready.
    scene.first(true, true, false);
    world.show(&scene);
    assert_eq!((world.number(1), world.number(2)), (Some(first), Some(second)));
    scene.first(false, true, true);
    world.show(&scene);
    scene.first(false, false, true);
    world.show(&scene);
    assert!(!world.keeps(first) && world.keeps(second));
}

/// Then nothing changes that connections depend on.
#[test]
fn flows_end_with_an_endpoint_that_was_in_no_set_though_another_one_takes_its_place() {
    let (mut world, mut scene) = world();
    let first = world.number(1).unwrap();
    scene.node.zone = Some("z1".into());
    world.show(&scene);
    assert!(world.number(1).is_none() && world.keeps(first));
    scene.endpoints()[0].address = at(3).ip();
    world.show(&scene);
    assert!(!world.keeps(first));
}
