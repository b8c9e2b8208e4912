//! When a UDP flow ends: its endpoint stops serving, the Service goes, or its endpoints go to zero.

use super::*;

/// What happens to a flow through `web` to endpoint 1 when objects change.
type Case = (&'static str, fn(&mut Scene), bool);

struct Scene {
    service: Option<Service>,
    slice: Option<EndpointSlice>,
    other: Option<Service>,
    node: Option<Node>,
}

impl Scene {
    fn service(&mut self) -> &mut Service {
        self.service.as_mut().unwrap()
    }

    fn endpoints(&mut self) -> &mut Vec<Endpoint> {
        &mut self.slice.as_mut().unwrap().endpoints
    }

    fn first(&mut self, ready: bool, serving: bool, terminating: bool) {
        let first = &mut self.endpoints()[0];
        (first.ready, first.serving, first.terminating) = (ready, serving, terminating);
    }
}

/// Whether the flow goes on.
const STAYS: bool = true;
const ENDS: bool = false;

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("nothing changes",                              |_| {}, STAYS),
    ("its endpoint is removed",                      |s| _ = s.endpoints().remove(0), ENDS),
    ("another endpoint is removed",                  |s| _ = s.endpoints().remove(1), STAYS),
    ("an endpoint is added",                         |s| s.endpoints().push(Endpoint::ready([10, 0, 0, 9].into())), STAYS),
    ("its endpoint terminates and still serves",     |s| s.first(false, true, true), STAYS),
    ("its endpoint terminates and serves no more",   |s| s.first(false, false, true), ENDS),
    ("its endpoint is not ready and does not serve", |s| s.first(false, false, false), ENDS),
    ("its endpoint is not ready but serves",         |s| s.first(false, true, false), STAYS),
    ("a not-ready endpoint that is published anyway",|s| s.first(true, false, false), STAYS),
    ("its endpoints go to zero",                     |s| s.endpoints().clear(), ENDS),
    ("none of its endpoints serves any more",        |s| { s.first(false, false, false); s.endpoints().truncate(1); }, ENDS),
    ("its slice is deleted",                         |s| s.slice = None, ENDS),
    ("its slice moves to another Service",           |s| s.slice.as_mut().unwrap().service = ObjectName::new("default", "other"), ENDS),
    ("the endpoint's port number changes",           |s| s.slice.as_mut().unwrap().ports[0].number = 9, ENDS),
    ("the Service is deleted",                       |s| s.service = None, ENDS),
    ("the Service and its slice are deleted",        |s| { s.service = None; s.slice = None; }, ENDS),
    ("the Service gets another address",             |s| s.service().cluster_ips = vec![[10, 96, 0, 7].into()], ENDS),
    ("the Service gets one more address",            |s| s.service().external_ips = vec![[198, 51, 100, 1].into()], STAYS),
    ("its port gets another number",                 |s| s.service().ports[0].port = 54, ENDS),
    ("its port gets another name",                   |s| s.service().ports[0].name = "b".into(), ENDS),
    ("its port becomes TCP",                         |s| s.service().ports[0].protocol = Protocol::Tcp, ENDS),
    ("an older one without endpoints names the address",|s| s.other = Some(Service { name: ObjectName::new("default", "older"), created: 0, ..s.service().clone() }), STAYS),
    ("a younger Service wants the address",          |s| s.other = Some(Service { name: ObjectName::new("default", "younger"), created: 2, ..s.service().clone() }), STAYS),
    ("session affinity is switched on",              |s| s.service().affinity = Some(std::time::Duration::from_secs(9)), STAYS),
    ("the traffic policy becomes Local elsewhere",   |s| s.service().internal_policy = TrafficPolicy::Local, STAYS),
    ("the node gets a zone",                         |s| s.node.as_mut().unwrap().zone = Some("z1".into()), STAYS),
    ("hints lead elsewhere",                         |s| s.endpoints()[1].node_hints = Box::from(["here".into()]), STAYS),
];

#[test]
fn cases() {
    for (name, change, stays) in CASES {
        let mut web = service("web", 1, WEB);
        web.ports[0] = ServicePort { name: "".into(), protocol: Protocol::Udp, port: 53, node_port: None };
        let mut web_slice = slice("web-a", "web", &[1, 2]);
        web_slice.ports[0].protocol = Protocol::Udp;
        let node = Node {
            name: "here".into(),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            eligible: true,
        };
        let mut writer = writer();
        let mut reader = writer.table().reader();
        step(&mut writer, [apply(web.clone()), apply(web_slice.clone()), apply(node.clone())]);
        let key = FrontendKey::new(WEB.into(), 53, Protocol::Udp);
        let route = Arc::clone(reader.lookup(key).unwrap());
        let upstream = route.select(client(), Instant::now()).unwrap().next(Instant::now()).unwrap();
        assert_eq!(upstream.address().to_string(), "10.0.0.1:8080");
        assert!(route.keeps_flow(&upstream), "{name}: before");

        let mut scene = Scene { service: Some(web), slice: Some(web_slice), other: None, node: Some(node) };
        change(&mut scene);
        let service = scene
            .service
            .map_or_else(|| Change::Delete(ObjectRef::Service(ObjectName::new("default", "web"))), apply);
        let slice = scene.slice.map_or_else(
            || Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", "web-a"))),
            apply,
        );
        let rest = scene.other.map(apply).into_iter().chain(scene.node.map(apply));
        step(&mut writer, [service, slice].into_iter().chain(rest));
        assert_eq!(route.keeps_flow(&upstream), *stays, "{name}");
    }
}

#[test]
fn a_flow_ends_at_once_when_its_endpoint_goes_before_any_plan() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1, 2]))]);
    let route = Arc::clone(reader.lookup(key(WEB)).unwrap());
    let upstream = route.select(client(), Instant::now()).unwrap().next(Instant::now()).unwrap();
    writer.apply(apply(slice("web-a", "web", &[2])));
    assert!(!route.keeps_flow(&upstream));
    let next = route.select(client(), Instant::now()).unwrap().next(Instant::now()).unwrap();
    assert!(route.keeps_flow(&next), "the next datagram is decided afresh");
}
