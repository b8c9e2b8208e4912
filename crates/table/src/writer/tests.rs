//! The writer as its caller sees it: objects go in, plans and answers come out.

mod affinity;
mod answers;
mod any_order;
mod apiservers;
mod conflicts;
mod connections;
mod flows;
mod health_checks;
mod routes;
mod work;

use sluice_model::{Endpoint, FrontendKind, Protocol, ServicePort, SlicePort, TrafficPolicy};

use super::*;
use crate::{Client, FrontendKey, Heard, Origin, Reader, Reason, Verdict};

pub(super) fn service(name: &str, created: i64, ip: [u8; 4]) -> Service {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let name = ObjectName::new("default", name);
    Service { created, ..Service::new(name, vec![ip.into()], vec![port]) }
}

pub(super) fn slice(name: &str, service: &str, endpoints: &[u8]) -> EndpointSlice {
    EndpointSlice {
        last_change: None,
        name: ObjectName::new("default", name),
        service: ObjectName::new("default", service),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, number: 8080 }],
        endpoints: endpoints.iter().map(|&n| Endpoint::ready([10, 0, 0, n].into())).collect(),
    }
}

pub(super) fn writer() -> Writer {
    Writer::new(WriterConfig { frontends_lead_back: false, ..WriterConfig::new("here") })
}

/// Applies, plans and publishes; returns the plan's lists.
pub(super) fn step(writer: &mut Writer, changes: impl IntoIterator<Item = Change>) -> Plan {
    changes.into_iter().for_each(|change| writer.apply(change));
    let mut plan = writer.plan();
    writer.publish(&mut plan);
    writer.finish(&mut plan);
    plan
}

pub(super) fn apply(object: impl Into<Object>) -> Change {
    Change::Apply(object.into())
}

pub(super) fn client() -> Client {
    Client { ip: [10, 1, 0, 1].into(), origin: Origin::Outside }
}

pub(super) fn key(ip: [u8; 4]) -> FrontendKey {
    FrontendKey::new(ip.into(), 80, Protocol::Tcp)
}

/// The last octets of the endpoints that `times` connections go to; empty if there is no route or no
/// endpoint.
pub(super) fn picks(reader: &mut Reader, key: FrontendKey, times: usize) -> Vec<u8> {
    let Some(route) = reader.lookup(key) else { return Vec::new() };
    (0..times)
        .filter_map(|_| route.select(client(), Instant::now()).ok()?.next(Instant::now()))
        .map(|upstream| match upstream.address().ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => panic!("no IPv6 here"),
        })
        .collect()
}

pub(super) const WEB: [u8; 4] = [10, 96, 0, 1];

#[test]
fn a_service_is_served_when_it_and_its_slice_are_known_in_either_order() {
    let service = || apply(service("web", 1, WEB));
    let slice = || apply(slice("web-a", "web", &[1, 2]));
    for changes in [[service(), slice()], [slice(), service()]] {
        let mut writer = writer();
        let mut reader = writer.table().reader();
        let plan = step(&mut writer, changes);
        assert_eq!(plan.offer.len(), 1);
        assert_eq!(plan.offer[0].outside, Verdict::Relay);
        assert_eq!(picks(&mut reader, key(WEB), 5), [1, 2, 1, 2, 1]);
    }
}

#[test]
fn an_endpoint_change_is_live_before_any_plan_and_keeps_the_position() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1, 2, 3]))]);
    assert_eq!(picks(&mut reader, key(WEB), 4), [1, 2, 3, 1]);
    writer.apply(apply(slice("web-a", "web", &[1, 2, 3, 4])));
    assert_eq!(picks(&mut reader, key(WEB), 4), [2, 3, 4, 1]);
    writer.apply(apply(slice("web-a", "web", &[1, 4])));
    assert_eq!(picks(&mut reader, key(WEB), 3), [4, 1, 4]);
    let plan = writer.plan();
    assert!(plan.is_empty(), "endpoint changes touch no frontend: {plan:?}");
}

