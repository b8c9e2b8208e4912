//! The query of a list or a watch: the selection, the revision, and the limit.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::object::Key;
use super::resource::Resource;
use super::selector::{FieldSelector, LabelSelector, Scope};
use super::status::{Cause, Status};

/// The parsed query string.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The value of an option; `None` if it is missing or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "TRUE"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| Status::bad_request(format!("{name}: Invalid value: {text:?}: not a number")))
        };
        self.get(name).map(parse).transpose()
    }

    /// The part of the resource that the selectors choose. `fields` are those that field selectors may use
    /// besides the names.
    pub(crate) fn scope(
        &self,
        resource: Resource,
        fields: &[&str],
        namespace: Option<&str>,
    ) -> Result<Scope, Status> {
        Ok(Scope {
            namespace: namespace.map(str::to_owned),
            labels: LabelSelector::parse(self.get("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(resource, fields, self.get("fieldSelector").unwrap_or_default())?,
        })
    }

    /// The parameters of a list.
    pub(crate) fn list(&self) -> Result<ListQuery, Status> {
        let limit = self.number("limit")?.unwrap_or(0);
        let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
        let version = self.number("resourceVersion")?;
        let rule = self.get("resourceVersionMatch");
        if let Some(token) = self.get("continue") {
            let forbidden = |field: &str, why: &str| Err(invalid_options(Cause::forbidden(field, why)));
            if rule.is_some() {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                );
            }
            if version.is_some_and(|version| version != 0) {
                let why = "specifying resource version is not allowed when using continue";
                return Err(Status::bad_request(why));
            }
            return Ok(ListQuery { limit, from: Position::Continue(Token::decode(token)?) });
        }
        let from = match (rule, version) {
            (None, None) => Position::Latest,
            // A real apiserver serves lists at 0 from its watch cache, without pages.
            (None | Some("NotOlderThan"), Some(0)) => {
                return Ok(ListQuery { limit: None, from: Position::Latest });
            }
            (None, Some(version)) if limit.is_some() => Position::Exactly(version),
            (None | Some("NotOlderThan"), Some(version)) => Position::NotOlderThan(version),
            (Some("Exact"), Some(0)) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return Err(invalid_options(Cause::forbidden("resourceVersionMatch", why)));
            }
            (Some("Exact"), Some(version)) => Position::Exactly(version),
            (Some("NotOlderThan" | "Exact"), None) => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(invalid_options(Cause::forbidden("resourceVersionMatch", why)));
            }
            (Some(other), _) => return Err(unknown_match(other)),
        };
        Ok(ListQuery { limit, from })
    }

    /// The parameters of a watch.
    pub(crate) fn watch(&self, default_timeout: Duration) -> Result<WatchQuery, Status> {
        let version = self.number("resourceVersion")?;
        let rule = self.get("resourceVersionMatch");
        let initial = match self.get("sendInitialEvents") {
            Some(_) if rule != Some("NotOlderThan") => {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(invalid_options(Cause::forbidden("resourceVersionMatch", why)));
            }
            Some(_) if self.flag("sendInitialEvents") => Initial::ObjectsAndBookmark,
            Some(_) => Initial::Nothing,
            None if rule.is_some() => {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(invalid_options(Cause::forbidden("resourceVersionMatch", why)));
            }
            None if version.unwrap_or(0) == 0 => Initial::Objects,
            None => Initial::Nothing,
        };
        let timeout = self.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        Ok(WatchQuery {
            after: version.filter(|version| *version > 0),
            initial,
            bookmarks: self.flag("allowWatchBookmarks"),
            timeout: timeout.map_or(default_timeout, Duration::from_secs),
        })
    }
}

/// The parameters of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListQuery {
    /// The maximum number of items.
    pub(crate) limit: Option<usize>,
    pub(crate) from: Position,
}

/// The revision of a list, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position {
    Latest,
    NotOlderThan(u64),
    Exactly(u64),
    Continue(Token),
}

/// The parameters of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatchQuery {
    /// The revision after which it starts; `None` means now.
    pub(crate) after: Option<u64>,
    pub(crate) initial: Initial,
    pub(crate) bookmarks: bool,
    pub(crate) timeout: Duration,
}

