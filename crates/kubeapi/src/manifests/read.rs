//! Reads one document, YAML or JSON: its declared type and its contents. Pure.
//!
//! A document is read twice (a list three times): first for `apiVersion` and `kind`, then as that type. This
//! keeps lines and field paths, which an untyped tree would lose, and lets each item of a list fail separately.

mod kinds;

use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::document::{Document, Format};
use crate::api::{self, Read};

/// The maximum number of broken items to find in one list; each costs another pass over the list.
const MAX_BROKEN_ITEMS: usize = 16;

/// An object of the API, before its conversion.
#[derive(Debug)]
pub(super) enum Raw {
    Service(Box<api::Service>),
    EndpointSlice(Box<api::EndpointSlice>),
    Node(Box<api::Node>),
    ServiceCidr(Box<api::ServiceCidr>),
}

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

/// A part of a document that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Index within a list.
    pub(super) item: Option<usize>,
    /// The line in the file.
    pub(super) line: Option<usize>,
    pub(super) field: Option<String>,
    pub(super) what: String,
    pub(super) mend: String,
}

/// The contents of a document.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Objects, with their index if the document is a list.
    pub(super) objects: Vec<(Option<usize>, Raw)>,
    pub(super) flaws: Vec<Flaw>,
}

/// Reads one document.
pub(super) fn read(document: &Document<'_>) -> Contents {
    let mut contents = Contents::default();
    let flaw = match deserialize(document, std::marker::PhantomData::<Option<Head>>) {
        // `null`, or only an anchor or a tag.
        Ok(None) => return contents,
        Ok(Some(head)) => match head.class(None) {
            Class::Other => return contents,
            Class::One(kind) => match deserialize(document, kind) {
                Ok(raw) => {
                    contents.objects.push((None, raw));
                    return contents;
                }
                Err(flaw) => flaw.typed(kind),
            },
            Class::List(kind) => {
                read_list(document, kind, &mut contents);
                return contents;
            }
            Class::Wrong { field, what, mend } => Flaw::new(field, what, mend),
        },
        Err(flaw) => flaw,
    };
    contents.flaws.push(flaw);
    contents
}

fn read_list(document: &Document<'_>, kind: Option<Kind>, contents: &mut Contents) {
    let heads = match deserialize(document, std::marker::PhantomData::<ListHead>) {
        Ok(list) => list.items,
        Err(flaw) => return contents.flaws.push(flaw),
    };
    let Some(heads) = heads else {
        let flaw = Flaw::new("items", "missing".to_owned(), "write `items: []` if there are none".to_owned());
        return contents.flaws.push(flaw);
    };
    let mut kinds: Vec<Option<Kind>> = Vec::with_capacity(heads.len());
    for (item, head) in heads.iter().enumerate() {
        let flaw = match head.class(kind) {
            Class::One(kind) => {
                kinds.push(Some(kind));
                continue;
            }
            Class::Other => None,
            Class::List(_) => {
                let mend = "write its items into the outer list".to_owned();
                Some(Flaw::new("kind", "a list inside a list is not read".to_owned(), mend))
            }
            Class::Wrong { field, what, mend } => Some(Flaw::new(field, what, mend)),
        };
        kinds.push(None);
        contents.flaws.extend(flaw.map(|flaw| Flaw { item: Some(item), ..flaw }));
    }
    let current = Cell::new(0);
    let mut from = 0;
    for _ in 0..MAX_BROKEN_ITEMS {
        let seed = ListSeed { kinds: &kinds, from, current: &current, objects: &mut contents.objects };
        let Err(flaw) = deserialize(document, seed) else { return };
        let item = current.get();
        let flaw = match kinds.get(item).copied().flatten() {
            Some(kind) => flaw.typed(kind),
            None => flaw,
        };
        contents.flaws.push(Flaw { item: Some(item), ..flaw });
        from = item + 1;
    }
    let what = format!("{MAX_BROKEN_ITEMS} items are broken; those behind are not looked at");
    contents.flaws.push(Flaw::new("items", what, "mend those first".to_owned()));
}

/// The declared type of an object.
#[derive(Debug, Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ListHead {
    items: Option<Vec<Head>>,
}