#[test]
fn no_endpoints_is_refused_and_local_policy_without_local_ones_is_dropped() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    let plan = step(&mut writer, [apply(web.clone())]);
    assert_eq!(plan.offer[0].outside, Verdict::Refuse(Reason::NoEndpoints));

    let plan = step(&mut writer, [apply(slice("web-a", "web", &[1]))]);
    assert_eq!(plan.offer[0].outside, Verdict::Relay);

    web.internal_policy = TrafficPolicy::Local;
    let plan = step(&mut writer, [apply(web)]);
    assert_eq!(plan.offer[0].outside, Verdict::Drop(Reason::NoLocalEndpoints));

    let plan =
        step(&mut writer, [Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", "web-a")))]);
    assert_eq!(plan.offer[0].outside, Verdict::Refuse(Reason::NoEndpoints));
}

#[test]
fn external_policy_local_short_circuits_inside_the_node() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    web.external_ips = vec![[192, 168, 0, 1].into()];
    web.external_policy = TrafficPolicy::Local;
    let plan = step(&mut writer, [apply(web), apply(slice("web-a", "web", &[1]))]);
    let external = plan.offer.iter().find(|state| state.kind == FrontendKind::ExternalIp).unwrap();
    assert_eq!(external.inside, Verdict::Relay);
    assert_eq!(external.outside, Verdict::Drop(Reason::NoLocalEndpoints));
}

#[test]
fn a_deleted_service_is_withdrawn_and_its_flows_end() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1]))]);
    let route = Arc::clone(reader.lookup(key(WEB)).unwrap());
    let upstream = route.select(client(), Instant::now()).unwrap().next(Instant::now()).unwrap();

    writer.apply(Change::Delete(ObjectRef::Service(ObjectName::new("default", "web"))));
    let mut plan = writer.plan();
    assert_eq!(plan.withdraw.len(), 1);
    assert!(route.is_live() && upstream.is_serving(), "served until the capture has withdrawn it");
    writer.publish(&mut plan);
    assert!(route.is_live() && reader.lookup(key(WEB)).is_some(), "and while it withdraws");
    writer.finish(&mut plan);
    assert!(!route.is_live() && !upstream.is_serving());
    assert!(reader.lookup(key(WEB)).is_none());
}

#[test]
fn everything_deleted_leaves_nothing() {
    let mut writer = writer();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1]))]);
    step(
        &mut writer,
        [
            Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", "web-a"))),
            Change::Delete(ObjectRef::Service(ObjectName::new("default", "web"))),
        ],
    );
    assert!(writer.services.is_empty() && writer.slice_owners.is_empty() && writer.offered.is_empty());
    assert!(writer.conflicts.is_empty() && writer.table().routes().is_empty());
}

#[test]
fn an_endpoint_that_is_the_service_itself_is_left_out_and_named() {
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut reader = writer.table().reader();
    let mut looping = slice("web-a", "web", &[1]);
    looping.ports[0].number = 80;
    looping.endpoints.push(Endpoint::ready(WEB.into()));
    let plan = step(&mut writer, [apply(service("web", 1, WEB)), apply(looping)]);
    assert_eq!(picks(&mut reader, key(WEB), 2), [1, 1]);
    assert!(
        matches!(&plan.notices[..], [Notice::Loop { endpoint, .. }] if endpoint.ip() == IpAddr::from(WEB))
    );
    assert!(writer.standing_notices().eq(&plan.notices));
}

#[test]
fn an_endpoint_that_is_the_service_itself_serves_where_our_own_packets_are_known() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let node: IpAddr = [198, 51, 100, 1].into();
    let mut web = service("web", 1, WEB);
    web.external_ips.push(node);
    let mut endpoints = slice("web-a", "web", &[]);
    endpoints.ports[0].number = 80;
    endpoints.endpoints.push(Endpoint::ready(node));
    let plan = step(&mut writer, [apply(web), apply(endpoints)]);
    assert!(plan.notices.is_empty(), "a pod in the node's network behind the node's address as externalIP");
    let route = reader.lookup(key(WEB)).unwrap();
    assert!(route.select(client(), Instant::now()).is_ok());
}

