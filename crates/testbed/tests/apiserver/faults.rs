use std::time::Duration;

use serde_json::json;
use sluice_testbed::apiserver::{Apiserver, Expiry, Failure, Resource, Target, Verb};

use crate::client::{Client, End, SERVICES, SLICES, service, slice, soon, start, until};

/// Both protocols, because their connections break in different ways.
async fn servers() -> Vec<(Apiserver, Client)> {
    vec![start(Apiserver::builder()).await, start(Apiserver::builder().http1_only()).await]
}

fn from_now(server: &Apiserver) -> String {
    format!("resourceVersion={}", server.resource_version())
}

#[tokio::test]
async fn open_watches_are_cut_or_closed() {
    for (server, client) in servers().await {
        let mut services = client.watch(SERVICES, &from_now(&server)).await;
        let mut slices = client.watch(SLICES, &from_now(&server)).await;
        until(&server, |counters| counters.open_watches(Resource::Services) == 1).await;
        server.faults().cut_watches();
        assert_eq!(services.next().await, Err(End::Cut));
        assert_eq!(slices.next().await, Err(End::Cut));
        let mut services = client.watch(SERVICES, &from_now(&server)).await;
        server.faults().close_watches();
        assert_eq!(services.next().await, Err(End::Closed));
        until(&server, |counters| counters.open_watches(Resource::Services) == 0).await;
    }
}

#[tokio::test]
async fn a_watch_is_cut_in_the_middle_of_an_event() {
    for (server, client) in servers().await {
        let mut services = client.watch(SERVICES, &from_now(&server)).await;
        let mut slices = client.watch(SLICES, &from_now(&server)).await;
        server.faults().cut_next_event(Target::resource(Resource::Services), 40);
        server.create(Resource::EndpointSlices, slice("a")).unwrap();
        assert_eq!(slices.told().await, "ADDED a");
        server.create(Resource::Services, service("a")).unwrap();
        assert_eq!(services.next().await, Err(End::Cut));
        // The part that arrived before the end, if any.
        assert!(br#"{"type":"ADDED","object":{"apiVersion":"v1""#.starts_with(&services.unread));
    }
}

#[tokio::test]
async fn over_http1_exactly_so_many_bytes_arrive_before_the_cut() {
    let (server, client) = start(Apiserver::builder().http1_only()).await;
    let mut services = client.watch(SERVICES, &from_now(&server)).await;
    server.faults().cut_next_event(Target::ANY, 40);
    server.create(Resource::Services, service("a")).unwrap();
    assert_eq!(services.next().await, Err(End::Cut));
    assert_eq!(services.unread.len(), 40);
}

#[tokio::test]
async fn silent_watches_stay_open_and_go_on_later() {
    let (server, client) = start(Apiserver::builder()).await;
    let mut before = client.watch(SERVICES, &from_now(&server)).await;
    server.faults().silence_watches();
    let mut during = client.watch(SERVICES, "allowWatchBookmarks=true").await;
    server.create(Resource::Services, service("a")).unwrap();
    server.send_bookmarks();
    assert_eq!(client.get(SERVICES).await.names(), ["a"], "other requests are answered");
    assert!(before.unread.is_empty());
    server.faults().end_silence();
    assert_eq!(before.told().await, "ADDED a");
    assert_eq!(during.told().await, "ADDED a");
    assert_eq!(server.counters().borrow().open_watches(Resource::Services), 2);
}

#[tokio::test]
async fn watches_expire_as_an_event_or_as_a_status() {
    let (server, client) = start(Apiserver::builder()).await;
    server.faults().expire_next_watches(1);
    let mut events = client.watch(SERVICES, &from_now(&server)).await;
    assert_eq!(events.next().await.unwrap()["object"]["code"], 410);
    server.faults().expire_next_watches(1);
    server.faults().expire_as(Expiry::Status);
    let path = format!("{SERVICES}?watch=1&{}", from_now(&server));
    let answer = client.get(&path).await;
    assert_eq!((answer.code, answer.reason()), (410, "Expired"));
    let mut events = client.watch(SERVICES, &from_now(&server)).await;
    server.create(Resource::Services, service("a")).unwrap();
    assert_eq!(events.told().await, "ADDED a");
}

#[tokio::test]
async fn after_a_compaction_only_a_new_list_shows_what_was_deleted() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    let mut open = client.watch(SERVICES, &from_now(&server)).await;
    let version = client.get(SERVICES).await.version().to_owned();
    server.delete(Resource::Services, "default", "a").unwrap();
    assert_eq!(open.told().await, "DELETED a");
    server.compact();
    server.create(Resource::Services, service("b")).unwrap();
    assert_eq!(open.told().await, "ADDED b");
    let mut late = client.watch(SERVICES, &format!("resourceVersion={version}")).await;
    assert_eq!(late.next().await.unwrap()["object"]["code"], 410);
    let list = client.get(SERVICES).await;
    assert_eq!(list.names(), ["b"]);
    let mut late = client.watch(SERVICES, &format!("resourceVersion={}", list.version())).await;
    server.delete(Resource::Services, "default", "b").unwrap();
    assert_eq!(late.told().await, "DELETED b");
}

