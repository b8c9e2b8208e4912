//! Several Services name one address: which one gets it, when that changes, and which notices there are.

use super::*;

const SHARED: [u8; 4] = [198, 51, 100, 7];

/// A Service with an address of its own and with [`SHARED`].
fn sharing(name: &str, created: u8) -> Service {
    let own = [10, 96, 0, created];
    Service { external_ips: vec![SHARED.into()], ..service(name, created.into(), own) }
}

fn deleted(name: &str) -> Change {
    Change::Delete(ObjectRef::Service(ObjectName::new("default", name)))
}

/// For each conflict, the Service that does not get an address and the one that does.
fn said<'a>(notices: impl IntoIterator<Item = &'a Notice>) -> Vec<String> {
    let name = |notice: &Notice| match notice {
        Notice::Conflict { holder, claimant, .. } => {
            format!("{} < {}", claimant.service.name, holder.service.name)
        }
        _ => panic!("{notice}"),
    };
    notices.into_iter().map(name).collect()
}

#[test]
fn the_older_service_keeps_a_contested_address_and_the_other_inherits_it() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let plan = step(
        &mut writer,
        [
            apply(service("young", 2, WEB)),
            apply(slice("young-a", "young", &[2])),
            apply(service("old", 1, WEB)),
            apply(slice("old-a", "old", &[1])),
        ],
    );
    assert_eq!(picks(&mut reader, key(WEB), 1), [1]);
    assert_eq!(said(&plan.notices), ["young < old"]);
    assert_eq!(said(writer.standing_notices()), ["young < old"]);
    step(&mut writer, [deleted("old")]);
    assert_eq!(picks(&mut reader, key(WEB), 1), [2]);
    assert_eq!(writer.standing_notices().count(), 0);
    let plan = step(&mut writer, [apply(service("old", 1, WEB))]);
    assert_eq!(said(&plan.notices), ["young < old"], "it is another one");
}

#[test]
fn an_address_is_the_services_that_has_endpoints_as_they_come_and_go() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let (blue, green) =
        (|n: &[u8]| apply(slice("blue-a", "blue", n)), |n: &[u8]| apply(slice("green-a", "green", n)));
    let plan = step(&mut writer, [apply(sharing("blue", 1)), apply(sharing("green", 2)), green(&[2])]);
    assert_eq!(picks(&mut reader, key(SHARED), 1), [2], "the older one has none");
    let route = Arc::clone(reader.lookup(key(SHARED)).unwrap());
    let flow = route.select(client(), Instant::now()).unwrap().next(Instant::now()).unwrap();
    assert!(plan.notices.is_empty() && writer.standing_notices().count() == 0, "there is nothing to tell");

    let before = writer.work();
    let plan = step(&mut writer, [green(&[2, 3])]);
    assert!(plan.is_empty() && route.keeps_flow(&flow), "nothing moves: {plan:?}");
    assert_eq!((writer.work() - before).planned, 0, "and nobody asks");

    let plan = step(&mut writer, [blue(&[1])]);
    assert_eq!(picks(&mut reader, key(SHARED), 1), [1]);
    assert_eq!(plan.rerouted, [Frontend::new(SHARED.into(), 80, Protocol::Tcp)]);
    assert!(!route.keeps_flow(&flow), "the address is another Service's");
    assert_eq!(said(&plan.notices), ["green < blue"]);

    // A rollout with a single pod, twice.
    for _ in 0..2 {
        let plan = step(&mut writer, [blue(&[])]);
        assert_ne!(picks(&mut reader, key(SHARED), 1), [1]);
        assert!(plan.notices.is_empty() && writer.standing_notices().count() == 0, "{plan:?}");
        let plan = step(&mut writer, [blue(&[1])]);
        assert_eq!(picks(&mut reader, key(SHARED), 1), [1]);
        assert!(plan.notices.is_empty(), "told once: {plan:?}");
        assert_eq!(said(writer.standing_notices()), ["green < blue"], "it is so all the same");
    }
    step(&mut writer, [blue(&[]), green(&[])]);
    let plan = step(&mut writer, [deleted("green")]);
    assert!(plan.offer.is_empty(), "it was refused as the older one's: {plan:?}");
    step(&mut writer, [deleted("blue")]);
    assert!(writer.conflicts.is_empty());
}

