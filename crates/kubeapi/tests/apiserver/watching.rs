//! Lists and watches when nothing goes wrong, and objects that are not as they should be.

use serde_json::json;
use sluice_kubeapi::apiserver::{Config, Resource as Watched, Timing};
use sluice_model::{Object, ObjectName, ObjectRef};
use sluice_testbed::apiserver::{Apiserver, Failure, Resource, Target, Verb};

use crate::cluster::{Followed, NODE, config, held, node, plain, service, slice, start, timing, until};

#[tokio::test]
async fn the_first_batch_is_the_whole_cluster_and_later_ones_are_changes() {
    let server = plain().await;
    server.create(Resource::Services, service("a")).unwrap();
    server.create(Resource::EndpointSlices, slice("a", "a-1", &["10.0.0.1"])).unwrap();
    server.create(Resource::Nodes, node(NODE)).unwrap();
    server.create(Resource::Nodes, node("node-2")).unwrap();
    let mut followed = Followed::new(config(&server));
    let mut first = followed.next().await;
    first.sort();
    let expected =
        ["+EndpointSlice default/a-1", "+Node node-1", "+Service default/a", "+ServiceCIDR kubernetes"];
    assert_eq!(first, expected);
    assert_eq!(followed.objects, held(&server));

    server.create(Resource::Services, service("b")).unwrap();
    assert_eq!(followed.next().await, ["+Service default/b"]);
    server.delete(Resource::Services, "default", "a").unwrap();
    assert_eq!(followed.next().await, ["-Service default/a"]);
    server.update(Resource::EndpointSlices, slice("a", "a-1", &["10.0.0.1", "10.0.0.2"])).unwrap();
    assert_eq!(followed.next().await, ["+EndpointSlice default/a-1"]);
    assert_eq!(followed.objects, held(&server));
}

#[tokio::test]
async fn an_empty_cluster_is_a_first_batch_too() {
    let server = start(Apiserver::builder().plain_http().service_cidrs(&[])).await;
    let mut followed = Followed::new(config(&server));
    assert!(followed.next().await.iter().all(|change| change == "+ServiceCIDR kubernetes"));
}

#[tokio::test]
async fn nothing_is_handed_over_before_services_and_slices_are_both_complete() {
    for (missing, there) in
        [(Resource::EndpointSlices, Resource::Services), (Resource::Services, Resource::EndpointSlices)]
    {
        let server = plain().await;
        server.create(Resource::Services, service("a")).unwrap();
        server.create(Resource::EndpointSlices, slice("a", "a-1", &["10.0.0.1"])).unwrap();
        let lists = Target::verb(Verb::List).of(missing);
        server.faults().fail(lists, Failure::InternalError, usize::MAX);
        let mut followed = Followed::new(config(&server));
        until(&server, |counters| {
            counters.open_watches(there) == 1 && counters.requests(Verb::List, missing) > 3
        })
        .await;
        server.create(Resource::Services, service("b")).unwrap();
        server.delete(Resource::Services, "default", "a").unwrap();
        followed.assert_nothing();
        server.faults().clear();
        followed.next().await;
        followed.until_like(&server).await;
    }
}

#[tokio::test]
async fn nothing_is_handed_over_after_half_of_a_list() {
    let server = plain().await;
    for i in 0..20 {
        server.create(Resource::Services, service(&format!("s{i:02}"))).unwrap();
    }
    let lists = Target::verb(Verb::List).of(Resource::Services);
    let timing = Timing { page: 5, ..timing() };
    let mut followed = {
        // The first page comes, and the second never does.
        server.faults().throttle(4096, std::time::Duration::ZERO);
        let followed = Followed::new(Config { timing, ..config(&server) });
        until(&server, |counters| counters.requests(Verb::List, Resource::Services) >= 1).await;
        server.faults().fail(lists, Failure::Unavailable, usize::MAX);
        followed
    };
    until(&server, |counters| counters.requests(Verb::List, Resource::Services) >= 6).await;
    followed.drain();
    if followed.count > 0 {
        // All pages were there before the fault.
        assert_eq!(followed.objects, held(&server));
    }
    server.faults().clear();
    followed.until_like(&server).await;
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let server = plain().await;
    for i in 0..103 {
        server.create(Resource::Services, service(&format!("s{i}"))).unwrap();
    }
    let timing = Timing { page: 10, ..timing() };
    let mut followed = Followed::new(Config { timing, ..config(&server) });
    followed.next().await;
    assert_eq!(followed.objects, held(&server));
    let counters = server.counters().borrow().clone();
    assert_eq!(counters.requests(Verb::List, Resource::Services), 11);
    assert_eq!(followed.health().of(Watched::Services).lists(), 1);
}

