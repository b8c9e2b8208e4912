//! Documents that clients read before they access objects: version, groups, resources, OpenAPI, health.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::resource::Resource;

/// The content of a path that names no resource.
#[derive(Debug)]
pub(crate) enum Document {
    Json(Value),
    Text(&'static str),
    /// The OpenAPI v2 document in protobuf.
    OpenApiV2,
}

/// The document at this path, if there is one. `server` is the address of this server.
pub(crate) fn document(path: &str, server: SocketAddr) -> Option<Document> {
    let json = match path {
        "/healthz" | "/livez" | "/readyz" => return Some(Document::Text("ok")),
        "/openapi/v2" => return Some(Document::OpenApiV2),
        "/version" => version(),
        "/api" => api_versions(server),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1",
                           "groups": groups().into_iter().filter(|name| !name.is_empty()).map(group).collect::<Vec<_>>() }),
        "/openapi/v3" => openapi_v3_index(),
        _ => return below(path),
    };
    Some(Document::Json(json))
}

/// Documents of one group or version.
fn below(path: &str) -> Option<Document> {
    let (is_openapi, path) = match path.strip_prefix("/openapi/v3") {
        Some(rest) => (true, rest),
        None => (false, path),
    };
    let mut parts = path.trim_matches('/').split('/');
    let (name, version) = match (parts.next()?, parts.next()?) {
        ("api", version) => ("", Some(version)),
        ("apis", name) => (name, parts.next()),
        _ => return None,
    };
    let known = groups().contains(&name) && version.is_none_or(|version| version == "v1");
    if !known || parts.next().is_some() {
        return None;
    }
    match (is_openapi, version) {
        (false, Some(version)) => Some(Document::Json(resources(name, version))),
        (false, None) => Some(Document::Json(group(name))),
        (true, Some(_)) => Some(Document::Json(openapi_v3())),
        (true, None) => None,
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.25", "compiler": "gc", "platform": "linux/amd64",
    })
}

fn api_versions(server: SocketAddr) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": server.to_string() }],
    })
}

/// All groups, including the core one ("").
fn groups() -> Vec<&'static str> {
    let mut groups: Vec<_> = Resource::ALL.into_iter().map(|resource| resource.info().group).collect();
    groups.dedup();
    groups
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version })
}

fn resources(group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for resource in Resource::ALL.into_iter().filter(|resource| resource.info().group == group) {
        let info = resource.info();
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        list.push(json!({
            "name": info.plural, "singularName": info.singular, "namespaced": info.namespaced,
            "kind": info.kind, "verbs": verbs, "shortNames": info.short_names,
        }));
        if info.status {
            list.push(json!({
                "name": format!("{}/status", info.plural), "singularName": "", "namespaced": info.namespaced,
                "kind": info.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list })
}

fn openapi_v3_index() -> Value {
    let mut paths = json!({});
    for group in groups() {
        let path = if group.is_empty() { "api/v1".to_owned() } else { format!("apis/{group}/v1") };
        paths[&path] = json!({ "serverRelativeURL": format!("/openapi/v3/{path}") });
    }
    json!({ "paths": paths })
}

/// An empty document, so kubectl leaves the validation to the server.
fn openapi_v3() -> Value {
    json!({ "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": "v1.36.0" }, "paths": {} })
}

/// The media type of the OpenAPI v2 document in protobuf, the only form that kubectl reads.
pub(crate) const OPENAPI_V2_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// An OpenAPI v2 document without definitions, as protobuf of `openapi.v2.Document`: field 1 is
/// `swagger: "2.0"`. kubectl does not validate kinds for which there is no definition.
pub(crate) const OPENAPI_V2: &[u8] = b"\x0a\x032.0";

#[cfg(test)]
mod tests {
    use super::*;

    fn served(path: &str) -> Option<Value> {
        match document(path, "127.0.0.1:6443".parse().unwrap())? {
            Document::Json(value) => Some(value),
            Document::Text(text) => Some(text.into()),
            Document::OpenApiV2 => Some(Value::Null),
        }
    }

    #[test]
    fn every_resource_is_discovered_in_its_group() {
        let names = |path: &str| {
            let list = served(path).unwrap();
            let resources = list["resources"].as_array().unwrap().iter();
            resources.map(|resource| resource["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert!(names("/api/v1").contains(&"services/status".to_owned()));
        assert_eq!(names("/apis/discovery.k8s.io/v1"), ["endpointslices"]);
        assert_eq!(served("/apis").unwrap()["groups"].as_array().unwrap().len(), groups().len() - 1);
        for path in
            ["/version", "/api", "/apis/discovery.k8s.io", "/openapi/v3/api/v1", "/readyz", "/openapi/v2"]
        {
            assert!(served(path).is_some(), "{path}");
        }
        for path in
            ["/", "/api/v2", "/apis/apps/v1", "/apis/discovery.k8s.io/v1/x/y", "/openapi/v3/api", "/x"]
        {
            assert!(served(path).is_none(), "{path}");
        }
    }
}
