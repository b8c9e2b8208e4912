//! Sets every field of every kind to null, to nothing, and to each other type, and decodes the object in all
//! ways: a field that no rule reads must have no effect, and one that a rule reads only its documented effect.

mod kinds;

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use sluice_model::{Change, Object};

use super::super::resource::Resource;
use super::{Decoded, Event, Meaning, Page, object};
use crate::manifests::load_text;

/// A kind: an object with all of its fields, and the fields that rules read.
struct Kind {
    resource: Resource,
    full: Value,
    /// The fields that rules read, with `[*]` for any index; and the parts of the model that depend on them.
    read: &'static [(&'static str, &'static [Part])],
    /// Fields without which, or with wrong values, the whole object keeps its previous state.
    vital: &'static [&'static str],
    /// Whether it can be in a file, too.
    is_in_files: bool,
}

/// A part of the model that depends on a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Name,
    Created,
    Annotations,
    Addresses,
    SourceRanges,
    InternalPolicy,
    ExternalPolicy,
    Affinity,
    HealthCheck,
    Ports,
    Endpoints,
    Zone,
    PodCidrs,
    Eligible,
    AtSockets,
}

/// A step into a value.
#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Index(usize),
}

/// The paths to all parts of a value.
fn paths(value: &Value, here: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
    let steps: Vec<Step> = match value {
        Value::Object(object) => object.keys().cloned().map(Step::Key).collect(),
        Value::Array(list) => (0..list.len()).map(Step::Index).collect(),
        _ => return,
    };
    for step in steps {
        here.push(step);
        found.push(here.clone());
        paths(at(&mut value.clone(), here.get(here.len() - 1..).unwrap()), here, found);
        here.pop();
    }
}

fn at<'a>(value: &'a mut Value, path: &[Step]) -> &'a mut Value {
    path.iter().fold(value, |value, step| match step {
        Step::Key(key) => &mut value[key],
        Step::Index(index) => &mut value[*index],
    })
}

/// The notation of the lists above, with the index or with `[*]`.
fn text(path: &[Step], any: bool) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if key.contains(['.', '/']) => write!(text, "[{key}]"),
            Step::Key(key) if text.is_empty() => write!(text, "{key}"),
            Step::Key(key) => write!(text, ".{key}"),
            Step::Index(_) if any => write!(text, "[*]"),
            Step::Index(index) => write!(text, "[{index}]"),
        }
        .unwrap();
    }
    text
}

/// The replacements of a value; `None` removes it.
fn replacements(value: &Value) -> Vec<Option<Value>> {
    let others = [
        json!(true),
        json!(7),
        json!(-1.5),
        json!("text"),
        json!([]),
        json!([7]),
        json!({}),
        json!({"a": 1}),
    ];
    let kind = std::mem::discriminant(value);
    let others = others.into_iter().filter(|other| std::mem::discriminant(other) != kind);
    [None, Some(Value::Null)].into_iter().chain(others.map(Some)).collect()
}

fn replace(full: &Value, path: &[Step], with: Option<Value>) -> Option<Value> {
    let mut value = full.clone();
    let (last, parent) = path.split_last().unwrap();
    match (at(&mut value, parent), last, with) {
        (Value::Object(object), Step::Key(key), None) => drop(object.remove(key)),
        (Value::Object(object), Step::Key(key), Some(with)) => drop(object.insert(key.clone(), with)),
        (Value::Array(list), Step::Index(index), Some(with)) => list[*index] = with,
        // A list without an element is a different list, but not a wrong one.
        _ => return None,
    }
    Some(value)
}