#[test]
fn a_flow_that_goes_on_takes_nobodys_turn_and_stays_while_its_endpoint_serves() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1, 2, 3]))]);
    let again = |reader: &mut Reader, endpoint: u8| {
        let (route, now) = (reader.lookup(key(WEB)).unwrap(), Instant::now());
        let endpoint = ([10, 0, 0, endpoint], 8080).into();
        let mut selection = route.select_again(client(), endpoint, now).unwrap();
        selection.next(now).unwrap().address().ip()
    };
    let first = picks(&mut reader, key(WEB), 1);
    for _ in 0..4 {
        assert_eq!(again(&mut reader, 2), IpAddr::from([10, 0, 0, 2]));
    }
    let others = picks(&mut reader, key(WEB), 2);
    assert!(!others.contains(&first[0]) && others[0] != others[1], "{first:?} {others:?}");
    // Once that endpoint is gone, another one is chosen as for any new flow.
    step(&mut writer, [apply(slice("web-a", "web", &[1]))]);
    assert_eq!(again(&mut reader, 2), IpAddr::from([10, 0, 0, 1]));
}

#[test]
fn an_endpoint_that_moves_between_slices_in_one_step_is_never_missing() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let (one, two) = (|n: &[u8]| apply(slice("web-a", "web", n)), |n: &[u8]| apply(slice("web-b", "web", n)));
    step(&mut writer, [apply(service("web", 1, WEB)), one(&[1]), two(&[2])]);
    let route = Arc::clone(reader.lookup(key(WEB)).unwrap());
    let upstreams: Vec<_> = (0..2)
        .map(|_| route.select(client(), Instant::now()).unwrap().next(Instant::now()).unwrap())
        .collect();
    // In either order.
    writer.apply_all([one(&[2]), two(&[1])]);
    writer.apply_all([two(&[2]), one(&[1])]);
    assert!(upstreams.iter().all(|upstream| route.keeps_flow(upstream)));
}

#[test]
fn a_slice_whose_label_changes_moves_to_the_other_service() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let other = [10, 96, 0, 2];
    step(
        &mut writer,
        [apply(service("web", 1, WEB)), apply(service("api", 1, other)), apply(slice("s", "web", &[1]))],
    );
    step(&mut writer, [apply(slice("s", "api", &[1]))]);
    assert_eq!(picks(&mut reader, key(WEB), 1), []);
    assert_eq!(picks(&mut reader, key(other), 1), [1]);
}

