//! Writes the settings in effect as a `KubeProxyConfiguration`: for `--write-config-to` and `/configz`.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Effective;
use super::table::{Kind, Meaning, OWN, OWN_TABLE, TABLE};
use crate::listen::{BindAddress, Place};

/// Writes the settings as YAML.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(effective: &Effective, path: &Path) -> Result<()> {
    let Value::Object(document) = document(effective) else { return Ok(()) };
    let mut text = String::new();
    yaml(&document, 0, &mut text);
    fs::write(path, text).with_context(|| format!("cannot write the configuration to {}", path.display()))
}

/// The answer of `/configz`.
pub(crate) fn configz(effective: &Effective) -> String {
    json!({ "kubeproxy.config.k8s.io": document(effective) }).to_string()
}

/// All settings that have a value. Those without one would be `null` in kube-proxy's form.
fn document(effective: &Effective) -> Value {
    let mut document = Map::new();
    document.insert("apiVersion".to_owned(), "kubeproxy.config.k8s.io/v1alpha1".into());
    document.insert("kind".to_owned(), "KubeProxyConfiguration".into());
    let ports = [
        ("healthzBindAddress", ["healthz-bind-address", "healthz-port"], effective.ports.healthz),
        ("metricsBindAddress", ["metrics-bind-address", "metrics-port"], effective.ports.metrics),
    ];
    for (field, flags, place) in ports {
        // A port that is closed only by default is left out: on a node, it is open by default.
        if place.is_some() || flags.iter().any(|flag| effective.flags.contains_key(*flag)) {
            put(&mut document, field, address(place).into());
        }
    }
    let is_port = |flag: &&String| ports.iter().any(|(_, flags, _)| flags.contains(&flag.as_str()));
    for (flag, values) in effective.flags.iter().filter(|(flag, _)| !is_port(flag)) {
        let own = OWN_TABLE
            .iter()
            .find(|own| own.flag == flag)
            .map(|own| (format!("{OWN}.{}", own.field), own.kind));
        let is_it = |row: &&super::table::Row| {
            !row.field.is_empty() && matches!(row.meaning, Meaning::As(as_flag) if as_flag == flag)
        };
        let theirs = TABLE.iter().find(is_it).map(|row| (row.field.to_owned(), row.kind));
        if let Some((field, kind)) = own.or(theirs) {
            put(&mut document, &field, typed(kind, values));
        }
    }
    Value::Object(document)
}

/// An address in a document's form: "" is the default there, so "0" stands for nowhere.
fn address(place: Option<Place>) -> String {
    match place {
        None => BindAddress::Nowhere.to_string(),
        Some(Place::At(address)) => address.to_string(),
        Some(Place::Everywhere(port)) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).to_string(),
    }
}

fn typed(kind: Kind, values: &[String]) -> Value {
    let first = values.first().map(String::as_str).unwrap_or_default();
    match kind {
        Kind::Bool => crate::values::boolean(first).map_or(Value::Null, Value::from),
        Kind::Int => first.parse::<i64>().map_or(Value::Null, Value::from),
        Kind::Numbers => values
            .iter()
            .flat_map(|value| value.split(','))
            .filter_map(|value| value.parse::<i64>().ok())
            .collect(),
        Kind::Texts => values.iter().filter(|value| !value.is_empty()).cloned().collect(),
        // Seconds without a unit are our own form.
        Kind::Duration => {
            Value::from(first.parse::<u64>().map_or_else(|_| first.to_owned(), |s| format!("{s}s")))
        }
        _ => Value::from(values.join(",")),
    }
}

fn put(object: &mut Map<String, Value>, field: &str, value: Value) {
    match field.split_once('.') {
        None => {
            object.insert(field.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = object.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Maps with one entry per line; everything else is JSON, which is YAML.
fn yaml(object: &Map<String, Value>, depth: usize, text: &mut String) {
    for (name, value) in object {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(inner) => {
                let _ = writeln!(text, "{indent}{name}:");
                yaml(inner, depth + 1, text);
            }
            other => {
                let _ = writeln!(text, "{indent}{name}: {other}");
            }
        }
    }
}
