//! Each object against the types of Kubernetes 1.36: nothing is left out that must be there, nothing is there that the
//! type has not.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::manifests::{COMPONENTS, OVERLAYS, overlay, with_components};

/// A kind of Prometheus' operator, as far as it is used here.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Custom<T> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: T,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceMonitor {
    job_label: String,
    selector: LabelSelector,
    endpoints: Vec<Endpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

/// What is in the groups is promtool's matter.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Value>,
}

/// A type leaves out what it does not know, and adds what it cannot do without; then it does not come out as it went in.
fn check<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(typed).map_err(|error| error.to_string())?;
    match difference("", object, &back) {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

/// Where two values differ first.
fn difference(path: &str, given: &Value, typed: &Value) -> Option<String> {
    match (given, typed) {
        (Value::Object(given), Value::Object(typed)) => {
            let missing = typed.keys().filter(|key| !given.contains_key(*key));
            let unknown = given.keys().filter(|key| !typed.contains_key(*key));
            let mut both = given.iter().filter_map(|(key, value)| Some((key, value, typed.get(key)?)));
            (missing.map(|key| format!("{path}.{key} is missing")))
                .chain(unknown.map(|key| format!("{path}.{key} is unknown")))
                .next()
                .or_else(|| both.find_map(|(key, a, b)| difference(&format!("{path}.{key}"), a, b)))
        }
        (Value::Array(given), Value::Array(typed)) if given.len() == typed.len() => {
            let mut pairs = given.iter().zip(typed).enumerate();
            pairs.find_map(|(index, (a, b))| difference(&format!("{path}[{index}]"), a, b))
        }
        _ => (given != typed).then(|| format!("{path}: {given} became {typed}")),
    }
}

fn check_kind(object: &Value) -> Result<(), String> {
    match (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or("")) {
        ("apps/v1", "DaemonSet") => check::<DaemonSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check::<ClusterRoleBinding>(object),
        ("v1", "ConfigMap") => check::<ConfigMap>(object),
        ("v1", "Service") => check::<Service>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => check::<Custom<Rules>>(object),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => check::<Custom<ServiceMonitor>>(object),
        ("v1", "ServiceAccount") => check::<ServiceAccount>(object),
        (version, kind) => Err(format!("nobody knows {version} {kind}")),
    }
}

#[track_caller]
fn assert_known(what: &str, objects: &[Value]) {
    assert!(objects.len() >= 4, "{what}");
    for object in objects {
        let name = &object["metadata"]["name"];
        check_kind(object).unwrap_or_else(|error| panic!("{what}: {} {name}: {error}", object["kind"]));
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn every_object_of_every_overlay_is_of_its_type() {
    for name in OVERLAYS {
        assert_known(name, &overlay(name));
        for component in COMPONENTS {
            assert_known(name, &with_components(name, &[component]));
        }
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn a_wrong_object_is_told() {
    let objects = overlay("managed");
    let mut object = objects.into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let container = "/spec/template/spec/containers/0";
    object.pointer_mut(container).unwrap()["securityContext"]["capabilites"] = serde_json::json!({});
    assert_eq!(
        check_kind(&object).unwrap_err(),
        ".spec.template.spec.containers[0].securityContext.capabilites is unknown"
    );
    object.pointer_mut(container).unwrap()["securityContext"] = "strict".into();
    assert!(check_kind(&object).is_err());
    object.pointer_mut(container).unwrap()["securityContext"] = serde_json::json!({});
    object["spec"].as_object_mut().unwrap().remove("selector");
    assert_eq!(check_kind(&object).unwrap_err(), ".spec.selector is missing");
}
