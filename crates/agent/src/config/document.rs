//! Reads a `KubeProxyConfiguration`: YAML or JSON to settings, each with its line. Pure.
//!
//! It is stricter than kube-proxy, which falls back to lenient decoding: there, a misspelled field is a line in
//! the log and a setting without effect. Fields that older kube-proxies have written are known.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::table::{self, Kind, Meaning, OWN, OWN_TABLE, TABLE};
use super::value::{self, Words};

/// A value with its place.
type Node = Spanned<Value>;

/// Any YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

/// A field that is set in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// The path from the top: `conntrack.min`.
    pub path: String,
    pub line: u64,
    pub words: Words,
    pub kind: Kind,
    pub meaning: Meaning,
    /// Whether it is one of the agent's own.
    pub is_own: bool,
}

/// An error in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub line: u64,
    pub field: String,
    pub what: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// The contents of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// The fields that are set: not null and, for kube-proxy's, not zero.
    pub fields: Vec<Field>,
    /// Other contents of the file, each with its line.
    pub ignored: Vec<String>,
}

/// Reads the one document in a file that is a configuration. Empty documents, which separators may have made,
/// are ignored. So are all others, as in kube-proxy, which reads only the first.
///
/// # Errors
/// All errors.
pub(super) fn read(text: &str) -> Result<Document, Vec<Flaw>> {
    let documents: Vec<Node> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| {
            use serde_saphyr::MessageFormatter as _;
            let line = error.location().map_or(0, |location| location.line());
            let what = serde_saphyr::UserMessageFormatter.format_message(&error).into_owned();
            vec![Flaw { line, field: String::new(), what }]
        })?;
    let (mut ours, mut others): (Vec<Node>, Vec<Node>) =
        documents.into_iter().partition(|document| kind(document) == Some(KIND));
    // If there is only one document, errors are about that one.
    if ours.is_empty() && others.len() == 1 {
        ours.append(&mut others);
    }
    let flaw = |line, what| Err(vec![Flaw { line, field: String::new(), what }]);
    let root = match (ours.as_slice(), others.first()) {
        ([root], _) => root,
        ([], None) => return flaw(0, format!("nothing is to be a {KIND}")),
        ([], Some(first)) => {
            let what = format!("none of {} documents is a {KIND}", others.len());
            return flaw(first.referenced.line(), what);
        }
        ([_, second, ..], _) => {
            return flaw(second.referenced.line(), format!("a second {KIND}: leave one in the file"));
        }
    };
    let mut reader = Reader::default();
    match &root.value {
        Value::Map(map) if reader.is_config_map(map) => {}
        Value::Map(map) => {
            reader.check_type(map);
            reader.object("", map);
        }
        other => reader.flaw(root, "", format!("{} is to be a {KIND}", other.kind())),
    }
    if !reader.flaws.is_empty() {
        return Err(reader.flaws);
    }
    let named = |document: &Node| {
        let what = kind(document).unwrap_or_else(|| document.value.kind());
        format!("line {}: {what}", document.referenced.line())
    };
    Ok(Document { fields: reader.fields, ignored: others.iter().map(named).collect() })
}

/// The `kind` of an object.
fn kind(document: &Node) -> Option<&str> {
    let Value::Map(map) = &document.value else { return None };
    map.iter().find_map(|(key, node)| match &node.value {
        Value::Text(kind) if key.value == "kind" => Some(kind.as_str()),
        _ => None,
    })
}

#[derive(Debug, Default)]
struct Reader {
    fields: Vec<Field>,
    flaws: Vec<Flaw>,
}

impl Reader {
    fn flaw(&mut self, node: &Node, field: &str, what: String) {
        self.flaws.push(Flaw { line: node.referenced.line(), field: field.to_owned(), what });
    }

    /// Explains what to do with a whole ConfigMap, which contains a document.
    fn is_config_map(&mut self, map: &[(Spanned<String>, Node)]) -> bool {
        let kind = map.iter().find(|(key, _)| key.value == "kind").map(|(_, kind)| kind);
        let Some(kind) = kind.filter(|kind| kind.value == Value::Text("ConfigMap".to_owned())) else {
            return false;
        };
        let what = format!(
            "this is a ConfigMap: take the {KIND} out of its data, as kubectl --namespace kube-system get configmap \
             kube-proxy --output 'jsonpath={{.data.config\\.conf}}' does"
        );
        self.flaw(kind, "kind", what);
        true
    }