impl Kind {
    /// The parts that depend on a field; `None` if no rule reads it or anything inside it.
    fn parts(&self, path: &[Step]) -> Option<Vec<Part>> {
        let path = text(path, true);
        let within = |whole: &str, part: &str| {
            whole.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let read: Vec<_> =
            self.read.iter().filter(|(read, _)| within(read, &path) || within(&path, read)).collect();
        (!read.is_empty()).then(|| read.iter().flat_map(|(_, parts)| *parts).copied().collect())
    }

    /// Decodes by list and by watch; the results must be equal.
    fn decode(&self, value: &Value) -> Decoded {
        let page = json!({ "metadata": { "resourceVersion": "1" }, "items": [value] }).to_string();
        let page: Page<'_> = serde_json::from_str(&page).unwrap();
        let listed = object(self.resource, page.items.unwrap()[0].get());
        let event = json!({ "type": "MODIFIED", "object": value }).to_string();
        let event: Event<'_> = serde_json::from_str(&event).unwrap();
        let watched = object(self.resource, event.object.get());
        assert_eq!(format!("{listed:?}"), format!("{watched:?}"));
        watched
    }

    fn served(&self, value: &Value) -> Object {
        match self.decode(value).meaning {
            Meaning::Counts(object, problems) => {
                assert_eq!(problems, [], "{value}");
                object
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The object without the parts that may differ.
fn without(object: &Object, parts: &[Part]) -> Object {
    let mut object = object.clone();
    for part in parts {
        match (&mut object, part) {
            (Object::Service(it), Part::Name) => it.name.namespace = "".into(),
            (Object::Service(it), Part::Created) => it.created = 0,
            (Object::Service(it), Part::Annotations) => it.annotations.clear(),
            (Object::Service(it), Part::Addresses) => {
                it.cluster_ips.clear();
                it.external_ips.clear();
                it.load_balancer_ips.clear();
            }
            (Object::Service(it), Part::SourceRanges) => it.source_ranges = None,
            (Object::Service(it), Part::InternalPolicy) => it.internal_policy = Default::default(),
            (Object::Service(it), Part::ExternalPolicy) => it.external_policy = Default::default(),
            (Object::Service(it), Part::Affinity) => it.affinity = None,
            (Object::Service(it), Part::HealthCheck) => it.health_check_node_port = None,
            (Object::Service(it), Part::Ports) => it.ports.clear(),
            (Object::EndpointSlice(it), Part::Name) => {
                it.name.namespace = "".into();
                it.service.namespace = "".into();
            }
            (Object::EndpointSlice(it), Part::Ports) => it.ports.clear(),
            (Object::EndpointSlice(it), Part::Endpoints) => it.endpoints.clear(),
            (Object::Node(it), Part::Addresses) => it.addresses.clear(),
            (Object::Node(it), Part::PodCidrs) => it.pod_cidrs.clear(),
            (Object::Node(it), Part::Eligible) => it.eligible = false,
            (Object::Node(it), Part::Zone) => it.zone = None,
            (Object::ServiceCidr(it), Part::Addresses) => it.cidrs.clear(),
            (Object::Pod(it), Part::Name) => it.name.namespace = "".into(),
            (Object::Pod(it), Part::Addresses) => it.addresses.clear(),
            (Object::Pod(it), Part::AtSockets) => it.at_sockets = None,
            (Object::Namespace(it), Part::AtSockets) => it.at_sockets = None,
            (_, Part::Name) => {}
            other => panic!("{other:?}"),
        }
    }
    object
}

/// Asserts that a wrong element of a list does not affect the others.
fn assert_others_are_there(path: &[Step], before: &Object, after: &Object, context: &str) {
    let Some(index) = path.iter().find_map(|step| match step {
        Step::Index(index) => Some(*index),
        Step::Key(_) => None,
    }) else {
        return;
    };
    let key = text(&path[..1], true);
    let list = match path.get(1) {
        Some(Step::Key(second)) => format!("{key}.{second}"),
        _ => key,
    };
    match (before, after, list.as_str()) {
        (Object::Service(before), Object::Service(after), "spec.ports") => {
            assert!(after.ports.contains(&before.ports[1 - index]), "{context}");
        }
        (Object::EndpointSlice(before), Object::EndpointSlice(after), "ports") => {
            assert!(after.ports.contains(&before.ports[1 - index]), "{context}");
        }
        (Object::EndpointSlice(before), Object::EndpointSlice(after), "endpoints") => {
            assert!(after.endpoints.contains(&before.endpoints[1 - index]), "{context}");
        }
        _ => {}
    }
}

/// The object in a manifest, and the reports about it.
fn manifest(name: &str, text: &str) -> (Option<Object>, Vec<String>) {
    let batch = load_text(Path::new(name), text.as_bytes());
    let object = batch.changes.into_iter().find_map(|change| match change {
        Change::Apply(object) => Some(object),
        Change::Delete(_) => None,
    });
    (object, batch.reports.iter().map(ToString::to_string).collect())
}

#[test]
fn no_field_costs_more_than_what_it_says() {
    let mut cases = 0;
    for kind in kinds::all() {
        let whole = kind.served(&kind.full);
        let mut all = Vec::new();
        paths(&kind.full, &mut Vec::new(), &mut all);
        for path in all {
            let original = at(&mut kind.full.clone(), &path).clone();
            for with in replacements(&original) {
                let context = format!("{} = {with:?}", text(&path, false));
                let is_typed = with.as_ref().is_some_and(|with| !with.is_null());
                let Some(value) = replace(&kind.full, &path, with) else { continue };
                cases += 1;
                let parts = kind.parts(&path);
                let decoded = kind.decode(&value);
                let object = match (&decoded.meaning, &parts) {
                    (Meaning::Counts(object, problems), None) => {
                        assert_eq!((object, &problems[..]), (&whole, &[][..]), "{context}");
                        Some(object)
                    }
                    (Meaning::Counts(object, _), Some(parts)) => {
                        assert_eq!(without(object, parts), without(&whole, parts), "{context}");
                        assert_others_are_there(&path, &whole, object, &context);
                        Some(object)
                    }
                    (other, _) => {
                        assert!(kind.vital.contains(&text(&path, false).as_str()), "{context}: {other:?}");
                        None
                    }
                };
                // A document in a file states its type, and a person is told about unreadable ones.
                let is_type =
                    matches!(path.first(), Some(Step::Key(key)) if key == "kind" || key == "apiVersion");
                if is_type || !kind.is_in_files {
                    continue;
                }
                let json = value.to_string();
                let yaml = format!("{},}}\n", json.strip_suffix('}').unwrap());
                for (name, text) in [("a.json", json.as_str()), ("a.yaml", yaml.as_str())] {
                    let (loaded, reports) = manifest(name, text);
                    match &parts {
                        None => assert_eq!(
                            (loaded.as_ref(), &reports[..]),
                            (Some(&whole), &[][..]),
                            "{name} {context}"
                        ),
                        Some(_) if is_typed => assert!(
                            !reports.is_empty() || loaded.is_some(),
                            "{name} {context}: lost without a word"
                        ),
                        Some(_) => assert_eq!(loaded.as_ref(), object, "{name} {context}: {reports:?}"),
                    }
                }
            }
        }
    }
    assert!(cases > 2000, "{cases}");
}
