//! Reading JSON with values of the wrong type: those are left out, and the rest counts. Pure.
//!
//! Nearly all objects are read in one go. If that fails, the value in the way is removed, and the rest is read
//! again.

use std::fmt::Write;

use serde_json::Value;
use serde_path_to_error::Segment;

use super::{OrDefault, Read};
use crate::convert::Problem;

/// The maximum number of wrong values. An object with more of them keeps its previous state.
const MAX_LEFT_OUT: usize = 16;

/// Fields that may not be left out: an object with a wrong one keeps its previous state. Unreadable ports or
/// endpoints are not removed ones, unreadable source ranges do not open a Service to everybody, and an
/// unreadable namespace is not `default`.
const ESSENTIAL: [&str; 5] = ["namespace", "ports", "endpoints", "loadBalancerSourceRanges", "cidrs"];

/// Fields whose absence has a meaning: no protocol is TCP, no condition is ready, no mode is VIP. If one is
/// wrong, the whole element that contains it is left out.
const MEANINGFUL: [&str; 7] = ["name", "protocol", "conditions", "ready", "serving", "terminating", "ipMode"];

/// Reads an object. Returns it and the values that were left out.
///
/// # Errors
/// The object cannot be used.
pub(crate) fn decode<T: Default + for<'de> Read<'de>>(json: &str) -> Result<(T, Vec<Problem>), String> {
    let error = match serde_json::from_str(json) {
        Ok(OrDefault(object)) => return Ok((object, Vec::new())),
        Err(error) => error,
    };
    // Text that is not JSON has no parts.
    let mut value: Value = serde_json::from_str(json).map_err(|_| error.to_string())?;
    let mut left_out = Vec::new();
    loop {
        let mut track = serde_path_to_error::Track::new();
        let error = match T::read(serde_path_to_error::Deserializer::new(&value, &mut track)) {
            Ok(object) => return Ok((object, left_out)),
            Err(error) => error,
        };
        let path: Vec<Segment> = track.path().iter().cloned().collect();
        let part = part(&path);
        let is_vital = matches!(part, [.., Segment::Map { key }] if ESSENTIAL.contains(&key.as_str()));
        if is_vital || left_out.len() == MAX_LEFT_OUT || !remove(&mut value, part) {
            return Err(format!("{}: {error}", text(&path)));
        }
        let mend = "see `kubectl explain` for what belongs there".to_owned();
        left_out.push(Problem { field: text(part), what: error.to_string(), mend });
    }
}

/// The part to leave out if the value at a path is wrong: that value, or the element that contains it.
fn part(path: &[Segment]) -> &[Segment] {
    let is_meaningful = matches!(path, [.., Segment::Map { key }] if MEANINGFUL.contains(&key.as_str()));
    let element = path.iter().rposition(|segment| matches!(segment, Segment::Seq { .. }));
    element.filter(|_| is_meaningful).and_then(|element| path.get(..=element)).unwrap_or(path)
}

/// Removes a value; returns whether there was one. An element becomes null, so that the others keep their indexes.
fn remove(value: &mut Value, path: &[Segment]) -> bool {
    let Some((last, before)) = path.split_last() else { return false };
    let parent = before.iter().try_fold(value, |value, segment| match segment {
        Segment::Map { key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(index),
        _ => None,
    });
    match (parent, last) {
        (Some(Value::Object(object)), Segment::Map { key }) => object.remove(key).is_some(),
        (Some(Value::Array(list)), Segment::Seq { index }) => {
            list.get_mut(*index).is_some_and(|element| !element.take().is_null())
        }
        _ => false,
    }
}

/// The path in `kubectl`'s notation.
fn text(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        // Writing to a string does not fail.
        let _ = match segment {
            Segment::Map { key } if key.contains(['.', '/']) => write!(text, "[{key}]"),
            Segment::Map { key } if text.is_empty() => write!(text, "{key}"),
            Segment::Map { key } => write!(text, ".{key}"),
            other => write!(text, "{other}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{EndpointSlice, Service};

    fn fields(left_out: &[Problem]) -> Vec<&str> {
        left_out.iter().map(|problem| problem.field.as_str()).collect()
    }

    #[test]
    fn what_is_wrong_is_left_out_and_the_rest_counts() {
        let json = json!({
            "metadata": { "name": "a", "labels": 5, "annotations": { "sluice.dev/a": 1, "b": {} } },
            "spec": {
                "clusterIP": "10.0.0.1", "type": 1, "externalIPs": ["1.1.1.1", 2],
                "ports": [{ "port": 1, "nodePort": "x" }, 7, { "port": 2, "protocol": 6 }, { "port": 3 }],
            },
        });
        let (service, left_out) = decode::<Service>(&json.to_string()).unwrap();
        let mut wanted = vec![
            "metadata.labels",
            "metadata.annotations[sluice.dev/a]",
            "spec.type",
            "spec.externalIPs[1]",
            "spec.ports[0].nodePort",
            "spec.ports[1]",
            "spec.ports[2]",
        ];
        wanted.sort_unstable();
        let mut found = fields(&left_out);
        found.sort_unstable();
        assert_eq!(found, wanted);
        let ports: Vec<_> = service.spec.ports.iter().flatten().map(|port| port.port).collect();
        assert_eq!(ports, [Some(1), None, None, Some(3)]);
        assert_eq!(service.spec.cluster_ip.as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn an_endpoint_with_a_wrong_condition_is_not_taken_for_ready() {
        let endpoints =
            json!([{ "addresses": ["a"], "conditions": { "ready": "false" } }, { "addresses": ["b", 7] }]);
        let json = json!({ "endpoints": endpoints }).to_string();
        let (slice, left_out) = decode::<EndpointSlice>(&json).unwrap();
        assert_eq!(fields(&left_out), ["endpoints[0]", "endpoints[1].addresses[1]"]);
        let addresses: Vec<_> =
            slice.endpoints.iter().flatten().map(|endpoint| endpoint.addresses.is_some()).collect();
        assert_eq!(addresses, [false, true]);
    }

    #[test]
    fn without_what_is_essential_nothing_is_made_of_it() {
        for spec in [json!({ "ports": 5 }), json!({ "loadBalancerSourceRanges": "10.0.0.0/8" })] {
            let error = decode::<Service>(&json!({ "spec": spec }).to_string()).unwrap_err();
            assert!(error.starts_with("spec.") && error.contains("expected a sequence"), "{error}");
        }
        assert!(decode::<EndpointSlice>(r#"{"endpoints": {}}"#).unwrap_err().starts_with("endpoints: "));
        for json in ["7", "[[]]", "{", "", "nonsense"] {
            assert!(decode::<Service>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_search_is_bounded() {
        let ports: Vec<_> = (0..=MAX_LEFT_OUT).collect();
        let decoded = |ports: &[usize]| decode::<Service>(&json!({ "spec": { "ports": ports } }).to_string());
        assert!(decoded(&ports).is_err());
        assert_eq!(decoded(&ports[1..]).unwrap().1.len(), MAX_LEFT_OUT);
    }

    #[test]
    fn of_a_field_that_is_there_twice_the_last_counts_as_it_does_for_the_apiserver() {
        let (service, left_out) =
            decode::<Service>(r#"{"spec": {"clusterIP": "a", "clusterIP": "b"}}"#).unwrap();
        assert_eq!((service.spec.cluster_ip.as_deref(), left_out.len()), (Some("b"), 0));
    }
}