#[test]
fn endpoints_that_serve_this_node_alone_are_endpoints_and_a_cluster_ip_stays_with_those_that_serve_nobody() {
    // With policy Local and an endpoint elsewhere, clients of this node are served at external addresses.
    let mut writer = writer();
    let elsewhere = sharing("elsewhere", 1);
    let elsewhere =
        Service { internal_policy: TrafficPolicy::Local, external_policy: TrafficPolicy::Local, ..elsewhere };
    let contested = elsewhere.cluster_ips[0];
    let younger = sharing("younger", 2);
    let younger = Service { external_ips: vec![SHARED.into(), contested], ..younger };
    let changes = [
        apply(elsewhere),
        apply(younger),
        apply(slice("elsewhere-a", "elsewhere", &[1])),
        apply(slice("younger-a", "younger", &[2])),
    ];
    let plan = step(&mut writer, changes);
    let of = |ip: IpAddr| plan.offer.iter().find(|state| state.frontend.address.ip() == ip).unwrap();
    let shared = of(SHARED.into());
    assert_eq!(&*shared.port.service.name, "elsewhere");
    assert_eq!((shared.inside, shared.outside), (Verdict::Relay, Verdict::Drop(Reason::NoLocalEndpoints)));
    assert_eq!(&*of(contested).port.service.name, "elsewhere", "a clusterIP is nobody else's");
    assert_eq!(said(writer.standing_notices()).len(), 2, "and that is said, of both addresses");
}

#[test]
fn an_external_address_comes_before_a_node_port_whatever_its_age_and_after_it_without_endpoints() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let mut old = service("old", 1, WEB);
    old.ports[0].node_port = Some(30_080);
    let mut new = sharing("new", 2);
    new.ports[0].port = 30_080;
    let node = Node {
        name: "here".into(),
        zone: None,
        addresses: vec![SHARED.into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    let slices = [apply(slice("old-a", "old", &[1])), apply(slice("new-a", "new", &[2]))];
    step(&mut writer, [apply(node), apply(old), apply(new)].into_iter().chain(slices));
    let frontend = FrontendKey::new(SHARED.into(), 30_080, Protocol::Tcp);
    assert_eq!(picks(&mut reader, frontend, 1), [2]);
    step(&mut writer, [apply(slice("new-a", "new", &[]))]);
    assert_eq!(picks(&mut reader, frontend, 1), [1]);
    assert_eq!(reader.lookup(frontend).unwrap().kind(), FrontendKind::NodePort);
}

#[test]
fn however_many_services_name_an_address_a_few_are_told_that_they_do_not_get_it() {
    let mut writer = writer();
    let named = |n: i64| format!("web-{n:03}");
    let endpoints = |n: i64| apply(slice(&format!("{}-a", named(n)), &named(n), &[1]));
    let claimants = (1..=100).flat_map(|n| [apply(service(&named(n), n, WEB)), endpoints(n)]);
    let line = |holder: i64, claimants: std::ops::Range<i64>| -> Vec<String> {
        claimants.map(|n| format!("{} < {}", named(n), named(holder))).collect()
    };
    let plan = step(&mut writer, claimants.collect::<Vec<_>>());
    assert_eq!(said(&plan.notices), line(1, 2..10));
    // The last one in line comes and goes. That is no news about those before it.
    step(&mut writer, [deleted(&named(100))]);
    let plan = step(&mut writer, [apply(service(&named(100), 100, WEB))]);
    assert_eq!((said(&plan.notices), writer.standing_notices().count()), (vec![], 8));
    // A new holder is news about all that are in line.
    let plan = step(&mut writer, [deleted(&named(1))]);
    assert_eq!(said(&plan.notices), line(2, 3..11));
    // However endpoints come and go, the memory is bounded.
    for n in 2..=60 {
        step(&mut writer, [apply(slice(&format!("{}-a", named(n)), &named(n), &[]))]);
    }
    assert_eq!(said(writer.standing_notices()), line(61, 62..70));
    let size = format!("{:?}", writer.conflicts).matches("Conflict {").count();
    assert_eq!(size, 64 + 8);
}
