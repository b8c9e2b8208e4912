//! The answers about a frontend, with their reasons.

use sluice_model::{Family, Frontend};

use super::*;
use crate::{NodePortAddresses, WithoutLocal};

/// A Service in one line and endpoints in one word each.
///
/// Service: `internal-local`, `external-local`, `ranges=CIDR,CIDR`, `affinity=SECONDS`,
/// `balance=POLICY`. Endpoints: `ready|draining|down[@node][#zone-hint][%node-hint]`, numbered from 1.
fn scene(service_text: &str, endpoints: &str) -> Writer {
    let mut web = service("web", 1, WEB);
    web.external_ips = vec![[198, 51, 100, 1].into()];
    web.load_balancer_ips = vec![[203, 0, 113, 1].into()];
    for word in service_text.split_whitespace() {
        match word.split_once('=') {
            None if word == "internal-local" => web.internal_policy = TrafficPolicy::Local,
            None => web.external_policy = TrafficPolicy::Local,
            Some(("ranges", value)) => {
                web.source_ranges = Some(value.split(',').map(|cidr| cidr.parse().unwrap()).collect());
            }
            Some(("affinity", value)) => {
                web.affinity = Some(std::time::Duration::from_secs(value.parse().unwrap()));
            }
            Some((annotation, value)) => _ = web.annotations.insert(annotation.into(), value.into()),
        }
    }
    let mut web_slice = slice("web-a", "web", &[]);
    for (n, word) in (1..).zip(endpoints.split_whitespace()) {
        let part = |mark: char| {
            let rest = word.split_once(mark)?.1;
            Some(rest.split(['@', '#', '%']).next().unwrap().into())
        };
        web_slice.endpoints.push(Endpoint {
            ready: word.starts_with("ready"),
            serving: !word.starts_with("down"),
            terminating: word.starts_with("draining"),
            node: part('@'),
            zone_hints: part('#').into_iter().collect(),
            node_hints: part('%').into_iter().collect(),
            ..Endpoint::ready([10, 0, 0, n].into())
        });
    }
    let node = Node {
        name: "here".into(),
        zone: Some("z1".into()),
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    let mut writer = writer();
    step(&mut writer, [apply(web), apply(web_slice), apply(node)]);
    writer
}

#[rustfmt::skip]
const CASES: &[(&str, &str, &str, &str, &str)] = &[
    // Service, endpoints, frontend, client, the answer after the frontend.
    ("", "ready ready@here", "clusterIP", "pod", "relay; 2 endpoints ready; round-robin, source address of the client"),
    ("", "ready", "clusterIP", "node", "relay; 1 endpoint ready; round-robin, source address of the node"),
    ("", "", "clusterIP", "pod", "refuse; no endpoints"),
    ("", "down down", "clusterIP", "pod", "refuse; 2 endpoints, none ready or serving"),
    ("", "draining down", "clusterIP", "pod", "relay; none ready, 1 endpoint terminating and serving; round-robin, source address of the client"),
    ("", "ready#z1 ready#z2 ready#z1", "clusterIP", "pod", "relay; 2 endpoints of 3 ready, hinted to this zone; round-robin, source address of the client"),
    ("", "ready%here ready%there", "clusterIP", "pod", "relay; 1 endpoint of 2 ready, hinted to this node; round-robin, source address of the client"),
    ("internal-local", "ready@here ready@there ready", "clusterIP", "pod", "relay; policy Local, 1 endpoint ready here, 2 elsewhere; round-robin, source address of the client"),
    ("internal-local", "draining@here ready@there", "clusterIP", "pod", "relay; policy Local, 1 endpoint terminating and serving here, 1 elsewhere; round-robin, source address of the client"),
    ("internal-local", "ready@there ready@there draining down@here", "clusterIP", "pod", "drop; policy Local, 3 endpoints elsewhere"),
    ("internal-local", "down@here", "clusterIP", "pod", "refuse; 1 endpoint, none ready or serving"),
    ("external-local", "ready@there", "externalIP", "outside", "drop; policy Local, 1 endpoint elsewhere"),
    ("external-local", "ready@there", "externalIP", "pod", "relay; client on this node, policy Local does not bind it, 1 endpoint ready; round-robin, source address of the client"),
    ("external-local", "ready@there", "externalIP", "node", "relay; client on this node, policy Local does not bind it, 1 endpoint ready; round-robin, source address of the node"),
    ("external-local", "ready@here", "externalIP", "outside", "relay; policy Local, 1 endpoint ready here, 0 elsewhere; round-robin, source address of the client"),
    ("", "ready@here", "externalIP", "outside", "relay; 1 endpoint ready; round-robin, source address of the node"),
    ("ranges=192.0.2.0/24", "ready", "loadBalancer", "outside", "drop; client outside loadBalancerSourceRanges"),
    ("ranges=192.0.2.0/24,192.0.3.0/24", "ready", "loadBalancer", "pod", "drop; client outside loadBalancerSourceRanges"),
    ("ranges=192.0.2.0/24", "", "loadBalancer", "outside", "drop; client outside loadBalancerSourceRanges"),
    ("ranges=10.1.0.0/16", "ready", "loadBalancer", "outside", "relay; 1 endpoint ready; round-robin, source address of the node"),
    ("ranges=192.0.2.0/24", "ready", "externalIP", "outside", "relay; 1 endpoint ready; round-robin, source address of the node"),
    ("affinity=10800", "ready", "clusterIP", "pod", "relay; 1 endpoint ready; round-robin, source address of the client, client keeps its endpoint until idle for 10800 s"),
    ("balance=source-hash", "ready ready", "clusterIP", "pod", "relay; 2 endpoints ready; source-hash, source address of the client"),
    ("balance=least-connections", "ready ready", "clusterIP", "pod", "relay; 2 endpoints ready; least-connections, source address of the client"),
    ("balance=random", "ready ready", "clusterIP", "pod", "relay; 2 endpoints ready; random, source address of the client"),
    ("balance=lottery", "ready ready", "clusterIP", "pod", "relay; 2 endpoints ready; round-robin, source address of the client"),
];

#[test]
fn annotations_that_nobody_reads_are_told_once_a_few_of_each_service() {
    let annotated = |names: &[&str]| {
        let annotations = names.iter().map(|name| ((*name).into(), "random".into())).collect();
        apply(Service { annotations, ..service("web", 1, WEB) })
    };
    let mut writer = writer();
    let known = ["balance", "max-connections", "socket-mode"];
    assert_eq!(step(&mut writer, [annotated(&known)]).notices, []);
    let told = step(&mut writer, [annotated(&["balance", "balanse"])]).notices;
    let said: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        ["Service default/web: annotation sluice.dev/balanse is none that is known and does nothing; \
          there are sluice.dev/balance, sluice.dev/max-connections and sluice.dev/socket-mode"]
    );
    assert_eq!(told[0].reason(), "UnknownAnnotation");
    assert_eq!(step(&mut writer, [apply(slice("web-a", "web", &[1]))]).notices, [], "it was told");
    let many = ["a", "b", "c", "d", "e", "f"];
    assert_eq!(step(&mut writer, [annotated(&many)]).notices.len(), 4);
}

