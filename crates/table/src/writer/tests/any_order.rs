//! Any order of events ends in the same table as the final state applied at once, does no more work than the
//! change needs, and leaves nothing behind when everything is deleted.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Weak;

use proptest::prelude::*;
use sluice_model::{Family, ServiceCidr};

use super::*;
use crate::{Answer, Upstream};

/// Number of sequences in a normal test run.
const SEQUENCES: u32 = 10_000;

/// An event that changes one of a handful of objects.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Object `.0` now is variant `.1` of it.
    Apply(u8, u8),
    Delete(u8),
    /// The caller plans and publishes.
    Publish,
}

const SERVICES: u8 = 3;
const SLICES: u8 = 4;
const NODE: u8 = SERVICES + SLICES;
const CIDR: u8 = NODE + 1;
const OBJECTS: u8 = CIDR + 1;
const VARIANTS: u8 = 12;

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..OBJECTS, 0..VARIANTS).prop_map(|(object, variant)| Event::Apply(object, variant)),
        2 => (0..OBJECTS).prop_map(Event::Delete),
        2 => Just(Event::Publish),
    ];
    prop::collection::vec(event, 0..30)
}

/// Variants of a Service differ in every rule; different Services compete for addresses.
fn service_variant(n: u8, variant: u8) -> Service {
    let bit = |bit: u8| variant >> bit & 1 == 1;
    let name = ["a", "b", "c"][usize::from(n)];
    let mut service = service(name, i64::from(variant % 2), [10, 96, 0, if bit(0) { 1 } else { 10 + n }]);
    if bit(1) {
        service.cluster_ips.push("fd00::1".parse().unwrap());
        service.external_policy = TrafficPolicy::Local;
        service.health_check_node_port = Some(32_000 + u16::from(n));
    }
    if bit(2) {
        service.external_ips = vec![[198, 51, 100, 1].into()];
        service.load_balancer_ips = vec![[203, 0, 113, n].into(), [203, 0, 113, 9].into()];
        service.source_ranges = Some(vec!["192.0.2.0/24".parse().unwrap()]);
        service.annotations.insert("balance".into(), ["random", "source-hash", "?"][usize::from(n)].into());
    }
    if bit(3) {
        service.internal_policy = TrafficPolicy::Local;
        service.affinity = Some(std::time::Duration::from_secs(10));
        service.ports[0].node_port = Some(30_080);
        let port = ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: None };
        service.ports.push(port);
    }
    service
}

/// Variants of a slice belong to different Services, and differ in endpoints and their conditions.
fn slice_variant(n: u8, variant: u8) -> EndpointSlice {
    let owner = ["a", "b", "c"][usize::from(variant % 3)];
    let mut slice = slice(&format!("slice-{n}"), owner, &[]);
    slice.ports.push(SlicePort { name: "dns".into(), protocol: Protocol::Udp, number: 5353 });
    if variant == 11 {
        slice.family = Family::V6;
    }
    for i in 0..=variant % 4 {
        let address = match slice.family {
            Family::V4 => IpAddr::from([10, 0, 0, i + n % 2]),
            Family::V6 => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(i)]),
        };
        let state = (n + variant + i) % 5;
        slice.endpoints.push(Endpoint {
            ready: state < 3,
            serving: state < 4,
            terminating: state == 3,
            node: [Some("here".into()), Some("there".into()), None][usize::from(i % 3)].clone(),
            zone_hints: if variant > 6 {
                Box::from([["z1", "z2"][usize::from(i % 2)].into()])
            } else {
                Box::default()
            },
            node_hints: if variant > 9 {
                Box::from([["here", "there"][usize::from(i % 2)].into()])
            } else {
                Box::default()
            },
            ..Endpoint::ready(address)
        });
    }
    slice
}

fn object(n: u8, variant: u8) -> Object {
    match n {
        ..SERVICES => service_variant(n, variant).into(),
        SERVICES..NODE => slice_variant(n - SERVICES, variant).into(),
        NODE => Object::Node(Node {
            name: "here".into(),
            zone: ["z1", "z2"].get(usize::from(variant % 3)).map(|zone| (*zone).into()),
            addresses: [
                [192, 0, 2, 1].into(),
                [192, 0, 3, variant % 2].into(),
                "2001:db8::1".parse().unwrap(),
            ][usize::from(variant % 2)..]
                .to_vec(),
            pod_cidrs: Vec::new(),
            eligible: true,
        }),
        _ => ServiceCidr {
            name: "kubernetes".into(),
            cidrs: vec![["10.96.0.0/16", "10.96.0.0/24"][usize::from(variant % 2)].parse().unwrap()],
        }
        .into(),
    }
}

/// The state of a capture that has followed all plans so far.
#[derive(Debug, Default, PartialEq)]
struct Captured {
    frontends: BTreeMap<Frontend, FrontendState>,
    cluster_ips: BTreeSet<IpAddr>,
    ranges: Vec<IpNet>,
}

