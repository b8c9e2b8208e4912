//! The three kinds of PATCH: JSON merge (RFC 7396), JSON patch (RFC 6902), and the strategic merge that
//! kubectl sends for built-in types, which merges some lists by a key.

use serde_json::{Map, Value};

use super::object::object_mut;
use super::resource::Resource;
use super::status::Status;

/// The format of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Merge,
    Json,
    Strategic,
}

impl PatchKind {
    /// The media types that clients may send.
    pub(crate) const MEDIA_TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
                                          application/strategic-merge-patch+json";

    pub(crate) fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/json-patch+json" => Some(Self::Json),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Applies `patch` to `object`.
pub(crate) fn apply(
    resource: Resource,
    object: &mut Value,
    kind: PatchKind,
    patch: &Value,
) -> Result<(), Status> {
    if kind == PatchKind::Json {
        let operations: json_patch::Patch = serde_json::from_value(patch.clone())
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
        return json_patch::patch(object, &operations).map_err(|error| {
            Status::new(422, "Invalid", format!("the server rejected our request: {error}"))
        });
    }
    let Value::Object(fields) = patch else {
        return Err(Status::bad_request("error decoding patch: it is not an object"));
    };
    match kind {
        PatchKind::Merge => json_patch::merge(object, patch),
        _ => merge_objects(resource, "", object_mut(object), fields),
    }
    Ok(())
}

/// The key by which a list of objects is merged; other lists are replaced as a whole.
fn merge_key(resource: Resource, path: &str) -> Option<&'static str> {
    match (resource, path) {
        (_, ".metadata.ownerReferences") => Some("uid"),
        (Resource::Services, ".spec.ports") => Some("port"),
        (Resource::Nodes, ".spec.taints") => Some("key"),
        (_, ".status.conditions") | (Resource::Nodes, ".status.addresses") => Some("type"),
        _ => None,
    }
}

/// Whether a patch adds to a list of plain values.
fn merges_values(path: &str) -> bool {
    matches!(path, ".metadata.finalizers" | ".spec.podCIDRs")
}

fn merge_objects(
    resource: Resource,
    path: &str,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = patch.iter().filter(|(field, _)| *field != "$patch").map(own).collect();
            return;
        }
        Some("delete") => return target.clear(),
        _ => {}
    }
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|field, _| kept.iter().any(|kept| kept == field));
    }
    for (field, value) in patch {
        if let Some(list) = field.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(values) = target.get_mut(list).and_then(Value::as_array_mut) {
                values.retain(|value| !gone.contains(value));
            }
        }
        if field.starts_with('$') {
            continue;
        }
        let path = format!("{path}.{field}");
        match value {
            Value::Null => {
                target.remove(field);
            }
            Value::Object(patch) => {
                let slot = object_mut(target.entry(field).or_insert(Value::Null));
                merge_objects(resource, &path, slot, patch);
            }
            Value::Array(patch) => {
                let slot = target.entry(field).or_insert(Value::Null);
                merge_lists(resource, &path, slot, patch);
            }
            plain => {
                target.insert(field.clone(), plain.clone());
            }
        }
    }
    for (field, order) in patch {
        if let (Some(list), Some(order)) = (field.strip_prefix("$setElementOrder/"), order.as_array())
            && let Some(values) = target.get_mut(list).and_then(Value::as_array_mut)
        {
            let key = merge_key(resource, &format!("{path}.{list}"));
            values.sort_by_key(|value| position(order, value, key));
        }
    }
}

fn merge_lists(resource: Resource, path: &str, target: &mut Value, patch: &[Value]) {
    let replace = patch.iter().any(|element| element["$patch"] == "replace");
    let (key, Value::Array(values), false) = (merge_key(resource, path), &mut *target, replace) else {
        *target = patch.iter().filter(|element| element.get("$patch").is_none()).cloned().collect();
        return;
    };
    for element in patch {
        match (key, element) {
            (Some(key), Value::Object(fields)) => {
                let same = values.iter().position(|value| value[key] == element[key]);
                if element["$patch"] == "delete" {
                    values.retain(|value| value[key] != element[key]);
                } else if let Some(value) = same.and_then(|i| values.get_mut(i)) {
                    merge_objects(resource, path, object_mut(value), fields);
                } else {
                    values.push(element.clone());
                }
            }
            _ if merges_values(path) => {
                if !values.contains(element) {
                    values.push(element.clone());
                }
            }
            _ => {
                *values = patch.to_vec();
                return;
            }
        }
    }
    if patch.is_empty() && key.is_none() && !merges_values(path) {
        values.clear();
    }
}