#[test]
fn cases() {
    for (service, endpoints, frontend, client, wanted) in CASES {
        let name = format!("{service:?} {endpoints:?} {frontend} {client}");
        let address = match *frontend {
            "clusterIP" => WEB,
            "externalIP" => [198, 51, 100, 1],
            _ => [203, 0, 113, 1],
        };
        let origin = match *client {
            "pod" => Origin::LocalPod,
            "node" => Origin::Node,
            _ => Origin::Outside,
        };
        let writer = scene(service, endpoints);
        let mut reader = writer.table().reader();
        let route = reader.lookup(key(address)).unwrap();
        let client = Client { ip: [10, 1, 0, 1].into(), origin };
        let answer = route.answer(client);
        let address = Frontend::new(address.into(), 80, Protocol::Tcp);
        assert_eq!(answer.to_string(), format!("{address} ({frontend} of default/web): {wanted}"), "{name}");
        // The selection agrees with the answer.
        match route.select(client, Instant::now()) {
            Err(rejection) => {
                assert_eq!((rejection.verdict, answer.endpoints.len()), (answer.verdict, 0), "{name}")
            }
            Ok(mut selection) => {
                assert_eq!(answer.verdict, Verdict::Relay, "{name}");
                let upstream = selection.next(Instant::now()).unwrap();
                assert!(answer.endpoints.iter().any(|endpoint| Arc::ptr_eq(endpoint, &upstream)), "{name}");
                assert_eq!(selection.source_address(&upstream), answer.source, "{name}");
            }
        }
    }
}

