//! Get, list and watch.

use http::header::ACCEPT;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::body::{Body, Pipe};
use super::faults::Expiry;
use super::negotiate::{Format, response_format};
use super::object::{Key, Object, type_meta};
use super::query::{ListQuery, Position, Token};
use super::resource::Resource;
use super::router::{ApiRequest, stream};
use super::selector::Scope;
use super::status::Status;
use super::store::{Page, Store};
use super::table::{Include, table};
use super::watching::Watch;

/// Serves a get.
pub(crate) fn get(request: &ApiRequest<'_>) -> Result<Response<Body>, Status> {
    let key = key_of(request);
    let object = request.shared.registry().find(request.path.resource, &key)?;
    answer_object(request, StatusCode::OK, &object)
}

/// The object that a request names.
pub(crate) fn key_of(request: &ApiRequest<'_>) -> Key {
    let path = &request.path;
    Key::new(path.namespace.as_deref().unwrap_or_default(), path.name.as_deref().unwrap_or_default())
}

/// An object in the form that the client accepts.
pub(crate) fn answer_object(
    request: &ApiRequest<'_>,
    code: StatusCode,
    object: &Object,
) -> Result<Response<Body>, Status> {
    let mut body = Vec::new();
    match response_format(request.header(&ACCEPT))? {
        Format::Json => object.write_json(&mut body),
        Format::Table => {
            let metadata = json!({ "resourceVersion": object.revision().to_string() });
            let include = Include::parse(request.query.get("includeObject"));
            let table = table(object.resource(), [object], metadata, include, Timestamp::now());
            body = table.to_string().into_bytes();
        }
    }
    Ok(request.answer(code, body))
}

/// Serves a page of a list.
pub(crate) fn list(request: &ApiRequest<'_>) -> Result<Response<Body>, Status> {
    let format = response_format(request.header(&ACCEPT))?;
    let resource = request.path.resource;
    let scope = request.scope()?;
    let query = request.query.list()?;
    let (page, metadata) = page(&request.shared.registry().store, resource, &scope, &query)?;
    let body = match format {
        Format::Json => list_json(resource, &page, &metadata),
        Format::Table => {
            let include = Include::parse(request.query.get("includeObject"));
            let objects = page.items.iter().map(AsRef::as_ref);
            table(resource, objects, metadata, include, Timestamp::now()).to_string().into_bytes()
        }
    };
    Ok(request.answer(StatusCode::OK, body))
}

/// The objects that the query selects, and the metadata of the list.
fn page(
    store: &Store,
    resource: Resource,
    scope: &Scope,
    query: &ListQuery,
) -> Result<(Page, Value), Status> {
    let (revision, after) = match &query.from {
        Position::Latest => (store.revision(), None),
        Position::NotOlderThan(version) | Position::Exactly(version) if *version > store.revision() => {
            return Err(Status::too_large_resource_version(*version, store.revision()));
        }
        Position::NotOlderThan(_) => (store.revision(), None),
        Position::Exactly(version) => {
            let too_old = |_| Status::expired("The resourceVersion for the provided list is too old.");
            store.check_not_compacted(*version).map_err(too_old)?;
            (*version, None)
        }
        Position::Continue(token) => (continued(store, token)?, Some(token.after())),
    };
    let limit = query.limit.unwrap_or(usize::MAX);
    let page = store.page(resource, scope, revision, after.as_ref(), limit);
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    if let Some(last) = &page.last {
        metadata.insert("continue".to_owned(), Token::new(Some(revision), last).encode().into());
        if !scope.is_selective() {
            metadata.insert("remainingItemCount".to_owned(), page.remaining.into());
        }
    }
    Ok((page, metadata.into()))
}

/// The revision of a continued list.
fn continued(store: &Store, token: &Token) -> Result<u64, Status> {
    let Some(revision) = token.revision else { return Ok(store.revision()) };
    store.check_not_compacted(revision).map(|()| revision).map_err(|_| {
        let mut status = Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter, or use the continue token in this response to retrieve the \
             remainder of the results. Continuing with the provided token results in an inconsistent list - \
             objects that were created, modified, or deleted between the time the first chunk was returned and \
             now may show up in the list.",
        );
        status.continue_token = Some(Token::new(None, &token.after()).encode());
        status
    })
}

/// A list, made of the JSON of its objects.
pub(crate) fn list_json(resource: Resource, page: &Page, metadata: &Value) -> Vec<u8> {
    let bytes: usize = page.items.iter().map(|object| object.item_json().len() + 1).sum();
    let mut body = Vec::with_capacity(bytes + 256);
    let kind = format!("{}List", resource.kind());
    body.extend_from_slice(type_meta(resource, &kind).as_bytes());
    body.extend_from_slice(format!(r#","metadata":{metadata},"items":["#).as_bytes());
    for (i, object) in page.items.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(object.item_json());
    }
    body.extend_from_slice(b"]}");
    body
}

/// Serves a watch until it ends.
pub(crate) fn watch(request: &ApiRequest<'_>) -> Result<Response<Body>, Status> {
    let format = response_format(request.header(&ACCEPT))?;
    let (shared, resource) = (request.shared, request.path.resource);
    let scope = request.scope()?;
    let query = request.query.watch(shared.config.watch_timeout)?;
    let include = Include::parse(request.query.get("includeObject"));
    let watch = Watch::start(shared, resource, scope, &query, format, include);
    if let (Some(status), Expiry::Status) = (watch.expired(), shared.faults.expiry()) {
        return Err(status.clone());
    }
    let (pipe, body) = Pipe::new(&shared.faults);
    tokio::spawn(watch.serve(pipe));
    Ok(stream(body))
}
