//! `healthCheckNodePort`: the count of local ready endpoints.

use sluice_model::Family;

use super::*;

fn checked_service() -> Service {
    let mut web = service("web", 1, WEB);
    web.cluster_ips.push("fd00::1".parse().unwrap());
    web.health_check_node_port = Some(32_000);
    let second = ServicePort { name: "second".into(), port: 81, ..web.ports[0].clone() };
    web.ports.push(second);
    web
}

/// Endpoints (`ready|draining|published|down[@node][/second]`): `published` is ready although it
/// terminates; `/second` serves the second port too.
type Case = (&'static str, &'static str, usize);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("no endpoint",                                     "", 0),
    ("a local ready one",                               "ready@here", 1),
    ("two local ready ones",                            "ready@here ready@here", 2),
    ("ready ones elsewhere do not count",               "ready@here ready@there", 1),
    ("absent node is never local",                      "ready", 0),
    ("local draining ones do not count",                "draining@here", 0),
    ("local draining ones beside ready ones elsewhere", "draining@here ready@there", 0),
    ("local ones that are not ready do not count",      "down@here", 0),
    ("terminating but published as ready counts",       "published@here", 1),
    ("an endpoint with two ports counts once",          "ready@here/second", 1),
    ("one with one port, one with two",                 "ready@here ready@here/second", 2),
];

fn slices(endpoints: &str) -> [EndpointSlice; 2] {
    let mut slices = [slice("web-a", "web", &[]), slice("web-b", "web", &[])];
    slices[1].ports.push(SlicePort { name: "second".into(), ..slices[1].ports[0].clone() });
    for (n, word) in (1..).zip(endpoints.split_whitespace()) {
        let has_second = word.ends_with("/second");
        let word = word.trim_end_matches("/second");
        let (state, node) = word.split_once('@').unwrap_or((word, ""));
        slices[usize::from(has_second)].endpoints.push(Endpoint {
            ready: matches!(state, "ready" | "published"),
            serving: state != "down",
            terminating: matches!(state, "draining" | "published"),
            node: (!node.is_empty()).then(|| node.into()),
            ..Endpoint::ready([10, 0, 0, n].into())
        });
    }
    slices
}

#[test]
fn cases() {
    for (name, endpoints, wanted) in CASES {
        let mut writer = writer();
        let changes = [apply(checked_service())].into_iter().chain(slices(endpoints).map(apply));
        step(&mut writer, changes);
        let checks = writer.table().health_checks();
        assert_eq!(
            (checks.len(), checks[0].port(), &*checks[0].service().name),
            (1, 32_000, "web"),
            "{name}"
        );
        assert_eq!(checks[0].local_endpoints(Family::V4), *wanted, "{name}");
        assert_eq!(checks[0].local_endpoints(Family::V6), 0, "{name}");
    }
}

#[test]
fn counts_are_live_and_by_family() {
    let mut writer = writer();
    step(&mut writer, [apply(checked_service())]);
    let check = Arc::clone(&writer.table().health_checks()[0]);
    writer.apply(apply(EndpointSlice {
        last_change: None,
        family: Family::V6,
        endpoints: vec![Endpoint {
            node: Some("here".into()),
            ..Endpoint::ready("fd01::1".parse().unwrap())
        }],
        ..slice("web-6", "web", &[])
    }));
    assert_eq!((check.local_endpoints(Family::V4), check.local_endpoints(Family::V6)), (0, 1));
    writer.apply(Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", "web-6"))));
    assert_eq!(check.local_endpoints(Family::V6), 0);
}

#[test]
fn checks_come_move_and_go_with_the_service() {
    let mut writer = writer();
    let ports =
        |writer: &Writer| -> Vec<_> { writer.table().health_checks().iter().map(|c| c.port()).collect() };
    let mut web = checked_service();
    step(&mut writer, [apply(web.clone()), apply(slices("ready@here")[0].clone())]);
    assert_eq!(ports(&writer), [32_000]);
    web.health_check_node_port = Some(32_001);
    step(&mut writer, [apply(web.clone())]);
    assert_eq!(ports(&writer), [32_001]);
    assert_eq!(writer.table().health_checks()[0].local_endpoints(Family::V4), 1);
    web.health_check_node_port = None;
    step(&mut writer, [apply(web.clone())]);
    assert_eq!(ports(&writer), []);
    web.health_check_node_port = Some(32_002);
    step(&mut writer, [apply(web)]);
    assert_eq!(ports(&writer), [32_002]);
    step(&mut writer, [Change::Delete(ObjectRef::Service(ObjectName::new("default", "web")))]);
    assert_eq!(ports(&writer), []);
}