/// The position of an element in the order; elements that it does not contain go last.
fn position(order: &[Value], element: &Value, key: Option<&str>) -> usize {
    let same = |other: &Value| match key {
        Some(key) => other[key] == element[key],
        None => other == element,
    };
    order.iter().position(same).unwrap_or(order.len())
}

fn own((field, value): (&String, &Value)) -> (String, Value) {
    (field.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(kind: PatchKind, patch: Value) -> Value {
        let mut object = json!({
            "metadata": { "labels": { "a": "1", "b": "2" }, "finalizers": ["x"] },
            "spec": {
                "ports": [{ "port": 80, "name": "http" }, { "port": 443, "name": "https" }],
                "externalIPs": ["192.0.2.1"],
            },
        });
        apply(Resource::Services, &mut object, kind, &patch).unwrap();
        object
    }

    #[test]
    fn a_strategic_merge_merges_service_ports_by_port() {
        let patch = json!({ "spec": { "ports": [{ "port": 80, "nodePort": 30000 }, { "port": 8080, "name": "alt" }] } });
        assert_eq!(
            patched(PatchKind::Strategic, patch)["spec"]["ports"],
            json!([
                { "port": 80, "name": "http", "nodePort": 30000 },
                { "port": 443, "name": "https" },
                { "port": 8080, "name": "alt" },
            ])
        );
    }

    #[test]
    fn a_strategic_merge_obeys_its_directives() {
        let patch = json!({
            "metadata": { "$deleteFromPrimitiveList/finalizers": ["x"], "finalizers": ["y"],
                          "labels": { "a": null, "c": "3" } },
            "spec": {
                "$setElementOrder/ports": [{ "port": 8080 }, { "port": 80 }],
                "ports": [{ "port": 443, "$patch": "delete" }, { "port": 8080 }],
                "externalIPs": ["192.0.2.2"],
            },
        });
        let object = patched(PatchKind::Strategic, patch);
        assert_eq!(object["metadata"], json!({ "labels": { "b": "2", "c": "3" }, "finalizers": ["y"] }));
        assert_eq!(object["spec"]["ports"], json!([{ "port": 8080 }, { "port": 80, "name": "http" }]));
        assert_eq!(object["spec"]["externalIPs"], json!(["192.0.2.2"]));
        let patch = json!({ "spec": { "ports": [{ "$patch": "replace" }, { "port": 1 }], "$retainKeys": ["ports"] } });
        assert_eq!(patched(PatchKind::Strategic, patch)["spec"], json!({ "ports": [{ "port": 1 }] }));
        let patch = json!({ "metadata": { "labels": { "$patch": "replace", "z": "1" } } });
        assert_eq!(patched(PatchKind::Strategic, patch)["metadata"]["labels"], json!({ "z": "1" }));
    }

    #[test]
    fn a_merge_patch_replaces_lists() {
        let object =
            patched(PatchKind::Merge, json!({ "spec": { "ports": [{ "port": 1 }], "externalIPs": null } }));
        assert_eq!(object["spec"], json!({ "ports": [{ "port": 1 }] }));
    }

    #[test]
    fn a_json_patch_does_what_it_says_or_nothing() {
        let patch = json!([{ "op": "replace", "path": "/spec/ports/0/port", "value": 81 }]);
        assert_eq!(patched(PatchKind::Json, patch)["spec"]["ports"][0]["port"], 81);
        let mut object = json!({});
        let code = |object: &mut Value, patch| {
            apply(Resource::Services, object, PatchKind::Json, &patch).unwrap_err().code
        };
        assert_eq!(code(&mut object, json!([{ "op": "remove", "path": "/a" }])), 422);
        assert_eq!(code(&mut object, json!({ "op": "remove" })), 400);
        let merge = apply(Resource::Services, &mut object, PatchKind::Merge, &json!(7));
        assert_eq!(merge.unwrap_err().code, 400);
    }
}
