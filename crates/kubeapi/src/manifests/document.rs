//! Splits a file into documents, so that a broken one does not affect the others. Pure.
//!
//! A line that begins with `---` or `...` ends a YAML document wherever it is, even inside a quoted or block
//! scalar (YAML 1.2, `c-forbidden`). So finding it takes no parsing.

use serde::de::IgnoredAny;

use super::report::Place;

/// More documents than any real manifest has. It limits the cost of a file of separators only.
pub(super) const MAX_DOCUMENTS: usize = 65_536;

/// The format of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// A document that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Document<'a> {
    pub(super) place: Place,
    /// The line on which `text` begins, from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
    pub(super) format: Format,
}

/// Splits a file by the rules of its format, at most [`MAX_DOCUMENTS`] + 1 times.
pub(super) fn split(text: &str, format: Format) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => split_yaml(text),
        Format::Json => split_json(text),
    }
}

/// A document that is being collected.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// Where its text begins, and on which line.
    start: usize,
    line: usize,
    /// The line of its first content, if it has any.
    content: Option<usize>,
    /// It begins with `%YAML` or `%TAG`, which belong to the document after the next `---`.
    has_directive: bool,
}

fn split_yaml(text: &str) -> Vec<Document<'_>> {
    let mut documents: Vec<Document<'_>> = Vec::new();
    let mut open = Open { start: 0, line: 1, content: None, has_directive: false };
    let mut offset = 0;
    let mut close = |open: Open, end: usize| {
        if let (Some(first_line), Some(text)) = (open.content, text.get(open.start..end)) {
            let place = Place { document: documents.len() + 1, first_line, item: None };
            let document = Document { place, line: open.line, text, format: Format::Yaml };
            documents.push(as_json(document).unwrap_or(document));
        }
        documents.len() > MAX_DOCUMENTS
    };
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let end = offset + content.len();
        if let Some(rest) = after_marker(content, "---") {
            if open.content.is_some() || !open.has_directive {
                if close(open, offset) {
                    return documents;
                }
                open = Open { start: offset, line, content: None, has_directive: false };
            }
            open.has_directive = false;
            open.content = has_content(rest).then_some(line);
        } else if after_marker(content, "...").is_some() {
            if close(open, offset) {
                return documents;
            }
            open = Open { start: end, line: line + 1, content: None, has_directive: false };
        } else if open.content.is_none() && content.starts_with('%') {
            open.has_directive = true;
        } else if open.content.is_none() && has_content(content) {
            open.content = Some(line);
        }
        offset = end;
    }
    close(open, text.len());
    documents
}

/// The rest of a line after a document marker. A byte order mark may precede the marker, as in files that were
/// joined from several.
fn after_marker<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    let rest = line.strip_prefix('\u{feff}').unwrap_or(line).strip_prefix(marker)?;
    (rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])).then_some(rest)
}

/// Whether the line has more than blanks and a comment.
fn has_content(line: &str) -> bool {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    !line.is_empty() && !line.starts_with('#')
}

/// The document as JSON, if it is JSON. All JSON is YAML, but the JSON parser is faster and its errors are better.
fn as_json(document: Document<'_>) -> Option<Document<'_>> {
    let text = document.text;
    let body = match after_marker(text.split_inclusive('\n').next()?, "---") {
        Some(_) => text.split_once("---")?.1,
        None => text,
    };
    let is_json = body.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(body).is_ok();
    is_json.then_some(Document { text: body, format: Format::Json, ..document })
}

/// Splits consecutive JSON values. After a broken one the next cannot be found: it takes the rest.
fn split_json(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut start, mut line) = (0, 1);
    loop {
        let gap = text.get(start..).map_or(0, |rest| rest.len() - rest.trim_start().len());
        line += count_lines(text.get(start..start + gap));
        start += gap;
        let end = match values.next() {
            None => return documents,
            Some(Ok(IgnoredAny)) => values.byte_offset(),
            Some(Err(_)) => text.len(),
        };
        let Some(body) = text.get(start..end) else { return documents };
        let place = Place { document: documents.len() + 1, first_line: line, item: None };
        documents.push(Document { place, line, text: body, format: Format::Json });
        if documents.len() > MAX_DOCUMENTS {
            return documents;
        }
        line += count_lines(Some(body));
        start = end;
    }
}