/// What a watch sends before changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initial {
    Nothing,
    /// The existing objects, as ADDED.
    Objects,
    /// The existing objects, and a bookmark at their end.
    ObjectsAndBookmark,
}

/// The continue token of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// The revision; `None` continues with the latest state although that is inconsistent.
    #[serde(rename = "rv")]
    pub(crate) revision: Option<u64>,
    namespace: String,
    name: String,
}

impl Token {
    pub(crate) fn new(revision: Option<u64>, after: &Key) -> Self {
        Self { revision, namespace: after.namespace.clone(), name: after.name.clone() }
    }

    pub(crate) fn after(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }

    pub(crate) fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok();
        let token = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        token.ok_or_else(|| Status::bad_request("continue key is not valid: it is not one of this server"))
    }
}

fn invalid_options(cause: Cause) -> Status {
    Status::invalid("ListOptions", "meta.k8s.io", "", &[cause])
}

fn unknown_match(rule: &str) -> Status {
    let supported = ["Exact", "NotOlderThan"];
    invalid_options(Cause::unsupported("resourceVersionMatch", &rule.into(), &supported))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(query: &str) -> Result<(Option<usize>, Position), u16> {
        Query::parse(Some(query)).list().map(|list| (list.limit, list.from)).map_err(|status| status.code)
    }

    #[test]
    fn the_version_and_its_match_say_as_of_when() {
        assert_eq!(list(""), Ok((None, Position::Latest)));
        assert_eq!(list("limit=5"), Ok((Some(5), Position::Latest)));
        assert_eq!(list("resourceVersion=0&limit=5"), Ok((None, Position::Latest)));
        assert_eq!(list("resourceVersion=7"), Ok((None, Position::NotOlderThan(7))));
        assert_eq!(list("resourceVersion=7&limit=5"), Ok((Some(5), Position::Exactly(7))));
        assert_eq!(list("resourceVersion=7&resourceVersionMatch=Exact"), Ok((None, Position::Exactly(7))));
        let not_older = "resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan";
        assert_eq!(list(not_older), Ok((Some(5), Position::NotOlderThan(7))));
        assert_eq!(list("resourceVersion=0&resourceVersionMatch=Exact"), Err(422));
        assert_eq!(list("resourceVersionMatch=Exact"), Err(422));
        assert_eq!(list("resourceVersion=7&resourceVersionMatch=Odd"), Err(422));
        assert_eq!(list("resourceVersion=a"), Err(400));
    }

    #[test]
    fn a_continue_token_says_where_a_list_goes_on() {
        let token = Token::new(Some(7), &Key::new("default", "a"));
        let query = format!("limit=5&continue={}", token.encode());
        assert_eq!(list(&query), Ok((Some(5), Position::Continue(token))));
        assert_eq!(list(&format!("{query}&resourceVersion=7")), Err(400));
        assert_eq!(list(&format!("{query}&resourceVersionMatch=Exact")), Err(422));
        assert_eq!(list("continue=nonsense"), Err(400));
    }

    #[test]
    fn a_watch_starts_with_what_there_is_unless_it_names_a_version() {
        let watch = |query: &str| {
            let watch = Query::parse(Some(query)).watch(Duration::from_secs(9));
            watch.map(|watch| (watch.after, watch.initial)).map_err(|status| status.code)
        };
        assert_eq!(watch(""), Ok((None, Initial::Objects)));
        assert_eq!(watch("resourceVersion=0"), Ok((None, Initial::Objects)));
        assert_eq!(watch("resourceVersion=7"), Ok((Some(7), Initial::Nothing)));
        let streaming = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        assert_eq!(watch(streaming), Ok((None, Initial::ObjectsAndBookmark)));
        assert_eq!(watch("sendInitialEvents=true"), Err(422));
        assert_eq!(watch("resourceVersionMatch=Exact&resourceVersion=1"), Err(422));
        let query = Query::parse(Some("watch=true&timeoutSeconds=3&allowWatchBookmarks=1"));
        let watch = query.watch(Duration::from_secs(9)).unwrap();
        assert_eq!((watch.timeout, watch.bookmarks), (Duration::from_secs(3), true));
    }
}
