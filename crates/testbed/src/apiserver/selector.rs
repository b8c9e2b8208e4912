//! Label and field selectors of lists and watches.

use serde_json::Value;

use super::object::{Object, text};
use super::resource::Resource;
use super::status::Status;

/// The part of a resource that a request selects.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// `None` means all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Scope {
    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| text(object.metadata(), "/namespace") == namespace)
            && self.labels.matches(&object.metadata()["labels"])
            && self.fields.matches(object.value())
    }

    /// Whether selectors restrict the scope further than the namespace does.
    pub(crate) fn is_selective(&self) -> bool {
        !self.labels.0.is_empty() || !self.fields.0.is_empty()
    }
}

/// A label selector; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Objects without the label match too.
    NotIn(Vec<String>),
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        split_outside_parentheses(text)
            .filter(|part| !part.is_empty())
            .map(|part| {
                Requirement::parse(part).ok_or_else(|| {
                    Status::bad_request(format!("unable to parse requirement: {part:?} is not one"))
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.get(&requirement.key).and_then(Value::as_str);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
                Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            }
        })
    }
}

impl Requirement {
    fn parse(part: &str) -> Option<Self> {
        let requirement = |key: &str, test| {
            let key = key.trim();
            is_label_key(key).then(|| Self { key: key.to_owned(), test })
        };
        let one = |value: &str| vec![value.trim().to_owned()];
        if let Some((key, values)) = part.split_once('(') {
            let values = values.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned()).collect();
            let (key, operator) = key.trim().rsplit_once(char::is_whitespace)?;
            return match operator {
                "in" => requirement(key, Test::In(values)),
                "notin" => requirement(key, Test::NotIn(values)),
                _ => None,
            };
        }
        if let Some((key, value)) = part.split_once("!=") {
            requirement(key, Test::NotIn(one(value)))
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            requirement(key, Test::In(one(value)))
        } else if let Some(key) = part.strip_prefix('!') {
            requirement(key, Test::Absent)
        } else {
            requirement(part, Test::Exists)
        }
    }
}

fn is_label_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

/// Splits at commas, except within parentheses.
fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
}

/// A field selector; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<FieldTest>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTest {
    pointer: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Parses `metadata.name=a,spec.clusterIP!=None`. Each resource supports only a few fields.
    pub(crate) fn parse(resource: Resource, fields: &[&str], text: &str) -> Result<Self, Status> {
        let mut tests = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, value, true)
            } else {
                return Err(Status::bad_request(format!(
                    "invalid selector: {part:?}; can't understand {part:?}"
                )));
            };
            let known = field == "metadata.name"
                || (field == "metadata.namespace" && resource.is_namespaced())
                || fields.contains(&field);
            if !known {
                return Err(Status::bad_request(format!("field label not supported: {field}")));
            }
            let pointer = format!("/{}", field.replace('.', "/"));
            tests.push(FieldTest { pointer, value: value.to_owned(), equal });
        }
        Ok(Self(tests))
    }

    fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|test| {
            let value = match object.pointer(&test.pointer) {
                Some(Value::Bool(true)) => "true",
                Some(Value::String(text)) => text,
                // An unset field compares as its zero value.
                _ if test.pointer == "/spec/unschedulable" => "false",
                _ => "",
            };
            (value == test.value) == test.equal
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_match_as_the_api_says() {
        let labels = json!({ "app": "web", "tier": "front", "a.example/b": "" });
        let matches = |text: &str| LabelSelector::parse(text).unwrap().matches(&labels);
        for yes in [
            "",
            "app",
            "!gone",
            "app=web",
            "app==web",
            "gone!=x",
            "app in (api, web),tier",
            "gone notin (a)",
            "a.example/b=",
            "tier notin (back),!service.kubernetes.io/headless",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in
            ["gone", "!app", "app=api", "app!=web", "app in (api)", "app notin (web)", "gone=", "app,gone"]
        {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_label_selector_is_a_bad_request() {
        for text in ["app in web", "app of (web)", "in (web)", "=x", "!", "a b", "app in (web"] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().code, 400, "{text}");
        }
    }

    #[test]
    fn field_selectors_match_the_fields_that_a_resource_has() {
        let service =
            json!({ "metadata": { "name": "a", "namespace": "default" }, "spec": { "clusterIP": "None" } });
        let parse = |of: Resource, text: &str| FieldSelector::parse(of, of.info().fields, text);
        let matches = |text: &str| parse(Resource::Services, text).unwrap().matches(&service);
        assert!(matches(
            "metadata.name=a,metadata.namespace==default,spec.clusterIP=None,spec.type!=NodePort"
        ));
        assert!(!matches("spec.clusterIP!=None"));
        let error = parse(Resource::EndpointSlices, "spec.clusterIP!=None").unwrap_err();
        assert_eq!((error.code, &*error.message), (400, "field label not supported: spec.clusterIP"));
        assert!(parse(Resource::Nodes, "metadata.namespace=a").is_err());
        assert!(parse(Resource::Nodes, "metadata.name").is_err());
        let node = json!({ "metadata": { "name": "a" } });
        let nodes = |text: &str| parse(Resource::Nodes, text).unwrap().matches(&node);
        assert!(nodes("spec.unschedulable=false") && !nodes("spec.unschedulable=true"));
    }
}
