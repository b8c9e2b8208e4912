//! A change costs what it touches, however much else there is.

use super::*;

const SERVICES: u8 = 200;

fn address(n: u8) -> [u8; 4] {
    [10, 96, 0, n]
}

/// A writer with [`SERVICES`] Services of three endpoints each.
fn many() -> Writer {
    let mut writer = writer();
    let objects = (0..SERVICES).flat_map(|n| {
        let name = format!("s{n}");
        [apply(service(&name, 1, address(n))), apply(slice(&format!("{name}-a"), &name, &[1, 2, 3]))]
    });
    step(&mut writer, objects);
    writer
}

/// What the changes cost, with the plan and its publication.
fn cost(writer: &mut Writer, changes: impl IntoIterator<Item = Change>) -> Work {
    let before = writer.work();
    step(writer, changes);
    writer.work() - before
}

#[test]
fn cases() {
    let endpoints_removed = |n: &str| Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", n)));
    let deleted = |n: &str| Change::Delete(ObjectRef::Service(ObjectName::new("default", n)));
    let one_service = Work { endpoint_runs: 1, ..Work::default() };
    #[rustfmt::skip]
    let cases = [
        ("an object that says nothing new",
            vec![apply(slice("s7-a", "s7", &[1, 2, 3])), apply(service("s7", 1, address(7)))], Work::default()),
        ("an endpoint more: one service port",
            vec![apply(slice("s7-a", "s7", &[1, 2, 3, 4]))], Work { endpoints: 4, swaps: 1, ..one_service }),
        ("an endpoint less: one service port",
            vec![apply(slice("s7-a", "s7", &[1, 3]))], Work { endpoints: 2, swaps: 1, ..one_service }),
        ("the last endpoint: its verdict, but no route",
            vec![endpoints_removed("s7-a")], Work { swaps: 1, planned: 1, ..one_service }),
        ("endpoints of a Service that is not known: nothing to look at",
            vec![apply(slice("new-a", "new", &[1, 2]))], one_service),
        ("a new Service: its frontend, and one map",
            vec![apply(service("fresh", 1, address(250)))], Work { frontend_runs: 1, planned: 1, routes: 1, maps: 1, swaps: 1, ..one_service }),
        ("a deleted Service: its frontend, and one map",
            vec![deleted("s8")], Work { frontend_runs: 1, planned: 1, routes: 1, maps: 1, ..one_service }),
        ("three Services at once: one map",
            vec![deleted("s9"), deleted("s10"), deleted("s11")],
            Work { frontend_runs: 3, endpoint_runs: 3, planned: 3, routes: 3, maps: 1, ..Work::default() }),
        ("a policy: endpoints swapped, frontends left",
            vec![apply(Service { external_policy: TrafficPolicy::Local, ..service("s12", 1, address(12)) })],
            Work { frontend_runs: 1, endpoints: 3, swaps: 1, planned: 1, ..one_service }),
    ];
    for (name, changes, wanted) in cases {
        assert_eq!(cost(&mut many(), changes), wanted, "{name}");
    }
}

#[test]
fn a_heartbeat_of_the_node_costs_nothing() {
    let mut writer = many();
    let node = Node {
        name: "here".into(),
        zone: None,
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    step(&mut writer, [apply(node.clone())]);
    let cordoned = Node { eligible: false, pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()], ..node.clone() };
    assert_eq!(cost(&mut writer, [apply(node), apply(cordoned)]), Work::default());
}
