use serde_json::json;
use sluice_testbed::apiserver::{Apiserver, Resource};

use crate::client::{SERVICES, SLICES, service, slice, start};

#[tokio::test]
async fn an_object_is_served_whole_and_in_a_list_without_its_type() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    let object = client.get(&format!("{SERVICES}/a")).await;
    assert_eq!((object.code, &object.body["kind"]), (200, &json!("Service")));
    let list = client.get("/api/v1/services").await;
    assert_eq!(list.body["kind"], "ServiceList");
    assert_eq!(list.names(), ["a"]);
    assert!(list.body["items"][0].get("kind").is_none());
    assert_eq!(list.version(), server.resource_version().to_string());
}

#[tokio::test]
async fn errors_are_statuses() {
    let (_server, client) = start(Apiserver::builder()).await;
    for (path, code, reason) in [
        (format!("{SERVICES}/a"), 404, "NotFound"),
        ("/api/v1/secrets".to_owned(), 404, "NotFound"),
        ("/apis/apps/v1/deployments".to_owned(), 404, "NotFound"),
        (format!("{SERVICES}?fieldSelector=spec.color=red"), 400, "BadRequest"),
        (format!("{SERVICES}?labelSelector=a+b"), 400, "BadRequest"),
        (format!("{SERVICES}?resourceVersionMatch=Exact"), 422, "Invalid"),
        (format!("{SERVICES}?resourceVersion=1000"), 504, "Timeout"),
    ] {
        let answer = client.get(&path).await;
        assert_eq!((answer.code, answer.reason()), (code, reason), "{path}");
        assert_eq!((&answer.body["kind"], &answer.body["code"]), (&json!("Status"), &json!(code)));
    }
    assert_eq!(client.put(SERVICES, json!({})).await.code, 405);
}

#[tokio::test]
async fn pages_show_one_revision_whatever_happens_meanwhile() {
    let (server, client) = start(Apiserver::builder()).await;
    for name in ["a", "b", "c", "d", "e"] {
        server.create(Resource::Services, service(name)).unwrap();
    }
    let first = client.get(&format!("{SERVICES}?limit=2")).await;
    assert_eq!(first.names(), ["a", "b"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    server.delete(Resource::Services, "default", "c").unwrap();
    server.create(Resource::Services, service("dd")).unwrap();
    let next = first.body["metadata"]["continue"].as_str().unwrap();
    let second = client.get(&format!("{SERVICES}?limit=2&continue={next}")).await;
    assert_eq!(second.names(), ["c", "d"]);
    assert_eq!(second.version(), first.version());
    let next = second.body["metadata"]["continue"].as_str().unwrap();
    let third = client.get(&format!("{SERVICES}?limit=2&continue={next}")).await;
    assert_eq!(third.names(), ["e"]);
    assert!(third.body["metadata"].get("continue").is_none());
    let exact = format!("{SERVICES}?resourceVersion={}&resourceVersionMatch=Exact", first.version());
    assert_eq!(client.get(&exact).await.names(), ["a", "b", "c", "d", "e"]);
    assert_eq!(client.get(SERVICES).await.names(), ["a", "b", "d", "dd", "e"]);
}

#[tokio::test]
async fn a_continue_token_expires_and_says_how_to_go_on() {
    let (server, client) = start(Apiserver::builder()).await;
    for name in ["a", "b", "c"] {
        server.create(Resource::Services, service(name)).unwrap();
    }
    let first = client.get(&format!("{SERVICES}?limit=1")).await;
    let next = first.body["metadata"]["continue"].as_str().unwrap();
    server.compact();
    let expired = client.get(&format!("{SERVICES}?limit=1&continue={next}")).await;
    assert_eq!((expired.code, expired.reason()), (410, "Expired"));
    let next = expired.body["metadata"]["continue"].as_str().unwrap();
    assert_eq!(client.get(&format!("{SERVICES}?continue={next}")).await.names(), ["b", "c"]);
    let exact = format!("{SERVICES}?resourceVersion={}&limit=1", first.version());
    assert_eq!(client.get(&exact).await.code, 410);
}

#[tokio::test]
async fn selectors_narrow_lists() {
    let (server, client) = start(Apiserver::builder()).await;
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = "None".into();
    let mut labelled = service("labelled");
    labelled["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    for object in [headless, labelled, service("plain")] {
        server.create(Resource::Services, object).unwrap();
    }
    server.create(Resource::EndpointSlices, slice("plain")).unwrap();
    let names = async |query: &str| client.get(&format!("/api/v1/services?{query}")).await.names().join(" ");
    assert_eq!(names("fieldSelector=spec.clusterIP!%3DNone").await, "labelled plain");
    let proxy = "labelSelector=!service.kubernetes.io%2Fservice-proxy-name";
    assert_eq!(names(proxy).await, "headless plain");
    assert_eq!(names(&format!("{proxy}&fieldSelector=spec.clusterIP!%3DNone")).await, "plain");
    assert_eq!(names("fieldSelector=metadata.name%3Dplain").await, "plain");
    assert_eq!(
        names("labelSelector=service.kubernetes.io%2Fservice-proxy-name+in+(other,more)").await,
        "labelled"
    );
    let slices = client.get(&format!("{SLICES}?labelSelector=kubernetes.io%2Fservice-name%3Dplain")).await;
    assert_eq!(slices.names(), ["plain"]);
    assert!(client.get("/api/v1/namespaces/kube-system/services").await.names().is_empty());
}

#[tokio::test]
async fn a_table_names_columns_and_cells() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    for path in [SERVICES.to_owned(), format!("{SERVICES}/a")] {
        let table = client.table(&path).await.body;
        assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
        assert_eq!(table["columnDefinitions"][2]["name"], "Cluster-IP");
        assert_eq!(table["rows"][0]["cells"][0], "a");
        assert_eq!(table["rows"][0]["cells"][2], "10.96.0.2");
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
}

#[tokio::test]
async fn the_cluster_is_not_empty_and_describes_itself() {
    let (server, client) = start(Apiserver::builder()).await;
    assert_eq!(client.get("/api/v1/namespaces").await.names(), ["default", "kube-system"]);
    let cidrs = client.get("/apis/networking.k8s.io/v1/servicecidrs").await;
    assert_eq!(cidrs.body["items"][0]["spec"]["cidrs"], json!(["10.96.0.0/12"]));
    assert_eq!(client.get("/version").await.body["major"], "1");
    let server_address = &client.get("/api").await.body["serverAddressByClientCIDRs"][0]["serverAddress"];
    assert_eq!(*server_address, server.address().to_string());
    let health = client.try_get("/readyz").await.unwrap();
    assert_eq!(health.text().await.unwrap(), "ok");
    assert_eq!(client.post("/api/v1/namespaces/default/events", json!({ "reason": "Test" })).await.code, 201);
    assert!(client.get("/api/v1/events").await.names().is_empty());
}
