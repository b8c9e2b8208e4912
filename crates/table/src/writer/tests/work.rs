//! A change costs as much as it touches, whatever else there is.

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

/// The work that the changes cause, including the plan and its publication.
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
            vec![apply(slice("s7-a", "s7", &[1, 2, 3, 4]))], Work { endpoints: 4, searched: 1, swaps: 1, ..one_service }),
        ("an endpoint less: one service port",
            vec![apply(slice("s7-a", "s7", &[1, 3]))], Work { endpoints: 2, searched: 1, swaps: 1, ..one_service }),
        ("the last endpoint: its verdict, but no route",
            vec![endpoints_removed("s7-a")], Work { searched: 1, swaps: 1, planned: 1, ..one_service }),
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
            Work { frontend_runs: 1, endpoints: 3, searched: 2, swaps: 1, planned: 1, ..one_service }),
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

#[test]
fn a_service_with_many_ports_and_ranges_costs_what_one_port_does_for_each() {
    const PORTS: u16 = 500;
    let name = |n: u16| -> Arc<str> { format!("p{n}").into() };
    let service_port =
        |n| ServicePort { name: name(n), protocol: Protocol::Tcp, port: 1 + n, node_port: None };
    let slice_port = |n| SlicePort { name: name(n), protocol: Protocol::Tcp, number: 1 + n };
    let service = |ports: std::ops::Range<u16>| Service {
        load_balancer_ips: vec![[203, 0, 113, 1].into()],
        source_ranges: Some((0..100).map(|n| format!("192.0.{n}.0/24").parse().unwrap()).collect()),
        ports: ports.map(service_port).collect(),
        ..service("web", 1, WEB)
    };
    let slice = |endpoints: &[u8]| EndpointSlice {
        ports: (0..PORTS).map(slice_port).collect(),
        ..slice("web-a", "web", endpoints)
    };
    let mut writer = writer();
    step(&mut writer, [apply(service(0..PORTS))]);

    let frontends = 2 * u64::from(PORTS);
    let all = cost(&mut writer, [apply(slice(&[1]))]);
    assert_eq!((all.endpoints, all.planned), (u64::from(PORTS), frontends));
    assert_eq!(all.searched, u64::from(PORTS) + frontends, "each port of the slice and each frontend once");
    let list = |writer: &Writer| {
        let lists: Vec<_> =
            writer.table().routes().iter().filter_map(|route| route.allowed_sources()).collect();
        assert_eq!(lists.len(), usize::from(PORTS));
        assert!(lists.iter().all(|list| Arc::ptr_eq(list, &lists[0])), "one list for all ports");
        Arc::clone(&lists[0])
    };
    let before = list(&writer);
    step(&mut writer, [apply(slice(&[1, 2]))]);
    assert!(Arc::ptr_eq(&before, &list(&writer)), "nor another one that says the same");

    let kept = PORTS / 2..PORTS;
    step(&mut writer, [apply(service(kept.clone()))]);
    let mut served: Vec<u16> =
        writer.table().routes().iter().map(|route| route.frontend().address.port()).collect();
    served.sort_unstable();
    assert_eq!(served, kept.flat_map(|n| [1 + n, 1 + n]).collect::<Vec<_>>());
}
