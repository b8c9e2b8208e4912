//! Create, update, patch and delete.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;
use super::object::{metadata_mut, text};
use super::patch::{self, PatchKind};
use super::reads::{answer_object, key_of, list_json};
use super::registry::{Deletion, Part, Preconditions};
use super::router::{ApiRequest, parse_json};
use super::status::{Status, deleted};
use super::store::Page;

/// Serves a create.
pub(crate) fn create(request: &ApiRequest<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
    let mut value = object(request, body)?;
    let resource = request.path.resource;
    if !resource.is_stored() {
        metadata_mut(&mut value).entry("namespace").or_insert(json!(request.path.namespace));
        return Ok(request.answer(StatusCode::CREATED, value.to_string()));
    }
    let namespace = request.path.namespace.as_deref();
    let object = request.shared.write(|registry| registry.create(resource, namespace, value))?;
    answer_object(request, StatusCode::CREATED, &object)
}

/// Serves an update of an object or its status.
pub(crate) fn update(request: &ApiRequest<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
    let value = object(request, body)?;
    let (resource, key) = (request.path.resource, key_of(request));
    let object = request.shared.write(|registry| registry.update(resource, &key, part(request), value))?;
    answer_object(request, StatusCode::OK, &object)
}

/// Serves a patch.
pub(crate) fn patch(request: &ApiRequest<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
    let kind = PatchKind::from_media_type(request.media_type())
        .ok_or_else(|| Status::unsupported_media_type(PatchKind::MEDIA_TYPES))?;
    let patch = parse_json(body)?;
    let (resource, key) = (request.path.resource, key_of(request));
    let object = request.shared.write(|registry| {
        let mut value = registry.find(resource, &key)?.full_value();
        patch::apply(resource, &mut value, kind, &patch)?;
        registry.update(resource, &key, part(request), value)
    })?;
    answer_object(request, StatusCode::OK, &object)
}

/// Serves a delete.
pub(crate) fn delete(request: &ApiRequest<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
    let preconditions = preconditions(body)?;
    let (resource, key) = (request.path.resource, key_of(request));
    match request.shared.write(|registry| registry.delete(resource, &key, &preconditions))? {
        Deletion::Gone(object) => {
            let status = deleted(resource, &key.name, object.uid());
            Ok(request.answer(StatusCode::OK, status.to_string()))
        }
        Deletion::Pending(object) => answer_object(request, StatusCode::OK, &object),
    }
}

/// Serves a delete of all matching objects.
pub(crate) fn delete_collection(request: &ApiRequest<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
    let preconditions = preconditions(body)?;
    let resource = request.path.resource;
    let scope = request.scope()?;
    let (page, revision) = request.shared.write(|registry| {
        let store = &registry.store;
        let page = store.page(resource, &scope, store.revision(), None, usize::MAX);
        for object in &page.items {
            registry.delete(resource, &object.key(), &preconditions)?;
        }
        Ok::<(Page, u64), Status>((page, registry.store.revision()))
    })?;
    let metadata = json!({ "resourceVersion": revision.to_string() });
    Ok(request.answer(StatusCode::OK, list_json(resource, &page, &metadata)))
}

fn part(request: &ApiRequest<'_>) -> Part {
    if request.path.subresource.is_some() { Part::Status } else { Part::Main }
}

fn object(request: &ApiRequest<'_>, body: &[u8]) -> Result<Value, Status> {
    if request.media_type() != "application/json" {
        return Err(Status::unsupported_media_type("application/json"));
    }
    parse_json(body)
}

/// The preconditions in the DeleteOptions. The other options have no effect here.
fn preconditions(body: &[u8]) -> Result<Preconditions, Status> {
    let options = parse_json(body)?;
    if options["dryRun"].as_array().is_some_and(|stages| !stages.is_empty()) {
        return Err(Status::bad_request("dryRun is not supported by this server: leave it out"));
    }
    let precondition = |field: &str| {
        let value = text(&options, &format!("/preconditions/{field}"));
        (!value.is_empty()).then(|| value.to_owned())
    };
    Ok(Preconditions { uid: precondition("uid"), resource_version: precondition("resourceVersion") })
}
