use super::*;

fn registry() -> Registry {
    Registry::new(100, &["10.96.0.0/24".parse().unwrap()], 30000..=32767)
}

fn service(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } })
}

fn key(name: &str) -> Key {
    Key::new("default", name)
}

#[test]
fn the_server_sets_its_own_metadata() {
    let mut registry = registry();
    let mut value = service("");
    value["metadata"] = json!({ "generateName": "web-", "uid": "mine" });
    let object = registry.create(Resource::Services, Some("default"), value).unwrap();
    let metadata = object.metadata();
    let name = text(metadata, "/name");
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_ne!(metadata["uid"], "mine");
    assert_eq!(metadata["generation"], 1);
    assert_eq!(metadata["resourceVersion"], registry.store.revision().to_string());
    assert!(text(metadata, "/creationTimestamp").parse::<Timestamp>().is_ok());
    assert_eq!(metadata["namespace"], "default");
}

#[test]
fn creating_checks_names_namespaces_and_types() {
    let mut registry = registry();
    let mut code = |namespace: &str, value: Value| {
        registry.create(Resource::Services, Some(namespace), value).map_err(|status| status.code).err()
    };
    assert_eq!(code("default", service("a")), None);
    assert_eq!(code("default", service("a")), Some(409));
    assert_eq!(code("nowhere", service("a")), Some(404));
    assert_eq!(code("default", service("A")), Some(422));
    assert_eq!(code("default", json!({ "kind": "Pod" })), Some(400));
    assert_eq!(code("default", json!([])), Some(400));
    assert_eq!(code("default", json!({ "metadata": { "name": "b" }, "spec": { "ports": "80" } })), Some(400));
    assert_eq!(code("default", json!({ "metadata": { "name": "b", "namespace": "c" } })), Some(400));
    assert_eq!(code("default", json!({ "metadata": { "name": "b", "resourceVersion": "1" } })), Some(400));
}

#[test]
fn an_update_needs_the_latest_version_or_none() {
    let mut registry = registry();
    let first = registry.create(Resource::Services, None, service("a")).unwrap();
    let mut value = first.full_value();
    value["spec"]["ports"][0]["port"] = 81.into();
    let second = registry.update(Resource::Services, &key("a"), Part::Main, value.clone()).unwrap();
    assert_eq!(second.metadata()["generation"], 2);
    let stale = registry.update(Resource::Services, &key("a"), Part::Main, value.clone()).unwrap_err();
    assert_eq!((stale.code, stale.reason), (409, "Conflict"));
    metadata_mut(&mut value).remove("resourceVersion");
    value["metadata"]["labels"] = json!({ "a": "b" });
    let third = registry.update(Resource::Services, &key("a"), Part::Main, value.clone()).unwrap();
    assert_eq!(third.metadata()["generation"], 2, "labels are no new generation");
    let same = registry.update(Resource::Services, &key("a"), Part::Main, value.clone()).unwrap();
    assert_eq!(same.revision(), third.revision(), "a write that changes nothing is none");
    value["metadata"]["uid"] = "other".into();
    assert_eq!(registry.update(Resource::Services, &key("a"), Part::Main, value).unwrap_err().code, 409);
    assert_eq!(
        registry.update(Resource::Services, &key("b"), Part::Main, service("b")).unwrap_err().code,
        404
    );
    assert_eq!(
        registry.update(Resource::Services, &key("b"), Part::Main, service("a")).unwrap_err().code,
        400
    );
}

