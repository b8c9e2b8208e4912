//! A stored object: its value, and its JSON, which all lists, gets and watches send.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::resource::Resource;

/// The name of an object within its resource. Cluster-wide objects have the namespace "".
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// An object at one revision. It never changes: a write creates a new one.
#[derive(Debug)]
pub(crate) struct Object {
    resource: Resource,
    revision: u64,
    /// Without `apiVersion` and `kind`, which items of a typed list do not have.
    value: Value,
    json: Bytes,
}

impl Object {
    /// An object at this revision. `value` has no `apiVersion` and no `kind`.
    pub(crate) fn new(resource: Resource, mut value: Value, revision: u64) -> Arc<Self> {
        metadata_mut(&mut value).insert("resourceVersion".to_owned(), revision.to_string().into());
        let json = Bytes::from(value.to_string());
        Arc::new(Self { resource, revision, value, json })
    }

    /// The same object at another revision: what a watch sends for a deleted object.
    pub(crate) fn at(&self, revision: u64) -> Arc<Self> {
        Self::new(self.resource, self.value.clone(), revision)
    }

    pub(crate) fn resource(&self) -> Resource {
        self.resource
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The value without `apiVersion` and `kind`.
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    /// The value with `apiVersion` and `kind`.
    pub(crate) fn full_value(&self) -> Value {
        let mut value = self.value.clone();
        value["apiVersion"] = self.resource.api_version().into();
        value["kind"] = self.resource.kind().into();
        value
    }

    /// The item of a list: without `apiVersion` and `kind`.
    pub(crate) fn item_json(&self) -> &[u8] {
        &self.json
    }

    /// Appends the whole object, with `apiVersion` and `kind`.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(type_meta(self.resource, self.resource.kind()).as_bytes());
        out.push(b',');
        out.extend_from_slice(self.json.get(1..).unwrap_or_default());
    }

    pub(crate) fn metadata(&self) -> &Value {
        &self.value["metadata"]
    }

    pub(crate) fn key(&self) -> Key {
        key_of(&self.value)
    }

    pub(crate) fn uid(&self) -> &str {
        text(&self.value, "/metadata/uid")
    }
}

/// `{"apiVersion":"…","kind":"…"`, the beginning of every object and list.
pub(crate) fn type_meta(resource: Resource, kind: &str) -> String {
    let api_version = resource.api_version();
    format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}""#)
}

/// The key of an object, according to its metadata.
pub(crate) fn key_of(value: &Value) -> Key {
    Key::new(text(value, "/metadata/namespace"), text(value, "/metadata/name"))
}

/// The string at a JSON pointer; "" if there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer; empty if there is none.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The strings of a list at a JSON pointer.
pub(crate) fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(value, pointer).iter().filter_map(Value::as_str).collect()
}

/// The metadata, which becomes an object if it is not one.
pub(crate) fn metadata_mut(value: &mut Value) -> &mut Map<String, Value> {
    object_mut(object_mut(value).entry("metadata").or_insert(Value::Null))
}

/// The value as an object, which it becomes if it is not one.
pub(crate) fn object_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was just made one"),
    }
}

/// Removes `apiVersion` and `kind`.
pub(crate) fn strip_type_meta(value: &mut Value) {
    let object = object_mut(value);
    object.remove("apiVersion");
    object.remove("kind");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_have_no_type_and_whole_objects_do() {
        let object = Object::new(Resource::Services, json!({ "metadata": { "name": "a" }, "spec": {} }), 7);
        let item: Value = serde_json::from_slice(object.item_json()).unwrap();
        assert_eq!(item, json!({ "metadata": { "name": "a", "resourceVersion": "7" }, "spec": {} }));
        let mut whole = Vec::new();
        object.write_json(&mut whole);
        assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap(), object.full_value());
        assert_eq!(object.full_value()["kind"], "Service");
        assert_eq!(object.at(9).metadata()["resourceVersion"], "9");
    }
}