#[test]
fn node_ports_are_served_on_the_primary_address_of_the_node() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    web.ports[0].node_port = Some(30080);
    let node = Node {
        name: "here".into(),
        zone: None,
        addresses: vec![[192, 168, 0, 7].into(), [192, 168, 0, 8].into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    step(&mut writer, [apply(web)]);
    let plan = step(&mut writer, [Change::Apply(Object::Node(node.clone()))]);
    let offered: Vec<_> = plan.offer.iter().map(|state| state.frontend.to_string()).collect();
    assert_eq!(offered, ["192.168.0.7:30080/TCP"]);
    let elsewhere = Node { name: "there".into(), addresses: vec![[192, 168, 0, 9].into()], ..node };
    assert!(step(&mut writer, [Change::Apply(Object::Node(elsewhere))]).is_empty());
}

#[test]
fn a_zone_change_of_the_node_is_live() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    let mut hinted = slice("web-a", "web", &[1, 2]);
    hinted.endpoints[0].zone_hints = Box::from(["z1".into()]);
    hinted.endpoints[1].zone_hints = Box::from(["z2".into()]);
    step(&mut writer, [apply(service("web", 1, WEB)), apply(hinted)]);
    assert_eq!(picks(&mut reader, key(WEB), 2), [1, 2]);
    let node = Node {
        name: "here".into(),
        zone: Some("z2".into()),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    step(&mut writer, [Change::Apply(Object::Node(node))]);
    assert_eq!(picks(&mut reader, key(WEB), 2), [2, 2]);
}

#[test]
fn a_node_that_is_deleted_goes_on_as_it_was_known_until_there_is_another_one_of_its_name() {
    let mut writer = Writer::new(WriterConfig {
        local_pods: LocalPods::DetectedByNodeCidrs,
        frontends_lead_back: false,
        ..WriterConfig::new("here")
    });
    let mut reader = writer.table().reader();
    let mut web = service("web", 1, WEB);
    web.ports[0].node_port = Some(30080);
    let mut hinted = slice("web-a", "web", &[1, 2]);
    hinted.endpoints[0].zone_hints = Box::from(["z1".into()]);
    hinted.endpoints[1].zone_hints = Box::from(["z2".into()]);
    let node = Node {
        name: "here".into(),
        zone: Some("z2".into()),
        addresses: vec![[192, 168, 0, 7].into()],
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        eligible: true,
    };
    step(&mut writer, [apply(web), apply(hinted), Change::Apply(Object::Node(node.clone()))]);
    let gone = Change::Delete(ObjectRef::Node("here".into()));
    assert!(step(&mut writer, [gone.clone()]).is_empty(), "no frontend is withdrawn");
    assert_eq!(writer.node_port_addresses(), node.addresses);
    // All later updates use the same node.
    step(&mut writer, [apply(slice("web-b", "web", &[]))]);
    assert_eq!(picks(&mut reader, key(WEB), 2), [2, 2], "the endpoint of its zone");
    assert!(writer.config.local_pods.are_detected(Family::V4, writer.node.as_ref()));

    let moved = Node { addresses: vec![[192, 168, 0, 9].into()], zone: Some("z1".into()), ..node };
    let plan = step(&mut writer, [Change::Apply(Object::Node(moved))]);
    let said = |states: &[FrontendState]| -> Vec<String> {
        states.iter().map(|state| state.frontend.to_string()).collect()
    };
    assert_eq!(said(&plan.withdraw), ["192.168.0.7:30080/TCP"]);
    assert_eq!(said(&plan.offer), ["192.168.0.9:30080/TCP"]);
    assert_eq!(picks(&mut reader, key(WEB), 2), [1, 1]);
}

#[test]
fn failed_endpoints_are_named_once_and_their_load_spreads_evenly() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1, 2, 3]))]);
    let route = reader.lookup(key(WEB)).unwrap();
    let mut counts = [0; 4];
    for _ in 0..300 {
        let mut selection = route.select(client(), Instant::now()).unwrap();
        let mut upstream = selection.next(Instant::now()).unwrap();
        if upstream.address().ip() == IpAddr::from([10, 0, 0, 2]) {
            selection.fail(&upstream, Heard::Refusal, Instant::now());
            upstream = selection.next(Instant::now()).unwrap();
        }
        let IpAddr::V4(ip) = upstream.address().ip() else { panic!() };
        counts[usize::from(ip.octets()[3])] += 1;
    }
    assert_eq!(counts, [0, 150, 0, 150]);

    let mut selection = route.select(client(), Instant::now()).unwrap();
    while let Some(upstream) = selection.next(Instant::now()) {
        selection.fail(&upstream, Heard::Refusal, Instant::now());
    }
}

#[test]
fn turns_are_exactly_even_across_threads() {
    let mut writer = writer();
    step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[1, 2, 3, 4, 5]))]);
    let counts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let mut reader = writer.table().reader();
                scope.spawn(move || picks(&mut reader, key(WEB), 5_000))
            })
            .collect();
        let mut counts = [0; 6];
        for picked in workers.into_iter().flat_map(|worker| worker.join().unwrap()) {
            counts[usize::from(picked)] += 1;
        }
        counts
    });
    assert_eq!(counts, [0, 4_000, 4_000, 4_000, 4_000, 4_000]);
}