#[test]
fn the_status_is_written_by_its_own_endpoint_only() {
    let mut registry = registry();
    let object = registry.create(Resource::Services, None, service("a")).unwrap();
    let mut value = object.full_value();
    value["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
    value["spec"]["ports"][0]["port"] = 81.into();
    let main = registry.update(Resource::Services, &key("a"), Part::Main, value.clone()).unwrap();
    assert_eq!(main.value()["status"], json!({ "loadBalancer": {} }));
    metadata_mut(&mut value).remove("resourceVersion");
    value["spec"]["ports"][0]["port"] = 82.into();
    let status = registry.update(Resource::Services, &key("a"), Part::Status, value).unwrap();
    assert_eq!(status.value()["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    assert_eq!(status.value()["spec"]["ports"][0]["port"], 81);
}

#[test]
fn finalizers_keep_an_object_until_they_are_gone() {
    let mut registry = registry();
    let mut value = service("a");
    value["metadata"]["finalizers"] = json!(["a.example/b"]);
    registry.create(Resource::Services, None, value).unwrap();
    let none = Preconditions::default();
    let Deletion::Pending(marked) = registry.delete(Resource::Services, &key("a"), &none).unwrap() else {
        panic!("it went at once");
    };
    assert!(!text(marked.metadata(), "/deletionTimestamp").is_empty());
    let mut value = marked.full_value();
    value["metadata"]["finalizers"] = json!([]);
    registry.update(Resource::Services, &key("a"), Part::Main, value).unwrap();
    assert_eq!(registry.find(Resource::Services, &key("a")).unwrap_err().code, 404);
}

#[test]
fn a_delete_respects_its_preconditions_and_frees_the_address() {
    let mut registry = registry();
    let object = registry.create(Resource::Services, None, service("a")).unwrap();
    let wrong = Preconditions { uid: Some("other".to_owned()), resource_version: None };
    assert_eq!(registry.delete(Resource::Services, &key("a"), &wrong).unwrap_err().code, 409);
    let right = Preconditions { uid: Some(object.uid().to_owned()), resource_version: None };
    registry.delete(Resource::Services, &key("a"), &right).unwrap();
    let again = registry.create(Resource::Services, None, service("b")).unwrap();
    assert_eq!(again.value()["spec"]["clusterIP"], object.value()["spec"]["clusterIP"]);
}

#[test]
fn a_namespace_goes_with_what_it_holds() {
    let mut registry = registry();
    registry.create(Resource::Namespaces, None, json!({ "metadata": { "name": "shop" } })).unwrap();
    registry.create(Resource::Services, Some("shop"), service("a")).unwrap();
    registry.create(Resource::Services, Some("default"), service("a")).unwrap();
    registry.delete(Resource::Namespaces, &Key::new("", "shop"), &Preconditions::default()).unwrap();
    assert_eq!(registry.store.all(Resource::Services).count(), 1);
}

#[test]
fn nothing_is_created_in_a_namespace_that_is_about_to_go() {
    let mut registry = registry();
    let held = json!({ "metadata": { "name": "shop", "finalizers": ["example.com/held"] } });
    registry.create(Resource::Namespaces, None, held).unwrap();
    registry.create(Resource::Services, Some("shop"), service("a")).unwrap();
    registry.delete(Resource::Namespaces, &Key::new("", "shop"), &Preconditions::default()).unwrap();
    let status = registry.create(Resource::Services, Some("shop"), service("b")).unwrap_err();
    assert_eq!((status.code, &status.details["causes"][0]["reason"]), (403, &"NamespaceTerminating".into()));
    assert_eq!(registry.store.all(Resource::Services).count(), 1, "what is there goes when nothing holds it");
}

#[test]
fn addresses_come_from_every_service_cidr() {
    let mut registry = registry();
    let mut value = service("a");
    value["spec"]["clusterIP"] = "10.97.0.9".into();
    assert_eq!(registry.create(Resource::Services, None, value.clone()).unwrap_err().code, 422);
    let more = json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["10.97.0.0/24"] } });
    registry.create(Resource::ServiceCidrs, None, more).unwrap();
    assert!(registry.create(Resource::Services, None, value).is_ok());
}

#[test]
fn loaded_objects_are_stored_as_they_are() {
    let mut registry = registry();
    let odd = json!({ "metadata": { "name": "Odd!" }, "spec": "nothing", "unknown": true });
    let object = registry.load(Resource::Services, odd);
    assert_eq!(object.value()["spec"], "nothing");
    assert_eq!(object.key(), key("Odd!"));
    assert_eq!(registry.load(Resource::Nodes, json!(7)).key(), Key::new("", ""));
}
