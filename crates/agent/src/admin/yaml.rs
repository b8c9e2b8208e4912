//! JSON values as YAML, in blocks, as kubectl writes them.

use serde_json::Value;

/// A document.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(&mut text, value, 0),
        Value::Array(list) if !list.is_empty() => entries(&mut text, value, 0),
        _ => text = scalar(value) + "\n",
    }
    text
}

/// The lines of an object or a list that is not empty.
fn entries(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                text.push_str(&" ".repeat(indent));
                text.push_str(&string(key));
                text.push(':');
                below(text, value, indent);
            }
        }
        Value::Array(list) => {
            for value in list {
                text.push_str(&" ".repeat(indent));
                text.push('-');
                beside(text, value, indent);
            }
        }
        _ => {}
    }
}

/// What stands after a key: lists at its own depth, as kubectl has them.
fn below(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            entries(text, value, indent + 2);
        }
        Value::Array(list) if !list.is_empty() => {
            text.push('\n');
            entries(text, value, indent);
        }
        _ => *text += &format!(" {}\n", scalar(value)),
    }
}

/// What stands after a dash: the first line of it on the same line.
fn beside(text: &mut String, value: &Value, indent: usize) {
    let mut lines = String::new();
    entries(&mut lines, value, indent + 2);
    match lines.get(indent + 2..) {
        Some(rest) if !rest.is_empty() => *text += &format!(" {rest}"),
        _ => *text += &format!(" {}\n", scalar(value)),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        // Empty lists and objects are the same in both languages, and so are numbers.
        other => other.to_string(),
    }
}

/// As it is where nobody could take it for something else; otherwise as JSON writes it, which YAML reads.
fn string(text: &str) -> String {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.'))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if is_word { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_read_as_what_was_written() {
        let value = json!({
            "items": [
                {"name": "web", "ports": [{"port": 80, "nested": [[1, 2], [], {}]}], "none": null},
                {"name": "10.96.0.1:80", "why": "2 endpoints: \"ready\" # not so\n- x", "yes": true, "n": -1.5},
                "true", "null", "1e3", "", "~", "- a", "é", "[::1]:80", [], {}
            ],
            "empty": [],
            "a: b": {"c": {"d": "No"}}
        });
        let text = yaml(&value);
        let read: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(read, value, "{text}");
        assert!(
            text.starts_with("\"a: b\":\n  c:\n    d: \"No\"\nempty: []\nitems:\n- name: web\n"),
            "{text}"
        );
    }

    #[test]
    fn single_values() {
        assert_eq!(yaml(&json!({})), "{}\n");
        assert_eq!(yaml(&json!("a")), "a\n");
    }
}