#[test]
fn the_capture_is_told_the_sources_that_a_load_balancer_address_admits_and_when_they_change() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    web.load_balancer_ips = vec![[203, 0, 113, 1].into()];
    web.source_ranges = Some(vec!["192.0.2.0/24".parse().unwrap()]);
    let allowed = |plan: &Plan| {
        let states = plan.offer.iter().map(|state| {
            let sources = state.allowed_sources.as_ref();
            (state.kind, sources.map(|s| s.iter().map(ToString::to_string).collect::<Vec<_>>()))
        });
        states.collect::<Vec<_>>()
    };
    let plan = step(&mut writer, [apply(web.clone()), apply(slice("web-a", "web", &[1]))]);
    let ranges = |ranges: &[&str]| Some(ranges.iter().map(ToString::to_string).collect());
    let load_balancer = FrontendKind::LoadBalancer;
    assert_eq!(allowed(&plan), [(FrontendKind::ClusterIp, None), (load_balancer, ranges(&["192.0.2.0/24"]))]);

    let node = Node {
        name: "here".into(),
        zone: None,
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    let plan = step(&mut writer, [apply(node)]);
    assert_eq!(allowed(&plan), [(load_balancer, ranges(&["192.0.2.0/24", "203.0.113.1/32"]))]);

    web.source_ranges = None;
    assert_eq!(allowed(&step(&mut writer, [apply(web)])), [(load_balancer, None)]);
}

#[test]
fn source_ranges_follow_the_nodes_address_wherever_node_ports_are_served() {
    let all = NodePortAddresses::Inside(Vec::new());
    let mut writer = Writer::new(WriterConfig { node_port_addresses: all, ..WriterConfig::new("here") });
    writer.set_interfaces([[192, 0, 2, 1].into()]);
    let mut web = service("web", 1, WEB);
    web.load_balancer_ips = vec![[203, 0, 113, 1].into()];
    web.source_ranges = Some(vec!["192.0.2.0/24".parse().unwrap()]);
    let node = |ip: [u8; 4]| Node {
        name: "here".into(),
        zone: None,
        addresses: vec![ip.into()],
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    step(&mut writer, [apply(web), apply(node([192, 0, 2, 1]))]);
    let plan = step(&mut writer, [apply(node([192, 0, 3, 1]))]);
    let sources = plan.offer[0].allowed_sources.as_ref().unwrap();
    assert_eq!(sources.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.0/24"]);
}

#[test]
fn node_ports_move_with_the_addresses_of_the_node() {
    let all = NodePortAddresses::Inside(Vec::new());
    let mut writer = Writer::new(WriterConfig { node_port_addresses: all, ..WriterConfig::new("here") });
    let mut web = service("web", 1, WEB);
    web.ports[0].node_port = Some(30_080);
    step(&mut writer, [apply(web)]);
    let interfaces = |ip: [u8; 4]| [ip.into(), [127, 0, 0, 1].into()];
    let addresses =
        |states: &[FrontendState]| states.iter().map(|s| s.frontend.to_string()).collect::<Vec<_>>();
    writer.set_interfaces(interfaces([192, 0, 2, 1]));
    assert_eq!(addresses(&step(&mut writer, []).offer), ["192.0.2.1:30080/TCP"]);
    writer.set_interfaces(interfaces([192, 0, 2, 2]));
    let plan = step(&mut writer, []);
    assert_eq!(addresses(&plan.withdraw), ["192.0.2.1:30080/TCP"]);
    assert_eq!(addresses(&plan.offer), ["192.0.2.2:30080/TCP"]);
}

#[test]
fn a_node_that_is_made_anew_has_its_addresses_until_it_says_others() {
    let mut writer = writer();
    let node = |addresses: &[[u8; 4]], zone: Option<&str>| Node {
        name: "here".into(),
        zone: zone.map(Into::into),
        addresses: addresses.iter().map(|ip| (*ip).into()).collect(),
        pod_cidrs: Vec::new(),
        eligible: true,
    };
    writer.set_interfaces([[192, 0, 2, 1], [192, 0, 2, 2]].map(Into::into));
    let mut served = |node: Node| {
        step(&mut writer, [apply(node)]);
        writer.node_port_addresses().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(served(node(&[], None)), [""; 0], "it has none so far, which is not to say that all are");
    assert_eq!(served(node(&[[192, 0, 2, 1]], None)), ["192.0.2.1"]);
    assert_eq!(served(node(&[], Some("zone"))), ["192.0.2.1"]);
    assert_eq!(served(node(&[[192, 0, 2, 2]], None)), ["192.0.2.2"]);
}

#[test]
fn the_halves_of_a_dual_stack_service_are_served_apart() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    web.cluster_ips.push("fd00::1".parse().unwrap());
    let v6_slice = EndpointSlice {
        last_change: None,
        family: Family::V6,
        endpoints: vec![Endpoint::ready("fd01::1".parse().unwrap())],
        ..slice("web-6", "web", &[])
    };
    let verdicts = |plan: &Plan| -> Vec<_> {
        plan.offer.iter().map(|state| (state.frontend.to_string(), state.outside)).collect()
    };
    let refused = Verdict::Refuse(Reason::NoEndpoints);
    let plan = step(&mut writer, [apply(web), apply(slice("web-4", "web", &[1]))]);
    let (v4, v6) = ("10.96.0.1:80/TCP".to_owned(), "[fd00::1]:80/TCP".to_owned());
    assert_eq!(verdicts(&plan), [(v4, Verdict::Relay), (v6.clone(), refused)]);
    let plan = step(&mut writer, [apply(v6_slice)]);
    assert_eq!(verdicts(&plan), [(v6, Verdict::Relay)]);
}

#[test]
fn an_unknown_balancing_policy_is_reported_once_and_names_what_there_is() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    web.annotations.insert("balance".into(), "lottery".into());
    let plan = step(&mut writer, [apply(web.clone())]);
    assert_eq!(
        plan.notices.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "Service default/web: annotation sluice.dev/balance: \"lottery\" is no policy; round-robin is used; \
          there are round-robin, least-connections, random and source-hash"
        ]
    );
    assert!(step(&mut writer, [apply(slice("web-a", "web", &[1]))]).notices.is_empty());
    web.annotations.insert("balance".into(), "random".into());
    assert!(step(&mut writer, [apply(web.clone())]).notices.is_empty());
    web.annotations.insert("balance".into(), "lottery".into());
    assert_eq!(step(&mut writer, [apply(web)]).notices.len(), 1, "it came back");
}

