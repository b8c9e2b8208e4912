//! Reports about manifest files: one line each, for a log.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sluice_model::ObjectRef;

/// The maximum length of a report in characters: it quotes from a file, and those quotes may have any length.
const MAX_CHARS: usize = 600;

/// The severity of a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// A file, document or object is not used as written.
    Error,
    /// An element is not used, or something keeps its previous state.
    Warning,
    /// The trouble is over.
    Info,
}

/// A position in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Number of the document in the file, from 1; empty documents do not count.
    pub document: usize,
    /// The line on which the document's content begins, from 1.
    pub first_line: usize,
    /// Index within a `kind: List`.
    pub item: Option<usize>,
}

/// One fact about a manifest file. Its [`Display`](fmt::Display) is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory.
    pub path: Arc<Path>,
    /// The document within it.
    pub place: Option<Place>,
    /// The line, if the parser knows it.
    pub line: Option<usize>,
    /// The object, if it is known.
    pub object: Option<ObjectRef>,
    /// The field, in `kubectl`'s notation.
    pub field: Option<String>,
    /// The fact.
    pub what: String,
    /// What to do about it; empty if there is nothing to do.
    pub mend: String,
}

/// The parts that identify a report. Lines and numbers of documents are not among them: they move as a file is
/// edited.
pub(super) type Identity = (Severity, Option<ObjectRef>, Option<Place>, Option<String>, String);

impl Report {
    pub(super) fn new(
        severity: Severity,
        path: &Arc<Path>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            path: Arc::clone(path),
            place: None,
            line: None,
            object: None,
            field: None,
            what: what.into(),
            mend: mend.into(),
        }
    }

    pub(super) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    pub(super) fn of(mut self, object: Option<ObjectRef>) -> Self {
        self.object = object;
        self
    }

    pub(super) fn identity(&self) -> Identity {
        let place = match (&self.object, self.place) {
            (None, Some(place)) => Some(Place { first_line: 0, ..place }),
            _ => None,
        };
        (self.severity, self.object.clone(), place, self.field.clone(), self.what.clone())
    }
}

/// `web.yaml:12: document 2 (line 10): Service default/web: spec.ports[0].port: 0 is no port: mend`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.path.display().to_string();
        if let Some(line) = self.line {
            text += &format!(":{line}");
        }
        if let Some(place) = self.place {
            text += &format!(": document {} (line {})", place.document, place.first_line);
            if let Some(item) = place.item {
                text += &format!(": items[{item}]");
            }
        }
        if let Some(object) = &self.object {
            text += &format!(": {object}");
        }
        for part in [self.field.as_deref().unwrap_or_default(), &self.what, &self.mend] {
            if !part.is_empty() {
                text += ": ";
                text += part;
            }
        }
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let mut chars = text.chars().map(printable);
        for c in chars.by_ref().take(MAX_CHARS) {
            fmt::Write::write_char(f, c)?;
        }
        if chars.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::ObjectName;

    use super::*;

    #[test]
    fn a_report_is_one_line_of_bounded_length() {
        let path: Arc<Path> = Path::new("a\n.yaml").into();
        let mut report = Report::new(Severity::Error, &path, "x\r\ny".repeat(1000), "mend");
        report.line = Some(3);
        let text = report.to_string();
        assert!(text.starts_with("a .yaml:3: x  y"), "{text}");
        assert_eq!(text.chars().count(), MAX_CHARS + 3);
    }

    #[test]
    fn a_report_names_all_it_knows() {
        let path: Arc<Path> = Path::new("web.yaml").into();
        let object = ObjectRef::Service(ObjectName::new("default", "web"));
        let place = Place { document: 2, first_line: 10, item: Some(4) };
        let report = Report::new(Severity::Warning, &path, "what", "mend").at(place).of(Some(object));
        let report = Report { line: Some(12), field: Some("spec.x".into()), ..report };
        assert_eq!(
            report.to_string(),
            "web.yaml:12: document 2 (line 10): items[4]: Service default/web: spec.x: what: mend"
        );
    }
}