#[tokio::test]
async fn so_many_requests_fail_as_they_are_told_to() {
    let (server, client) = start(Apiserver::builder()).await;
    let lists = Target::verb(Verb::List).of(Resource::Services);
    let faults = server.faults();
    faults.fail(lists, Failure::TooManyRequests { retry_after: 7 }, 2);
    faults.fail(lists, Failure::InternalError, 1);
    faults.fail(lists, Failure::Unavailable, 1);
    faults.fail(lists, Failure::Unauthorized, 1);
    faults.fail(lists, Failure::Forbidden, 1);
    for _ in 0..2 {
        let response = client.try_get(SERVICES).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &"7".parse().unwrap())
        );
    }
    assert_eq!(client.get(SLICES).await.code, 200);
    for code in [500, 503, 401] {
        assert_eq!(client.get(SERVICES).await.code, code);
    }
    let forbidden = client.get(SERVICES).await;
    let message = forbidden.body["message"].as_str().unwrap();
    assert!(message.contains(r#"cannot list resource "services" in API group """#), "{message}");
    assert_eq!(client.get(SERVICES).await.code, 200);
    assert_eq!(server.counters().borrow().requests(Verb::List, Resource::Services), 7);
}

#[tokio::test]
async fn requests_end_in_garbage_or_not_at_all() {
    let (server, client) = start(Apiserver::builder().http1_only()).await;
    server.faults().fail(Target::ANY, Failure::Garbage, 1);
    let page = client.try_get(SERVICES).await.unwrap().text().await.unwrap();
    assert!(page.starts_with("<html>"));
    server.faults().fail(Target::ANY, Failure::Disconnect, 1);
    assert!(client.try_get(SERVICES).await.is_err());
    server.faults().fail(Target::ANY, Failure::Hang, 1);
    let hung = tokio::spawn({
        let client = client.clone();
        async move { client.try_get(SERVICES).await }
    });
    until(&server, |counters| counters.all_requests == 3).await;
    assert_eq!(client.get(SERVICES).await.code, 200);
    assert!(!hung.is_finished());
    server.drop_connections();
    assert!(soon(hung).await.unwrap().is_err());
}

#[tokio::test]
async fn bodies_arrive_slowly_piece_by_piece() {
    let (server, client) = start(Apiserver::builder().http1_only()).await;
    server.create(Resource::Services, service("a")).unwrap();
    server.faults().throttle(64, Duration::from_millis(1));
    let mut response = client.try_get(SERVICES).await.unwrap();
    let (mut pieces, mut bytes) = (0, Vec::new());
    while let Some(piece) = soon(response.chunk()).await.unwrap() {
        pieces += 1;
        bytes.extend_from_slice(&piece);
    }
    assert!(pieces > 2, "{pieces}");
    assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
    let mut events = client.watch(SERVICES, "").await;
    assert_eq!(events.told().await, "ADDED a");
    server.faults().throttle(1, Duration::from_secs(3600));
    server.create(Resource::Services, service("b")).unwrap();
    server.faults().cut_watches();
    assert_eq!(events.next().await, Err(End::Cut), "a cut does not wait for a slow body");
}

#[tokio::test]
async fn held_changes_are_overtaken() {
    let (server, client) = start(Apiserver::builder()).await;
    let query = format!("{}&allowWatchBookmarks=true", from_now(&server));
    let mut services = client.watch(SERVICES, &query).await;
    let mut slices = client.watch(SLICES, &query).await;
    let held_at = server.resource_version();
    server.hold(Resource::Services);
    server.create(Resource::Services, service("a")).unwrap();
    server.create(Resource::EndpointSlices, slice("a")).unwrap();
    assert_eq!(slices.told().await, "ADDED a");
    server.send_bookmarks();
    let bookmark = services.next().await.unwrap();
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], held_at.to_string());
    server.faults().release(Resource::Services);
    assert_eq!(services.told().await, "ADDED a");
}

#[tokio::test]
async fn a_stopped_server_refuses_and_comes_back_on_the_same_port() {
    for (server, client) in servers().await {
        let mut events = client.watch(SERVICES, &from_now(&server)).await;
        server.stop().await.unwrap();
        assert_eq!(events.next().await, Err(End::Cut));
        assert!(client.try_get(SERVICES).await.unwrap_err().is_connect());
        let from = from_now(&server);
        server.create(Resource::Services, service("a")).unwrap();
        server.start_again().unwrap();
        let mut events = client.watch(SERVICES, &from).await;
        assert_eq!(events.told().await, "ADDED a");
        server.stop().await.unwrap();
        server.start_again().unwrap();
        assert_eq!(client.get(SERVICES).await.code, 200);
    }
}

#[tokio::test]
async fn cleared_faults_are_gone() {
    let (server, client) = start(Apiserver::builder()).await;
    let faults = server.faults();
    faults.fail(Target::ANY, Failure::Unavailable, usize::MAX);
    faults.silence_watches();
    faults.throttle(1, Duration::from_secs(3600));
    faults.expire_next_watches(usize::MAX);
    faults.cut_next_event(Target::ANY, 1);
    server.hold(Resource::Services);
    faults.clear();
    let mut events = client.watch(SERVICES, &from_now(&server)).await;
    server.create(Resource::Services, service("a")).unwrap();
    assert_eq!(events.told().await, "ADDED a");
    assert_eq!(
        client.get(SERVICES).await.body["items"][0]["spec"]["ports"],
        json!([{ "port": 80, "protocol": "TCP", "targetPort": 80 }])
    );
}