#[test]
fn of_an_annotation_as_long_as_an_object_a_line_says_the_beginning() {
    let mut writer = writer();
    let mut web = service("web", 1, WEB);
    web.annotations.insert("balance".into(), "\u{e9}".repeat(100_000).into());
    let notices = step(&mut writer, [apply(web)]).notices;
    let said: Vec<String> = notices.iter().map(ToString::to_string).collect();
    let beginning = "\u{e9}".repeat(300);
    assert!(said[0].contains(&format!("\"{beginning}\" is no policy")), "{}", said[0].len());
}

#[test]
fn cluster_addresses_are_told_with_the_plan() {
    let mut writer = writer();
    let cidr =
        sluice_model::ServiceCidr { name: "kubernetes".into(), cidrs: vec!["10.96.0.0/16".parse().unwrap()] };
    let plan = step(&mut writer, [apply(service("web", 1, WEB)), apply(cidr)]);
    assert_eq!(plan.cluster_addresses.added, [IpAddr::from(WEB)]);
    assert_eq!(plan.cluster_addresses.ranges, Some(vec!["10.96.0.0/16".parse().unwrap()]));
    let without_frontend = |writer: &Writer, ip: [u8; 4]| writer.verdict_without_frontend(ip.into());
    assert_eq!(without_frontend(&writer, WEB), Some(Verdict::Refuse(Reason::NoSuchPort)));
    assert_eq!(without_frontend(&writer, [10, 96, 9, 9]), Some(Verdict::Drop(Reason::Unallocated)));
    assert_eq!(without_frontend(&writer, [192, 0, 2, 1]), None);

    let moved = Service { cluster_ips: vec![[10, 96, 0, 2].into()], ..service("web", 1, WEB) };
    let plan = step(&mut writer, [apply(moved)]);
    assert_eq!(plan.cluster_addresses.added, [IpAddr::from([10, 96, 0, 2])]);
    assert_eq!(plan.cluster_addresses.removed, [IpAddr::from(WEB)]);
    assert_eq!(without_frontend(&writer, WEB), Some(Verdict::Drop(Reason::Unallocated)));
    let plan = step(&mut writer, [Change::Delete(ObjectRef::ServiceCidr("kubernetes".into()))]);
    assert_eq!(plan.cluster_addresses.ranges, Some(Vec::new()));
}

#[test]
fn service_ports_that_a_policy_leaves_no_endpoint_are_counted_once_for_each_policy() {
    #[rustfmt::skip]
    let cases = [
        ("",                              "ready",                 (0, 0)),
        ("internal-local",                "ready",                 (1, 0)),
        ("external-local",                "ready down@here",       (0, 1)),
        ("internal-local external-local", "ready@there",           (1, 1)),
        ("internal-local external-local", "ready ready@here",      (0, 0)),
        ("internal-local",                "draining draining@here", (0, 0)),
        ("internal-local external-local", "",                      (0, 0)),
        ("internal-local external-local", "down",                  (0, 0)),
    ];
    for (service, endpoints, (internal, external)) in cases {
        let writer = scene(service, endpoints);
        let count = |family| writer.table().without_local_endpoints(family);
        assert_eq!(count(Family::V4), WithoutLocal { internal, external }, "{service}: {endpoints}");
        assert_eq!(count(Family::V6), WithoutLocal::default(), "{service}: {endpoints}");
    }
}
