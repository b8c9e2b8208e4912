use std::time::Duration;

use serde_json::{Value, json};
use sluice_testbed::apiserver::{Apiserver, Resource};

use crate::client::{End, SERVICES, SLICES, service, slice, start, until};

#[tokio::test]
async fn a_watch_from_a_list_sees_every_change_after_it() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    let version = client.get(SERVICES).await.version().to_owned();
    server.create(Resource::Services, service("b")).unwrap();
    let mut events = client.watch(SERVICES, &format!("resourceVersion={version}")).await;
    assert_eq!(events.told().await, "ADDED b");
    let mut object = server.get(Resource::Services, "default", "a").unwrap();
    object["metadata"]["labels"] = json!({ "x": "y" });
    server.update(Resource::Services, object).unwrap();
    let event = events.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("MODIFIED"), &json!("Service")));
    assert_eq!(event["object"]["metadata"]["resourceVersion"], server.resource_version().to_string());
    server.create(Resource::EndpointSlices, slice("unseen")).unwrap();
    server.delete(Resource::Services, "default", "a").unwrap();
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["x"], "y");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], server.resource_version().to_string());
}

#[tokio::test]
async fn a_watch_without_a_version_starts_with_what_there_is() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    for query in ["", "resourceVersion=0"] {
        let mut events = client.watch(SERVICES, query).await;
        assert_eq!(events.told().await, "ADDED a");
    }
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_marked_bookmark() {
    let (server, client) = start(Apiserver::builder()).await;
    for name in ["a", "b"] {
        server.create(Resource::Services, service(name)).unwrap();
    }
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = client.watch(SERVICES, query).await;
    assert_eq!(events.told().await, "ADDED a");
    assert_eq!(events.told().await, "ADDED b");
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], server.resource_version().to_string());
    server.create(Resource::Services, service("c")).unwrap();
    assert_eq!(events.told().await, "ADDED c");
}

#[tokio::test]
async fn bookmarks_name_the_revision_that_a_watch_has_reached() {
    let (server, client) = start(Apiserver::builder()).await;
    let from = format!("resourceVersion={}", server.resource_version());
    let mut with = client.watch(SERVICES, &format!("{from}&allowWatchBookmarks=true")).await;
    let mut without = client.watch(SERVICES, &from).await;
    server.create(Resource::EndpointSlices, slice("elsewhere")).unwrap();
    server.send_bookmarks();
    let event = with.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("BOOKMARK"), &json!("Service")));
    assert_eq!(event["object"]["metadata"]["resourceVersion"], server.resource_version().to_string());
    server.create(Resource::Services, service("a")).unwrap();
    assert_eq!(without.told().await, "ADDED a");
    let (regular, client) = start(Apiserver::builder().bookmark_interval(Duration::from_millis(5))).await;
    let version = regular.resource_version();
    let mut events =
        client.watch(SERVICES, &format!("resourceVersion={version}&allowWatchBookmarks=true")).await;
    regular.create(Resource::Services, service("a")).unwrap();
    assert_eq!(events.told().await, "ADDED a");
    assert_eq!(events.told().await, "BOOKMARK -");
    assert_eq!(events.told().await, "BOOKMARK -");
}

#[tokio::test]
async fn a_resource_that_has_not_changed_since_the_start_has_no_bookmarks() {
    let (server, client) = start(Apiserver::builder().bookmark_interval(Duration::from_millis(5))).await;
    server.create(Resource::Services, service("a")).unwrap();
    server.stop().await.unwrap();
    server.start_again().unwrap();
    let version = server.resource_version();
    let query = format!("timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={version}");
    let mut events = client.watch(SERVICES, &query).await;
    server.create(Resource::EndpointSlices, slice("elsewhere")).unwrap();
    assert_eq!(events.next().await, Err(End::Closed), "not one, not even at the end");
}

#[tokio::test]
async fn a_watch_ends_after_its_time() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    let version = server.resource_version();
    let query = format!("timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={version}");
    let mut events = client.watch(SERVICES, &query).await;
    assert_eq!(events.told().await, "BOOKMARK -");
    assert_eq!(events.next().await, Err(End::Closed));
    until(&server, |counters| counters.open_watches(Resource::Services) == 0).await;
}

#[tokio::test]
async fn an_object_comes_and_goes_with_the_selector() {
    let (server, client) = start(Apiserver::builder()).await;
    let from = format!("resourceVersion={}", server.resource_version());
    let query = format!("{from}&labelSelector=!hidden&fieldSelector=spec.clusterIP!%3DNone");
    let mut events = client.watch("/api/v1/services", &query).await;
    let mut object = server.create(Resource::Services, service("a")).unwrap();
    let mut relabel = |labels: Value| {
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        object["metadata"]["labels"] = labels;
        server.update(Resource::Services, object.clone()).unwrap();
    };
    relabel(json!({ "hidden": "" }));
    relabel(json!({ "hidden": "still" }));
    relabel(json!({ "other": "" }));
    server.delete(Resource::Services, "default", "a").unwrap();
    assert_eq!(events.told().await, "ADDED a");
    let gone = events.next().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    assert!(gone["object"]["metadata"].get("labels").is_none(), "the last state that matched");
    assert_eq!(events.told().await, "ADDED a");
    assert_eq!(events.told().await, "DELETED a");
}

#[tokio::test]
async fn one_object_is_watched_by_name() {
    let (server, client) = start(Apiserver::builder()).await;
    let query = format!("resourceVersion={}&fieldSelector=metadata.name%3Db", server.resource_version());
    let mut events = client.watch(SLICES, &query).await;
    for name in ["a", "b"] {
        server.create(Resource::EndpointSlices, slice(name)).unwrap();
    }
    assert_eq!(events.told().await, "ADDED b");
}

#[tokio::test]
async fn a_watch_of_tables_names_the_columns_once() {
    let (server, client) = start(Apiserver::builder()).await;
    let url = format!("{}{SERVICES}?watch=true&resourceVersion=0", client.url);
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut response = client.http.get(url).header("accept", accept).send().await.unwrap();
    let mut unread = Vec::new();
    let mut tables = Vec::new();
    for name in ["a", "b"] {
        server.create(Resource::Services, service(name)).unwrap();
        while !unread.ends_with(b"\n") {
            unread.extend(crate::client::soon(response.chunk()).await.unwrap().unwrap());
        }
        let event: Value = serde_json::from_slice(&std::mem::take(&mut unread)).unwrap();
        tables.push(event["object"].clone());
    }
    assert_eq!(tables[0]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(tables[1]["columnDefinitions"], Value::Null);
    assert_eq!(tables[1]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn the_history_is_bounded() {
    let (server, client) = start(Apiserver::builder().history(2)).await;
    let version = server.resource_version();
    for name in ["a", "b", "c"] {
        server.create(Resource::Services, service(name)).unwrap();
    }
    let mut events = client.watch(SERVICES, &format!("resourceVersion={version}")).await;
    let event = events.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(events.next().await, Err(End::Closed));
    let mut events = client.watch(SERVICES, &format!("resourceVersion={}", version + 1)).await;
    assert_eq!(events.told().await, "ADDED b");
}