#[tokio::test]
async fn a_list_whose_pages_expire_is_read_in_one() {
    let server = plain().await;
    for i in 0..30 {
        server.create(Resource::Services, service(&format!("s{i}"))).unwrap();
    }
    let timing = Timing { page: 1, ..timing() };
    server.faults().throttle(256, std::time::Duration::from_millis(1));
    let mut followed = Followed::new(Config { timing, ..config(&server) });
    until(&server, |counters| counters.requests(Verb::List, Resource::Services) > 2).await;
    server.compact();
    followed.next().await;
    server.faults().end_throttle();
    followed.until_like(&server).await;
}

#[tokio::test]
async fn a_list_whose_pages_expire_and_that_is_too_large_in_one_is_read_in_pages_after_all() {
    let server = plain().await;
    for i in 0..30 {
        server.create(Resource::Services, service(&format!("s{i}"))).unwrap();
    }
    server.faults().fail(Target::verb(Verb::List).of(Resource::Services), Failure::Expired, 1);
    let page_bytes = 2 * server.get(Resource::Services, "default", "s29").unwrap().to_string().len();
    let timing = Timing { page: 1, page_bytes, ..timing() };
    let mut followed = Followed::new(Config { timing, ..config(&server) });
    followed.next().await;
    assert_eq!(followed.objects, held(&server));
    let counters = server.counters().borrow().clone();
    // The one that expires, the one that is too large, and all pages.
    assert_eq!(counters.requests(Verb::List, Resource::Services), 32);
}

#[tokio::test]
async fn an_object_that_stops_to_match_is_gone_and_may_come_back() {
    let server = plain().await;
    server.create(Resource::Services, service("a")).unwrap();
    let mut followed = Followed::synced(&server).await;
    let mut hidden = server.get(Resource::Services, "default", "a").unwrap();
    let shown = hidden.clone();
    hidden["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    server.load([(Resource::Services, hidden)]);
    assert_eq!(followed.next().await, ["-Service default/a"]);
    server.load([(Resource::Services, shown)]);
    assert_eq!(followed.next().await, ["+Service default/a"]);
    let mut external = server.get(Resource::Services, "default", "a").unwrap();
    external["spec"]["type"] = "ExternalName".into();
    server.load([(Resource::Services, external)]);
    assert_eq!(followed.next().await, ["-Service default/a"]);
}

#[tokio::test]
async fn bad_objects_are_skipped_and_counted_in_lists_and_watches() {
    let server = plain().await;
    let bad = |name: &str, spec: serde_json::Value| {
        (Resource::Services, json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec }))
    };
    let broken = [
        bad("wrong-type", json!({ "clusterIP": 7 })),
        bad("wrong-list", json!({ "clusterIP": "10.96.0.9", "ports": {} })),
        bad("huge", json!({ "clusterIP": "10.96.0.9", "externalName": "x".repeat(5 << 20) })),
        bad("bad_NAME", json!({ "clusterIP": "10.96.0.9" })),
    ];
    let good = || {
        let port = json!([{ "port": 80, "unknown": {} }]);
        let spec = json!({ "clusterIP": "10.96.0.8", "ports": port, "unknown": [[]] });
        [
            bad("unknown-fields", spec),
            (Resource::Services, json!({ "metadata": { "name": "no-spec", "namespace": "default" } })),
        ]
    };
    server.load(broken.clone().into_iter().chain(good()));
    server.create(Resource::Services, service("a")).unwrap();
    let mut followed = Followed::synced(&server).await;
    let expected = ["Service default/a", "Service default/unknown-fields", "ServiceCIDR kubernetes"];
    assert_eq!(followed.names(), expected);
    assert_eq!(followed.health().of(Watched::Services).skipped(), 4);

    until(&server, |counters| counters.open_watches(Resource::Services) == 1).await;
    server.load(broken);
    server.create(Resource::Services, service("b")).unwrap();
    assert_eq!(followed.next().await, ["+Service default/b"]);
    assert_eq!(followed.health().of(Watched::Services).skipped(), 8);
    let lists = server.counters().borrow().requests(Verb::List, Resource::Services);
    assert_eq!(lists, 1, "the watch went on");
}