enum Class {
    One(Kind),
    List(Option<Kind>),
    Other,
    Wrong { field: &'static str, what: String, mend: String },
}

impl Head {
    /// `of`: the type of the items of a typed list, which may leave out both fields.
    fn class(&self, of: Option<Kind>) -> Class {
        let version = self.api_version.as_deref().filter(|text| !text.is_empty());
        let Some(written) = self.kind.as_deref().filter(|text| !text.is_empty()) else {
            return of.map_or_else(
                || Class::Wrong {
                    field: "kind",
                    what: "missing".to_owned(),
                    mend: "every Kubernetes object has apiVersion and kind: write them".to_owned(),
                },
                Class::One,
            );
        };
        let Some((kind, wanted, class)) = known(written) else { return kinds::unknown(version, written) };
        match version {
            Some(version) if version != wanted && kinds::is_foreign(version) => Class::Other,
            _ if kind != written => Class::Wrong {
                field: "kind",
                what: format!("{written:?} is not a kind"),
                mend: format!("write {kind}"),
            },
            Some(version) if version == wanted => class,
            None if of.is_some() => class,
            None => Class::Wrong {
                field: "apiVersion",
                what: "missing".to_owned(),
                mend: format!("write apiVersion: {wanted}"),
            },
            Some(version) => Class::Wrong {
                field: "apiVersion",
                what: format!("{version:?} has no {kind} that is read here"),
                mend: format!("write apiVersion: {wanted}"),
            },
        }
    }
}

const CORE: &str = "v1";
const DISCOVERY: &str = "discovery.k8s.io/v1";
const NETWORKING: &str = "networking.k8s.io/v1";

/// The kinds that are read, found regardless of case: kind, `apiVersion`, class.
fn known(kind: &str) -> Option<(&'static str, &'static str, Class)> {
    [
        ("Service", CORE, Class::One(Kind::Service)),
        ("EndpointSlice", DISCOVERY, Class::One(Kind::EndpointSlice)),
        ("Node", CORE, Class::One(Kind::Node)),
        ("ServiceCIDR", NETWORKING, Class::One(Kind::ServiceCidr)),
        ("List", CORE, Class::List(None)),
        ("ServiceList", CORE, Class::List(Some(Kind::Service))),
        ("EndpointSliceList", DISCOVERY, Class::List(Some(Kind::EndpointSlice))),
        ("NodeList", CORE, Class::List(Some(Kind::Node))),
        ("ServiceCIDRList", NETWORKING, Class::List(Some(Kind::ServiceCidr))),
    ]
    .into_iter()
    .find(|(name, ..)| name.eq_ignore_ascii_case(kind))
}

impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Ok(match self {
            Self::Service => Raw::Service(Box::new(Read::read(deserializer)?)),
            Self::EndpointSlice => Raw::EndpointSlice(Box::new(Read::read(deserializer)?)),
            Self::Node => Raw::Node(Box::new(Read::read(deserializer)?)),
            Self::ServiceCidr => Raw::ServiceCidr(Box::new(Read::read(deserializer)?)),
        })
    }
}

/// Reads the items of a list from an index on, each as its kind; skips those that are `None`.
struct ListSeed<'a> {
    kinds: &'a [Option<Kind>],
    from: usize,
    /// The item being read; after an error, the broken one.
    current: &'a Cell<usize>,
    objects: &'a mut Vec<(Option<usize>, Raw)>,
}

impl<'de> DeserializeSeed<'de> for ListSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(ListVisitor(self))
    }
}

struct ListVisitor<'a>(ListSeed<'a>);

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(ItemsSeed(&mut self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct ItemsSeed<'a, 'b>(&'a mut ListSeed<'b>);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let list = self.0;
        for item in 0.. {
            list.current.set(item);
            match list.kinds.get(item).copied().flatten().filter(|_| item >= list.from) {
                Some(kind) => match items.next_element_seed(kind)? {
                    Some(raw) => list.objects.push((Some(item), raw)),
                    None => break,
                },
                None if items.next_element::<IgnoredAny>()?.is_none() => break,
                None => {}
            }
        }
        Ok(())
    }
}

impl Flaw {
    fn new(field: &str, what: String, mend: String) -> Self {
        Self { item: None, line: None, field: Some(field.to_owned()), what, mend }
    }

    /// Adds where to look up the field's type.
    fn typed(self, kind: Kind) -> Self {
        let kind = match kind {
            Kind::Service => "service",
            Kind::EndpointSlice => "endpointslice",
            Kind::Node => "node",
            Kind::ServiceCidr => "servicecidr",
        };
        let mend = format!("`kubectl explain {kind} --recursive` shows what belongs there");
        let field =
            self.field.map(|field| match field.strip_prefix("items[").and_then(|f| f.split_once("].")) {
                Some((_, inner)) => inner.to_owned(),
                None => field,
            });
        Self { field, mend, ..self }
    }
}

fn deserialize<'de, S: DeserializeSeed<'de>>(document: &Document<'de>, seed: S) -> Result<S::Value, Flaw> {
    let mut track = serde_path_to_error::Track::new();
    let (line, what, mend) = match document.format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_str(document.text);
            let path = serde_path_to_error::Deserializer::new(&mut json, &mut track);
            match seed.deserialize(path) {
                Ok(value) => match json.end() {
                    Ok(()) => return Ok(value),
                    Err(error) => json_error(&error),
                },
                Err(error) => json_error(&error),
            }
        }
        Format::Yaml => {
            let read = |yaml: serde_saphyr::Deserializer<'de, '_>| {
                seed.deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
            };
            match serde_saphyr::with_deserializer_from_str_with_options(document.text, options(), read) {
                Ok(value) => return Ok(value),
                Err(error) => yaml_error(&error),
            }
        }
    };
    let field = track.path().to_string();
    // The path ends in a question mark if a key cannot be read.
    let field = field.trim_end_matches('?').trim_end_matches('.').to_owned();
    let line = line.map(|line| document.line + line.saturating_sub(1));
    Err(Flaw { item: None, line, field: (!field.is_empty()).then_some(field), what, mend: mend.to_owned() })
}

/// Line within the document, what, mend.
type ParserError = (Option<usize>, String, &'static str);

fn json_error(error: &serde_json::Error) -> ParserError {
    let what = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    let what = what.strip_suffix(&suffix).unwrap_or(&what).to_owned();
    (Some(error.line()).filter(|line| *line != 0), what, "mend the JSON there")
}

fn yaml_error(error: &serde_saphyr::Error) -> ParserError {
    use serde_saphyr::MessageFormatter as _;
    let what = serde_saphyr::UserMessageFormatter.format_message(error).into_owned();
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
    (line.filter(|line| *line != 0), what, "mend the YAML there")
}

/// Budgets: enough for the largest file that is read, if it is written out plainly. Aliases, which can expand
/// without bound, have small ones. Nothing that Kubernetes writes has aliases or is nested this deep.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 32_000_000,
            max_nodes: 16_000_000,
            max_depth: 64,
            max_documents: 2,
            max_aliases: 10_000,
            max_anchors: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 1_000_000,
            max_replay_stack_depth: 16,
        },
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests;
