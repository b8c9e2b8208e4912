use reqwest::Method;
use serde_json::json;
use sluice_testbed::apiserver::{Apiserver, Resource};

use crate::client::{SERVICES, SLICES, service, slice, start};

#[tokio::test]
async fn a_service_is_created_replaced_and_deleted() {
    let (server, client) = start(Apiserver::builder()).await;
    let created = client.post(SERVICES, service("a")).await;
    assert_eq!((created.code, &created.body["spec"]["clusterIP"]), (201, &json!("10.96.0.2")));
    assert_eq!(client.post(SERVICES, service("a")).await.reason(), "AlreadyExists");
    let mut body = created.body.clone();
    body["spec"]["ports"][0]["port"] = 81.into();
    let path = format!("{SERVICES}/a");
    assert_eq!(client.put(&path, body.clone()).await.code, 200);
    let conflict = client.put(&path, body.clone()).await;
    assert_eq!((conflict.code, conflict.reason()), (409, "Conflict"));
    assert_eq!(server.get(Resource::Services, "default", "a").unwrap()["spec"]["ports"][0]["port"], 81);
    body["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    body["spec"]["clusterIP"] = "10.96.0.9".into();
    body["spec"]["clusterIPs"] = json!(["10.96.0.9"]);
    let immutable = client.put(&path, body).await;
    assert_eq!((immutable.code, immutable.reason()), (422, "Invalid"));
    assert_eq!(immutable.body["details"]["causes"][0]["field"], "spec.clusterIPs[0]");
    let uid = created.body["metadata"]["uid"].as_str().unwrap();
    let wrong = json!({ "preconditions": { "uid": "wrong" } });
    let refused = client.send(Method::DELETE, &path, "application/json", wrong).await;
    assert_eq!(refused.code, 409);
    let deleted = client.delete(&path).await;
    assert_eq!((deleted.code, &deleted.body["status"]), (200, &json!("Success")));
    assert_eq!(deleted.body["details"]["uid"], uid);
    assert_eq!(client.delete(&path).await.code, 404);
}

#[tokio::test]
async fn patches_change_a_part() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    let path = format!("{SERVICES}/a");
    let patch = async |kind: &str, body| {
        client.send(Method::PATCH, &path, &format!("application/{kind}+json"), body).await
    };
    let port =
        json!({ "spec": { "ports": [{ "port": 80, "targetPort": 8080 }, { "port": 81, "name": "b" }] } });
    let unnamed = patch("strategic-merge-patch", port).await;
    assert_eq!(unnamed.body["details"]["causes"][0]["field"], "spec.ports[0].name");
    let port = json!({ "spec": { "ports": [{ "port": 80, "name": "a" }, { "port": 81, "name": "b" }] } });
    let strategic = patch("strategic-merge-patch", port).await;
    let ports = &strategic.body["spec"]["ports"];
    assert_eq!((&ports[0]["targetPort"], &ports[1]["targetPort"]), (&json!(80), &json!(81)));
    let merged = patch("merge-patch", json!({ "spec": { "type": "NodePort" } })).await;
    assert_eq!(merged.body["spec"]["ports"][1]["nodePort"], 30001);
    let json = patch("json-patch", json!([{ "op": "remove", "path": "/spec/ports/1" }])).await;
    assert_eq!(json.body["spec"]["ports"].as_array().unwrap().len(), 1);
    let stale = json!({ "metadata": { "resourceVersion": "1", "labels": { "a": "b" } } });
    assert_eq!(patch("merge-patch", stale).await.code, 409);
    assert_eq!(patch("apply-patch", json!({})).await.code, 415);
}

#[tokio::test]
async fn a_status_has_an_endpoint_of_its_own() {
    let (server, client) = start(Apiserver::builder()).await;
    server.create(Resource::Services, service("a")).unwrap();
    let path = format!("{SERVICES}/a/status");
    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } } });
    let patched = client.send(Method::PATCH, &path, "application/merge-patch+json", status).await;
    assert_eq!(patched.body["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    assert_eq!(client.get(&path).await.code, 200);
    assert_eq!(client.get(&format!("{SLICES}/a/status")).await.code, 404);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let (server, client) = start(Apiserver::builder()).await;
    for name in ["a", "b"] {
        server.create(Resource::EndpointSlices, slice(name)).unwrap();
    }
    let deleted = client.delete(&format!("{SLICES}?labelSelector=kubernetes.io%2Fservice-name%3Da")).await;
    assert_eq!((deleted.code, deleted.names()), (200, vec!["a"]));
    assert_eq!(client.get(SLICES).await.names(), ["b"]);
}

#[tokio::test]
async fn bad_bodies_are_refused() {
    let (server, client) = start(Apiserver::builder()).await;
    let revision = server.resource_version();
    let send =
        async |media_type: &str, body| client.send(Method::POST, SERVICES, media_type, body).await.code;
    assert_eq!(send("application/json", json!("text")).await, 400);
    assert_eq!(send("application/json", json!({ "kind": "Pod", "metadata": { "name": "a" } })).await, 400);
    assert_eq!(send("application/vnd.kubernetes.protobuf", json!({})).await, 415);
    assert_eq!(send("application/json", json!({ "metadata": { "name": "a" } })).await, 422);
    assert_eq!(send("application/json", json!("x".repeat(4 * 1024 * 1024))).await, 413);
    let dry = format!("{SERVICES}?dryRun=All");
    assert_eq!(client.post(&dry, service("a")).await.code, 400);
    assert_eq!(client.post("/api/v1/namespaces/nowhere/services", service("a")).await.code, 404);
    assert_eq!(server.resource_version(), revision);
}