/// An apiserver takes and serves such a null, though its own types never write one.
#[tokio::test]
async fn nulls_and_elements_of_a_wrong_type_cost_nothing_else() {
    let server = plain().await;
    let service = |name: &str, port: u16| {
        let condition = json!({ "type": "Ready", "status": "True", "lastTransitionTime": null });
        let port = json!({ "port": port, "targetPort": null, "appProtocol": null });
        json!({
            "metadata": { "name": name, "namespace": "default", "ownerReferences": null, "managedFields": [null] },
            "spec": { "clusterIP": "10.96.0.1", "ports": [port, { "port": "many" }], "selector": { "a": null } },
            "status": { "conditions": [condition], "loadBalancer": null },
        })
    };
    server.load([(Resource::Services, service("a", 80))]);
    let mut followed = Followed::synced(&server).await;
    let ports = |followed: &Followed, name: &str| match &followed.objects
        [&ObjectRef::Service(ObjectName::new("default", name))]
    {
        Object::Service(service) => service.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(ports(&followed, "a"), [80]);
    server.load([(Resource::Services, service("a", 81))]);
    assert_eq!(followed.next().await, ["+Service default/a"]);
    assert_eq!(ports(&followed, "a"), [81]);
    let health = followed.health().of(Watched::Services);
    assert_eq!((health.skipped(), health.left_out()), (0, 2), "the port that is none, twice");
}

#[tokio::test]
async fn an_object_that_breaks_stays_as_it_was_also_through_a_list() {
    let server = plain().await;
    let created = server.create(Resource::Services, service("a")).unwrap();
    let mut followed = Followed::synced(&server).await;
    let name = ObjectRef::Service(ObjectName::new("default", "a"));
    let before = followed.objects[&name].clone();
    let mut broken = created.clone();
    broken["spec"]["ports"] = "none".into();
    server.load([(Resource::Services, broken)]);
    server.compact();
    server.faults().cut_watches();
    server.create(Resource::Services, service("b")).unwrap();
    followed.until(|objects| objects.len() == 3).await;
    assert_eq!(followed.objects[&name], before);
    server.delete(Resource::Services, "default", "a").unwrap();
    followed.until(|objects| !objects.contains_key(&name)).await;
}

#[tokio::test]
async fn the_node_is_followed_and_no_other() {
    let server = plain().await;
    server.create(Resource::Nodes, node(NODE)).unwrap();
    server.create(Resource::Nodes, node("node-2")).unwrap();
    let mut followed = Followed::synced(&server).await;
    let mut labelled = server.get(Resource::Nodes, "", NODE).unwrap();
    labelled["metadata"]["labels"] = json!({ "topology.kubernetes.io/zone": "z" });
    server.update(Resource::Nodes, server.get(Resource::Nodes, "", "node-2").unwrap()).unwrap();
    server.update(Resource::Nodes, labelled).unwrap();
    assert_eq!(followed.next().await, ["+Node node-1"]);
    let name = ObjectRef::Node(NODE.into());
    assert!(matches!(&followed.objects[&name], Object::Node(node) if node.zone.as_deref() == Some("z")));
}

#[tokio::test]
async fn a_slow_receiver_gets_larger_batches() {
    let server = plain().await;
    let mut followed = Followed::synced(&server).await;
    until(&server, |counters| counters.open_watches(Resource::Services) == 1).await;
    for i in 0..2000 {
        server.create(Resource::Services, service(&format!("s{i}"))).unwrap();
    }
    let before = followed.count;
    followed.until_like(&server).await;
    assert!(followed.count - before < 1000, "{}", followed.count);
}

#[tokio::test]
async fn a_dropped_source_closes_its_watches() {
    let server = plain().await;
    let followed = Followed::synced(&server).await;
    until(&server, |counters| counters.open_watches(Resource::Services) == 1).await;
    drop(followed);
    until(&server, |counters| counters.open_watches(Resource::Services) == 0).await;
}
