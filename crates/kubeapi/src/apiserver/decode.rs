//! Decodes bytes of the API to the model: pages of lists, events of watches, single objects. Pure.
//!
//! Each object is decoded separately and converted at once. So a broken one affects no other, and there is never
//! a second copy of the cluster.

use serde::Deserialize;
use serde_json::value::RawValue;
use sluice_model::{Object, ObjectRef};

use super::resource::Resource;
use crate::api::{self, Identity, IdentityMeta, Read, lenient};
use crate::convert::{self, Converted, Problem, Skip};

/// The maximum size of an object; larger ones are not read. An apiserver accepts requests of up to 3 MiB, and
/// etcd stores half of that.
pub(super) const MAX_OBJECT_BYTES: usize = 4 << 20;

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    /// Null is an empty list. A page without this field is no list.
    #[serde(borrow, deserialize_with = "Option::deserialize")]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// The metadata of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListMeta {
    /// The version from which a watch continues.
    #[serde(rename = "resourceVersion", default)]
    pub(super) version: String,
    /// The token for the next page; empty on the last one.
    #[serde(rename = "continue", default)]
    pub(super) next: String,
}

/// One event of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: EventKind,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum EventKind {
    #[serde(rename = "ADDED", alias = "MODIFIED")]
    Applied,
    #[serde(rename = "DELETED")]
    Deleted,
    #[serde(rename = "BOOKMARK")]
    Bookmark,
    #[serde(rename = "ERROR")]
    Error,
    #[serde(other)]
    Unknown,
}

/// The error of the API.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StatusDetails {
    #[serde(rename = "retryAfterSeconds", default)]
    pub(super) retry_after: Option<u32>,
    #[serde(default)]
    causes: Option<Vec<StatusCause>>,
}

#[derive(Debug, Default, Deserialize)]
struct StatusCause {
    #[serde(default)]
    reason: String,
}

impl Status {
    /// Whether the namespace is terminating and accepts no new objects (admission's `NamespaceLifecycle`).
    pub(super) fn is_of_terminating_namespace(&self) -> bool {
        let causes = self.details.iter().filter_map(|details| details.causes.as_ref()).flatten();
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    }
}

/// The readable parts of an object.
#[derive(Debug)]
pub(super) struct Decoded {
    /// `None` if not even its name could be read.
    pub(super) reference: Option<ObjectRef>,
    /// Its `resourceVersion`.
    pub(super) version: Option<String>,
    pub(super) meaning: Meaning,
}

/// The meaning of an object for a proxy.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one, and none lives long")]
pub(super) enum Meaning {
    /// It counts, except for these elements.
    Counts(Object, Vec<Problem>),
    /// It is well-formed, but not for a proxy to serve: counts as gone.
    Ignored(Skip),
    /// It cannot be understood. Its previous state stays.
    Broken(String),
}

/// Reads one object.
pub(super) fn object(resource: Resource, json: &str) -> Decoded {
    let decoded = if json.len() > MAX_OBJECT_BYTES {
        Err(format!("{} bytes, more than any apiserver accepts", json.len()))
    } else {
        match resource {
            Resource::Services => typed(resource, json, convert::service),
            Resource::EndpointSlices => typed(resource, json, convert::slice),
            Resource::Node => typed(resource, json, convert::node),
            Resource::ServiceCidrs => typed(resource, json, convert::service_cidr),
            Resource::Pods => typed(resource, json, convert::pod),
            Resource::Namespaces => typed(resource, json, convert::namespace),
        }
    };
    decoded.unwrap_or_else(|why| {
        let IdentityMeta { namespace, name, version } = identity(json).metadata;
        Decoded {
            reference: reference(resource, namespace.as_deref(), name.as_deref()),
            version,
            meaning: Meaning::Broken(why),
        }
    })
}

/// The name and version of an object, whatever else it contains; empty if the text is no object.
pub(super) fn identity(json: &str) -> Identity {
    if json.len() > MAX_OBJECT_BYTES {
        return serde_json::from_str(json).unwrap_or_default();
    }
    lenient::decode(json).map(|(identity, _)| identity).unwrap_or_default()
}

fn typed<K, T>(resource: Resource, json: &str, convert: fn(&K) -> Converted<T>) -> Result<Decoded, String>
where
    K: Default + for<'de> Read<'de> + api::Object,
    T: Into<Object>,
{
    let (object, left_out) = lenient::decode::<K>(json)?;
    let Converted { result, problems } = convert(&object);
    let metadata = object.metadata();
    Ok(Decoded {
        reference: reference(resource, metadata.namespace.as_deref(), metadata.name.as_deref()),
        version: metadata.resource_version.clone(),
        meaning: meaning(result.map(Into::into), problems, left_out),
    })
}