#[test]
fn an_endpoint_that_is_a_cluster_ip_is_none_as_long_as_that_is_one() {
    let mut writer = writer();
    let mut reader = writer.table().reader();
    // A change of another Service, 10.0.0.9.
    let other = || apply(service("other", 2, [10, 0, 0, 9]));
    let verdicts = |plan: &Plan| plan.offer.iter().map(|state| state.outside).collect::<Vec<_>>();
    let plan = step(&mut writer, [apply(service("web", 1, WEB)), apply(slice("web-a", "web", &[9]))]);
    assert_eq!(verdicts(&plan), [Verdict::Relay]);
    let plan = step(&mut writer, [other()]);
    assert_eq!(verdicts(&plan), [Verdict::Refuse(Reason::NoEndpoints); 2]);
    assert!(matches!(&plan.notices[..], [Notice::ClusterIpEndpoint { .. }]), "{:?}", plan.notices);

    let plan = step(&mut writer, [apply(slice("web-a", "web", &[1, 9, 2]))]);
    assert_eq!(verdicts(&plan), [Verdict::Relay]);
    assert_eq!(picks(&mut reader, key(WEB), 4), [1, 2, 1, 2]);
    writer.set_interfaces([[10, 0, 0, 9].into()]);
    assert!(picks(&mut reader, key(WEB), 3).contains(&9), "a process of the node has the address");
    writer.set_interfaces([]);
    assert!(!picks(&mut reader, key(WEB), 3).contains(&9));

    let gone = Change::Delete(ObjectRef::Service(ObjectName::new("default", "other")));
    step(&mut writer, [apply(slice("web-a", "web", &[9]))]);
    let plan = step(&mut writer, [gone]);
    assert_eq!(verdicts(&plan), [Verdict::Relay]);
    assert_eq!(picks(&mut reader, key(WEB), 2), [9, 9]);
}

#[test]
fn changes_of_endpoints_are_timed_once_and_those_of_a_service_that_loses_a_slice_not_at_all() {
    let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let timed = |name: &str, service: &str, endpoints: &[u8], seconds| {
        apply(EndpointSlice { last_change: Some(at(seconds)), ..slice(name, service, endpoints) })
    };
    let mut writer = writer();
    writer.apply_all([timed("web-a", "web", &[1], 10), timed("dns-a", "dns", &[2], 11)]);
    assert_eq!(writer.take_triggers(), [at(11), at(10)]);
    writer.apply_all([timed("web-a", "web", &[1], 20), apply(slice("new", "new", &[3]))]);
    assert!(writer.take_triggers().is_empty(), "one says nothing new, the other not when");
    writer.apply_all([timed("web-a", "web", &[1, 2], 20), timed("web-a", "web", &[1], 21)]);
    assert_eq!(writer.take_triggers(), [at(20), at(21)]);
    writer.apply_all([timed("web-a", "web", &[1, 2], 30), timed("dns-a", "dns", &[1], 31)]);
    writer.apply(Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", "web-a"))));
    assert_eq!(writer.take_triggers(), [at(31)]);
}

#[test]
fn an_address_of_the_node_that_services_may_get_is_named_where_it_would_be_dropped() {
    let node = |address: [u8; 4]| Node {
        name: "here".into(),
        zone: None,
        addresses: vec![[192, 0, 2, 1].into(), address.into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    let range: IpNet = "10.96.0.0/16".parse().unwrap();
    let cidr = sluice_model::ServiceCidr { name: "kubernetes".into(), cidrs: vec![range] };
    for frontends_lead_back in [false, true] {
        let mut writer = Writer::new(WriterConfig { frontends_lead_back, ..WriterConfig::new("here") });
        // As NodeLocal DNSCache does.
        writer.set_interfaces([[10, 96, 0, 10].into()]);
        writer.apply_all([apply(cidr.clone()), apply(node([192, 0, 2, 2]))]);
        assert_eq!(writer.node_address_in_range(), None);
        writer.apply(apply(node([10, 96, 0, 9])));
        let dropped = (!frontends_lead_back).then(|| (IpAddr::from([10, 96, 0, 9]), range));
        assert_eq!(writer.node_address_in_range(), dropped);
    }
}