fn count_lines(text: Option<&str>) -> usize {
    text.map_or(0, |text| text.bytes().filter(|byte| *byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number, first line, line of the text, text.
    fn cut(text: &str, format: Format) -> Vec<(usize, usize, usize, &str)> {
        let documents = split(text, format);
        documents.iter().map(|d| (d.place.document, d.place.first_line, d.line, d.text)).collect()
    }

    #[test]
    fn yaml_is_cut_at_markers() {
        type Case<'a> = (&'a str, &'a [(usize, usize, usize, &'a str)]);
        let cases: &[Case<'_>] = &[
            ("", &[]),
            ("\n \t\n# comment\r\n", &[]),
            ("---\n---\n# x\n--- # y\n...\n", &[]),
            ("a: 1", &[(1, 1, 1, "a: 1")]),
            ("\u{feff}a: 1\n", &[(1, 1, 1, "a: 1\n")]),
            ("a: 1\n---\nb: 2\n", &[(1, 1, 1, "a: 1\n"), (2, 3, 2, "---\nb: 2\n")]),
            ("# head\n---\n# x\na: 1\n", &[(1, 4, 2, "---\n# x\na: 1\n")]),
            (
                "a: 1\r\n---\t# next\r\nb: 2\r\n",
                &[(1, 1, 1, "a: 1\r\n"), (2, 3, 2, "---\t# next\r\nb: 2\r\n")],
            ),
            ("a: 1\n...\nb: 2\n", &[(1, 1, 1, "a: 1\n"), (2, 3, 3, "b: 2\n")]),
            ("a: 1\n...\n---\nb: 2\n", &[(1, 1, 1, "a: 1\n"), (2, 4, 3, "---\nb: 2\n")]),
            ("--- {a: 1}\n--- [2]\n", &[(1, 1, 1, "--- {a: 1}\n"), (2, 2, 2, "--- [2]\n")]),
            ("%YAML 1.2\n---\na: 1\n", &[(1, 3, 1, "%YAML 1.2\n---\na: 1\n")]),
            (
                "a: 1\n...\n%YAML 1.2\n---\nb: 1\n",
                &[(1, 1, 1, "a: 1\n"), (2, 5, 3, "%YAML 1.2\n---\nb: 1\n")],
            ),
            ("a: 1\n---b: 2\n", &[(1, 1, 1, "a: 1\n---b: 2\n")]),
            (
                "a: |\n  x\n  ---\n  y\n---\nb: 1\n",
                &[(1, 1, 1, "a: |\n  x\n  ---\n  y\n"), (2, 6, 5, "---\nb: 1\n")],
            ),
            ("a: 1\n\u{feff}---\nb: 2\n", &[(1, 1, 1, "a: 1\n"), (2, 3, 2, "\u{feff}---\nb: 2\n")]),
        ];
        for (text, expected) in cases {
            assert_eq!(cut(text, Format::Yaml), *expected, "{text:?}");
        }
    }

    #[test]
    fn json_is_recognised_inside_yaml() {
        let documents = split("---\n{\"a\":\n1}\n---\n{a: 1}\n", Format::Yaml);
        let formats: Vec<_> = documents.iter().map(|d| (d.format, d.line, d.place.first_line)).collect();
        assert_eq!(formats, [(Format::Json, 1, 2), (Format::Yaml, 4, 5)]);
        assert_eq!(documents[0].text, "\n{\"a\":\n1}\n");
    }

    #[test]
    fn json_is_a_stream_of_values() {
        assert_eq!(cut(" \n", Format::Json), []);
        assert_eq!(cut("{\"a\":\n1}\n\n{}", Format::Json), [(1, 1, 1, "{\"a\":\n1}"), (2, 4, 4, "{}")]);
        assert_eq!(cut("{}\n{\"a\": ", Format::Json), [(1, 1, 1, "{}"), (2, 2, 2, "{\"a\": ")]);
    }

    #[test]
    fn documents_are_bounded() {
        assert_eq!(split(&"--- 1\n".repeat(MAX_DOCUMENTS + 9), Format::Yaml).len(), MAX_DOCUMENTS + 1);
        assert_eq!(split(&"{}".repeat(MAX_DOCUMENTS + 9), Format::Json).len(), MAX_DOCUMENTS + 1);
    }
}