/// `left_out`: values that had the wrong type and were treated as absent.
fn meaning(result: Result<Object, Skip>, mut problems: Vec<Problem>, left_out: Vec<Problem>) -> Meaning {
    // A value that was left out is necessarily missing: that is not worth a problem of its own.
    problems.retain(|problem| left_out.iter().all(|left_out| !problem.field.starts_with(&left_out.field)));
    let is_whole = left_out.is_empty();
    problems.splice(0..0, left_out);
    match result {
        Ok(object) => Meaning::Counts(object, problems),
        // An unreadable address is not a removed one.
        Err(skip) if skip == Skip::Broken || (skip == Skip::NoClusterIp && !is_whole) => {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Meaning::Broken(problems.join("; "))
        }
        Err(skip) => Meaning::Ignored(skip),
    }
}

fn reference(resource: Resource, namespace: Option<&str>, name: Option<&str>) -> Option<ObjectRef> {
    name.filter(|name| !name.is_empty()).map(|name| resource.reference(namespace, name))
}

#[cfg(test)]
mod any_field;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Decoded {
        let metadata = json!({ "name": "a", "namespace": "b", "resourceVersion": "7" });
        object(Resource::Services, &json!({ "metadata": metadata, "spec": spec }).to_string())
    }

    #[test]
    fn an_object_counts_is_ignored_or_broken_and_has_its_name_in_every_case() {
        let cluster_ip = json!({ "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }], "unknown": [1] });
        let counts = service(cluster_ip);
        assert!(matches!(&counts.meaning, Meaning::Counts(_, problems) if problems.is_empty()));
        let ignored = service(json!({ "type": "ExternalName" }));
        assert!(matches!(ignored.meaning, Meaning::Ignored(Skip::ExternalName)));
        let broken = service(json!({ "clusterIP": "10.0.0.1", "ports": "many" }));
        assert!(matches!(&broken.meaning, Meaning::Broken(why) if why.contains("many")), "{broken:?}");
        for decoded in [counts, ignored, broken] {
            assert_eq!(decoded.reference.unwrap().to_string(), "Service b/a");
            assert_eq!(decoded.version.unwrap(), "7");
        }
    }

    #[test]
    fn an_absurdly_large_object_is_broken() {
        let annotations = json!({ "a": "x".repeat(MAX_OBJECT_BYTES) });
        let json = json!({ "metadata": { "name": "n", "annotations": annotations } }).to_string();
        let decoded = object(Resource::Node, &json);
        assert!(matches!(decoded.meaning, Meaning::Broken(_)));
        assert_eq!(decoded.reference, Some(ObjectRef::Node("n".into())));
    }

    #[test]
    fn what_is_no_object_at_all_has_no_name() {
        for json in ["1", "null", "[]", r#"{"metadata": 3}"#, r#"{"metadata": {"name": {}}}"#] {
            for resource in Resource::ALL {
                let decoded = object(resource, json);
                assert!(decoded.reference.is_none(), "{json}");
                assert!(matches!(decoded.meaning, Meaning::Broken(_) | Meaning::Ignored(_)), "{json}");
            }
        }
    }

    #[test]
    fn one_bad_item_does_not_spoil_a_page() {
        let page = r#"{"metadata": {"resourceVersion": "5"}, "items": [{"metadata": {}}, 7, null]}"#;
        let page: Page<'_> = serde_json::from_str(page).unwrap();
        assert_eq!((page.metadata.version.as_str(), page.metadata.next.as_str()), ("5", ""));
        assert_eq!(page.items.unwrap().len(), 3);
        let empty: Page<'_> =
            serde_json::from_str(r#"{"metadata": {"resourceVersion": "5"}, "items": null}"#).unwrap();
        assert!(empty.items.is_none());
        // A single object: a proxy in between may return one.
        serde_json::from_str::<Page<'_>>(r#"{"metadata": {"resourceVersion": "5"}}"#).unwrap_err();
    }

    #[test]
    fn kinds_of_events() {
        let kind = |text: &str| {
            let json = format!(r#"{{"type": "{text}", "object": {{}}}}"#);
            serde_json::from_str::<Event<'_>>(&json).unwrap().kind
        };
        assert_eq!(kind("ADDED"), EventKind::Applied);
        assert_eq!(kind("MODIFIED"), EventKind::Applied);
        assert_eq!(kind("DELETED"), EventKind::Deleted);
        assert_eq!(kind("BOOKMARK"), EventKind::Bookmark);
        assert_eq!(kind("ERROR"), EventKind::Error);
        assert_eq!(kind("LATER"), EventKind::Unknown);
    }
}
