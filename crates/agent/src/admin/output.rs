//! Formats of answers: aligned text, JSON or YAML.

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_saphyr::ser_options;

use crate::errors;

/// What `--output` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, with more of them.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Writes an answer: as text unless another format is wanted.
pub(super) fn write<T: Serialize>(
    answer: &T,
    output: Option<Output>,
    text: impl FnOnce(bool) -> String,
) -> Result<()> {
    print(&said(answer, output, text)?).map(drop)
}

/// An answer in the wanted format.
pub(super) fn said<T: Serialize>(
    answer: &T,
    output: Option<Output>,
    text: impl FnOnce(bool) -> String,
) -> Result<String> {
    Ok(match output {
        None => text(false),
        Some(Output::Wide) => text(true),
        Some(Output::Json) => serde_json::to_string_pretty(answer).context("cannot write JSON")? + "\n",
        Some(Output::Yaml) => yaml(&serde_json::to_value(answer).context("cannot write YAML")?)?,
    })
}

/// Block style, with fields in order, as kubectl writes YAML. Sentences are not wrapped, so that people can
/// search for them.
fn yaml(value: &serde_json::Value) -> Result<String> {
    let options = ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).context("cannot write YAML")
}

/// Prints a text; returns whether somebody still reads.
pub(super) fn print(said: &str) -> Result<bool> {
    Ok(errors::print(said.as_bytes())?)
}

/// Columns as kubectl prints them: no borders, three spaces in between, no trailing spaces.
pub(super) fn columns(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 3));
    });
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Bytes in readable units, with at least three digits: 12, 3.4Ki, 250Mi.
pub(super) fn bytes(n: u64) -> String {
    size(n as f64)
}

/// The same for a rate.
pub(super) fn size(mut value: f64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = "";
    for larger in UNITS {
        // What would round to 1024 of one unit is 1 of the next.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    let digits = usize::from(!unit.is_empty() && value < 99.95);
    format!("{value:.digits$}{unit}")
}

/// A time in its two largest units: 45s, 3m20s, 5h2m, 12d4h.
pub(super) fn time(seconds: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let mut left = seconds;
    let parts: Vec<String> = UNITS
        .iter()
        .filter_map(|(name, length)| {
            let n = left / length;
            left %= length;
            (n > 0).then(|| format!("{n}{name}"))
        })
        .take(2)
        .collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.concat() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn yaml_is_read_as_what_was_written() {
        let value = json!({
            "items": [
                {"name": "web", "ports": [{"port": 80, "nested": [[1, 2], [], {}]}], "none": null},
                {"name": "10.96.0.1:80", "why": "2 endpoints: \"ready\" # not so\n- x", "yes": true, "n": -1.5},
                "true", "null", "1e3", "", "~", "- a", "é", "[::1]:80", [], {}
            ],
            "empty": [],
            "long": "a sentence of more than eighty characters, as there are many of them in what an agent has to say",
            "a: b": {"c": {"d": "No", "e": u64::MAX, "f": 1e300}}
        });
        let text = yaml(&value).unwrap();
        let read: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(read, value, "{text}");
        assert!(
            text.contains("\nempty: []\nitems:\n- name: web\n  none: null\n  ports:\n  - nested:\n"),
            "{text}"
        );
        assert!(text.lines().any(|line| line.contains("a sentence") && line.ends_with("to say")), "{text}");
        assert_eq!(yaml(&json!({})).unwrap(), "{}\n");
    }

    #[test]
    fn columns_are_aligned_and_lines_end_where_their_text_does() {
        let rows =
            vec![vec!["web".to_owned(), String::new()], vec!["a-longer-one".to_owned(), "2".to_owned()]];
        assert_eq!(columns(&["NAME", "N"], rows), "NAME           N\nweb\na-longer-one   2\n");
        assert_eq!(columns(&["NAME"], Vec::new()), "NAME\n");
    }

    #[test]
    fn numbers_for_people() {
        let said: Vec<String> =
            [0, 1_023, 1_024, 1_536, 102_400, 1 << 20, (1 << 20) - 1, u64::MAX].map(bytes).into();
        assert_eq!(said, ["0", "1023", "1.0Ki", "1.5Ki", "100Ki", "1.0Mi", "1.0Mi", "16.0Ei"]);
        let said: Vec<String> = [0, 59, 60, 3_661, 90_000].map(time).into();
        assert_eq!(said, ["0s", "59s", "1m", "1h1m", "1d1h"]);
    }
}