    /// Checks `apiVersion` and `kind` of the one document.
    fn check_type(&mut self, map: &[(Spanned<String>, Node)]) {
        for (name, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match map.iter().find(|(key, _)| key.value == name) {
                Some((_, node)) if node.value == Value::Text(wanted.to_owned()) => {}
                Some((_, node)) => self.flaw(node, name, format!("is to be {wanted}")),
                None => {
                    let what = format!("missing: write {name}: {wanted}");
                    self.flaws.push(Flaw { line: 1, field: name.to_owned(), what });
                }
            }
        }
    }

    fn object(&mut self, path: &str, map: &[(Spanned<String>, Node)]) {
        for (key, node) in map {
            let name = key.value.as_str();
            let at = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let own = at.strip_prefix(OWN).and_then(|at| at.strip_prefix('.'));
            if path.is_empty() && matches!(name, "apiVersion" | "kind") {
                continue;
            } else if let Some(own) = own.and_then(table::own_by_field) {
                self.field(&at, node, own.kind, Meaning::As(own.flag), true);
            } else if let Some(row) = table::by_field(&at) {
                self.field(&at, node, row.kind, row.meaning, false);
            } else if below(&at).next().is_some() {
                match &node.value {
                    Value::Null => {}
                    Value::Map(map) => self.object(&at, map),
                    other => self.flaw(node, &at, format!("{} is to be a map", other.kind())),
                }
            } else {
                // If a value begins below its key, the key's line counts.
                let line = match key.referenced.line() {
                    0 => node.referenced.line(),
                    line => line,
                };
                let what = match nearest(name, below(path)) {
                    Some(known) => format!("there is no such field; {known} is meant?"),
                    None => "there is no such field".to_owned(),
                };
                self.flaws.push(Flaw { line, field: at, what });
            }
        }
    }

    fn field(&mut self, path: &str, node: &Node, kind: Kind, meaning: Meaning, is_own: bool) {
        match value::read(kind, &node.value) {
            Err(what) => self.flaw(node, path, what),
            // Every value of the agent's own settings counts: false is not the default of all of them.
            Ok(words) if words.is_empty() || (!is_own && value::is_nothing(kind, &words)) => {}
            Ok(words) => {
                let line = node.referenced.line();
                self.fields.push(Field { path: path.to_owned(), line, words, kind, meaning, is_own });
            }
        }
    }
}

/// The names of fields in an object; `""` stands for the document.
fn below(path: &str) -> impl Iterator<Item = &'static str> {
    let of_kube_proxy = TABLE.iter().map(|row| row.field).filter(|field| !field.is_empty());
    let own = OWN_TABLE.iter().map(|own| own.field);
    let (is_top, is_own) = (path.is_empty(), path == OWN);
    let prefix = format!("{path}.");
    of_kube_proxy
        .filter_map(move |field| if is_top { Some(field) } else { field.strip_prefix(prefix.as_str()) })
        .filter_map(|rest| rest.split('.').next())
        .chain(own.filter(move |_| is_own))
        .chain(is_top.then_some(OWN))
}

/// The most similar name, if one is similar.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let distance = |known: &&str| edits(&name.to_lowercase(), &known.to_lowercase());
    let nearest = known.min_by_key(distance)?;
    (distance(&nearest) <= 1 + name.len() / 4).then_some(nearest)
}

/// How many letters have to be added, removed or changed (Levenshtein).
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// Limits of parsing: a configuration is small and plain, and separators may be anywhere.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000,
            max_nodes: 50_000,
            max_depth: 32,
            max_documents: 100,
            max_aliases: 100,
            max_anchors: 100,
        },
        with_snippet: false,
    }
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "a number",
            Self::Float(_) => "a fraction",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
                i64::try_from(value).map(Value::Int).map_err(E::custom)
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Value::Map(map))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}