impl Captured {
    /// Follows a plan, and checks that it is possible.
    fn follow(&mut self, plan: &Plan) {
        for state in &plan.withdraw {
            assert_eq!(
                self.frontends.remove(&state.frontend).as_ref(),
                Some(state),
                "withdraws what was offered"
            );
        }
        for state in &plan.offer {
            assert_ne!(
                self.frontends.insert(state.frontend, state.clone()).as_ref(),
                Some(state),
                "offers news"
            );
        }
        let change = &plan.cluster_addresses;
        change.removed.iter().for_each(|ip| assert!(self.cluster_ips.remove(ip)));
        change.added.iter().for_each(|ip| assert!(self.cluster_ips.insert(*ip)));
        if let Some(ranges) = &change.ranges {
            self.ranges.clone_from(ranges);
        }
    }
}

/// Everything that the table answers, as text.
fn answers(writer: &Writer) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for route in writer.table().routes() {
        let mut text = String::new();
        for origin in [Origin::LocalPod, Origin::Node, Origin::Outside] {
            for ip in [[10, 1, 0, 1], [192, 0, 2, 7]] {
                let answer: Answer = route.answer(Client { ip: ip.into(), origin });
                let addresses: Vec<_> =
                    answer.endpoints.iter().map(|u| (u.address(), u.is_serving())).collect();
                writeln!(text, "{answer} {addresses:?}").unwrap();
            }
        }
        assert!(route.is_live());
        all.insert(route.frontend().to_string(), text);
    }
    for check in writer.table().health_checks().iter() {
        let counts = [Family::V4, Family::V6].map(|family| check.local_endpoints(family));
        all.insert(format!("{}:{}", check.service(), check.port()), format!("{counts:?}"));
    }
    all
}

/// A writer and the capture that follows it.
struct Run {
    writer: Writer,
    captured: Captured,
    objects: HashMap<u8, Object>,
    ports: Vec<Weak<crate::ServicePort>>,
    upstreams: Vec<Weak<Upstream>>,
}

impl Run {
    fn new() -> Self {
        let (ports, upstreams) = (Vec::new(), Vec::new());
        Self { writer: writer(), captured: Captured::default(), objects: HashMap::new(), ports, upstreams }
    }

    fn apply(&mut self, event: Event) {
        let before = self.writer.work();
        match event {
            Event::Apply(n, variant) => {
                let object = object(n, variant);
                self.objects.insert(n, object.clone());
                self.writer.apply(Change::Apply(object));
            }
            Event::Delete(n) => {
                // A deleted node stays as it was.
                if n != NODE {
                    self.objects.remove(&n);
                }
                self.writer.apply(Change::Delete(object(n, 0).reference()));
            }
            Event::Publish => self.publish(),
        }
        let cost = self.writer.work() - before;
        if let Event::Apply(n, _) | Event::Delete(n) = event {
            // A slice may move from one Service to another; only the node affects all.
            let services = if n == NODE { u64::from(SERVICES) + 1 } else { 2 };
            assert!(cost.endpoint_runs <= services, "{event:?}: {cost:?}");
            assert!(cost.frontend_runs <= services, "{event:?}: {cost:?}");
            assert!(cost.endpoints <= services * 4 * u64::from(SLICES) * 4, "{event:?}: {cost:?}");
            assert_eq!((cost.planned, cost.maps), (0, 0), "{event:?}: {cost:?}");
        } else {
            assert_eq!((cost.endpoints, cost.swaps), (0, 0), "{cost:?}");
            assert!(cost.maps <= 2 && cost.routes <= cost.planned, "{cost:?}");
        }
    }

    fn publish(&mut self) {
        let mut plan = self.writer.plan();
        self.captured.follow(&plan);
        self.writer.publish(&mut plan);
        self.writer.finish(&mut plan);
        for route in self.writer.table().routes() {
            self.ports.push(Arc::downgrade(route.service_port()));
            let backends = route.service_port().backends();
            let sets = backends.cluster().upstreams().iter().chain(backends.local().upstreams());
            self.upstreams.extend(sets.map(Arc::downgrade));
            // Leaves traces that could leak: a client with affinity, and an advanced rotation.
            _ = route.select(client(), Instant::now());
        }
        assert!(self.writer.plan().is_empty(), "nothing is left to do after a publication");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: SEQUENCES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_ends_in_the_same_table_and_in_nothing_when_all_is_deleted(events in events()) {
        let mut run = Run::new();
        events.into_iter().for_each(|event| run.apply(event));
        run.publish();

        let mut at_once = Run::new();
        run.objects.values().for_each(|object| at_once.writer.apply(Change::Apply(object.clone())));
        at_once.publish();
        prop_assert_eq!(answers(&run.writer), answers(&at_once.writer));
        prop_assert_eq!(&run.captured, &at_once.captured);

        (0..OBJECTS).for_each(|n| run.apply(Event::Delete(n)));
        run.publish();
        prop_assert_eq!(&run.captured, &Captured::default());
        prop_assert!(answers(&run.writer).is_empty());
        prop_assert!(run.writer.is_forgetful(), "{:?}", run.writer);
        prop_assert!(run.ports.iter().all(|port| port.upgrade().is_none()), "a service port lives on");
        prop_assert!(run.upstreams.iter().all(|upstream| upstream.upgrade().is_none()), "an endpoint lives on");
    }
}
