//! Converts one file's bytes to model objects and reports. Pure.

use std::path::Path;
use std::sync::Arc;

use sluice_model::{Object, ObjectName, ObjectRef};

use super::document::{self, Document, Format, MAX_DOCUMENTS};
use super::read::{self, Flaw, Raw};
use super::report::{Place, Report, Severity};
use crate::api::Meta;
use crate::convert::{self, Converted, Problem, Skip};

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Objects of the kinds that are read, in the order of the file.
    pub(super) objects: Vec<ParsedObject>,
    /// Documents and items that could not be read.
    pub(super) broken: Vec<Report>,
    /// It has no document at all.
    pub(super) is_empty: bool,
}

/// One object of a file.
#[derive(Debug)]
pub(super) struct ParsedObject {
    pub(super) reference: ObjectRef,
    pub(super) place: Place,
    pub(super) result: Result<Object, Skip>,
    pub(super) problems: Vec<Problem>,
}

/// Reads a file's contents.
pub(super) fn parse(path: &Arc<Path>, bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let what = format!("not UTF-8 from byte {} on", error.valid_up_to());
            parsed.broken.push(Report::new(Severity::Error, path, what, "save the file as UTF-8 text"));
            return parsed;
        }
    };
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let documents = document::split(text, if is_json { Format::Json } else { Format::Yaml });
    parsed.is_empty = documents.is_empty();
    for document in documents.iter().take(MAX_DOCUMENTS) {
        add_document(path, document, &mut parsed);
    }
    if documents.len() > MAX_DOCUMENTS {
        let what = format!("more than {MAX_DOCUMENTS} documents; the others are not looked at");
        parsed.broken.push(Report::new(Severity::Error, path, what, "spread them over several files"));
    }
    parsed
}

fn add_document(path: &Arc<Path>, document: &Document<'_>, parsed: &mut Parsed) {
    let contents = read::read(document);
    for Flaw { item, line, field, what, mend } in contents.flaws {
        let report = Report::new(Severity::Error, path, what, mend).at(Place { item, ..document.place });
        parsed.broken.push(Report { line, field, ..report });
    }
    for (item, raw) in contents.objects {
        parsed.objects.push(convert(Place { item, ..document.place }, &raw));
    }
}

fn convert(place: Place, raw: &Raw) -> ParsedObject {
    let (reference, converted) = match raw {
        Raw::Service(service) => {
            (ObjectRef::Service(name(&service.metadata)), object(convert::service(service)))
        }
        Raw::EndpointSlice(slice) => {
            let mut converted = object(convert::slice(slice));
            // An apiserver writes null for an empty list. In a file, null more likely means that it is half-written.
            if slice.endpoints.is_none() && converted.result.is_ok() {
                let mend = "write `endpoints: []` if there are none";
                converted.problems.push(problem("endpoints", "missing", mend));
            }
            (ObjectRef::EndpointSlice(name(&slice.metadata)), converted)
        }
        Raw::Node(node) => {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            (ObjectRef::Node(name.into()), object(convert::node(node)))
        }
        Raw::ServiceCidr(cidr) => {
            let name = cidr.metadata.name.as_deref().unwrap_or_default();
            (ObjectRef::ServiceCidr(name.into()), object(convert::service_cidr(cidr)))
        }
    };
    let Converted { result, mut problems } = converted;
    if result == Err(Skip::NoClusterIp) {
        let mend = "write the address that clients connect to; no apiserver allocates one here";
        problems.push(problem("spec.clusterIP", "missing: nothing to listen on", mend));
    }
    if let Err(skip) = result {
        tracing::debug!(object = %reference, reason = %skip, "not served");
    }
    ParsedObject { reference, place, result, problems }
}

fn problem(field: &str, what: &str, mend: &str) -> Problem {
    Problem { field: field.to_owned(), what: what.to_owned(), mend: mend.to_owned() }
}

fn object<T: Into<Object>>(converted: Converted<T>) -> Converted<Object> {
    Converted { result: converted.result.map(Into::into), problems: converted.problems }
}

/// The name as written, valid or not; the default namespace is `default`, as in kubectl.
fn name<L>(metadata: &Meta<L>) -> ObjectName {
    let namespace = metadata.namespace.as_deref().filter(|text| !text.is_empty()).unwrap_or("default");
    ObjectName::new(namespace, metadata.name.as_deref().unwrap_or_default())
}
