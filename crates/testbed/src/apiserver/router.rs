//! Handles one request: faults and authentication, then the verb.

use std::io::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::body::{Body, Cut, Pipe};
use super::counters::Verb;
use super::discovery::{self, Document};
use super::faults::Failure;
use super::path::Path;
use super::query::Query;
use super::resource::Resource;
use super::selector::Scope;
use super::status::{Cause, Status};
use super::{Shared, reads, writes};

/// The maximum body size, as in a real apiserver.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// Responses to reads from this size on are compressed if the client accepts it
/// (`defaultGzipThresholdBytes`).
const COMPRESSED_FROM: usize = 128 * 1024;

const JSON: &str = "application/json";

/// Handles a request. `certificate`: the client has presented a valid one.
///
/// # Errors
/// The connection is to be closed without an answer.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    certificate: bool,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query());
    let path = Path::parse(parts.uri.path());
    let verb = path.as_ref().and_then(|path| path.verb(&parts.method, query.flag("watch")));
    let of = path.as_ref().and_then(|path| Some((verb?, path.resource)));
    shared.counters.send_modify(|counters| counters.count_request(of));
    if let Some(failure) = shared.faults.take_failure(of) {
        return fail(&shared, failure, of, path.as_ref()).await;
    }
    let authorization = header(&parts, &AUTHORIZATION);
    // Public paths need no credentials, but wrong credentials are refused everywhere.
    let is_anonymous = authorization.is_none() && !certificate;
    let is_let_in = is_anonymous && is_public(parts.uri.path());
    if !is_let_in && !shared.cluster.authentication.accepts(authorization, certificate) {
        return Ok(refuse(&shared, &Status::unauthorized()));
    }
    let answer = match (path, verb) {
        (Some(path), Some(verb)) => {
            let request = ApiRequest { shared: &shared, path, verb, query, parts };
            request.serve(body).await
        }
        (Some(_), None) => Err(Status::method_not_allowed()),
        (None, _) => describe(&shared, &parts),
    };
    Ok(answer.unwrap_or_else(|status| refuse(&shared, &status)))
}

/// A request for a resource.
pub(crate) struct ApiRequest<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) path: Path,
    pub(crate) verb: Verb,
    pub(crate) query: Query,
    parts: Parts,
}

impl ApiRequest<'_> {
    async fn serve(self, body: Incoming) -> Result<Response<Body>, Status> {
        if self
            .path
            .subresource
            .as_deref()
            .is_some_and(|name| name != "status" || !self.path.resource.info().status)
        {
            return Err(Status::no_such_path());
        }
        if self.query.get("dryRun").is_some() {
            return Err(Status::bad_request("dryRun is not supported by this server: leave it out"));
        }
        match self.verb {
            Verb::Get => reads::get(&self),
            Verb::List => reads::list(&self),
            Verb::Watch => reads::watch(&self),
            Verb::Create => writes::create(&self, &self.read(body).await?),
            Verb::Update => writes::update(&self, &self.read(body).await?),
            Verb::Patch => writes::patch(&self, &self.read(body).await?),
            Verb::Delete => writes::delete(&self, &self.read(body).await?),
            Verb::DeleteCollection => writes::delete_collection(&self, &self.read(body).await?),
        }
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, Status> {
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        body.map(|body| body.to_bytes()).map_err(|_| Status::too_large())
    }

    /// The part of the resource that the request selects.
    pub(crate) fn scope(&self) -> Result<Scope, Status> {
        let resource = self.path.resource;
        let fields = match resource {
            Resource::Services if !self.shared.config.service_fields => &[],
            _ => resource.info().fields,
        };
        self.query.scope(resource, fields, self.path.namespace.as_deref())
    }

    /// A header as a string.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        header(&self.parts, name)
    }

    /// The media type of the body, without parameters.
    pub(crate) fn media_type(&self) -> &str {
        let media_type = self.header(&CONTENT_TYPE).unwrap_or(JSON);
        media_type.split(';').next().unwrap_or(JSON).trim()
    }

    pub(crate) fn answer(&self, code: StatusCode, json: impl Into<Bytes>) -> Response<Body> {
        let json = json.into();
        let is_wanted = matches!(self.verb, Verb::Get | Verb::List)
            && json.len() >= COMPRESSED_FROM
            && self.header(&ACCEPT_ENCODING).is_some_and(accepts_gzip);
        let Some(compressed) = is_wanted.then(|| gzip(&json).ok()).flatten() else {
            return respond(self.shared, code, JSON, json);
        };
        self.shared.counters.send_modify(|counters| counters.compressed += 1);
        let mut response = respond(self.shared, code, JSON, compressed);
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        response
    }
}

fn accepts_gzip(encodings: &str) -> bool {
    encodings.split(',').any(|encoding| encoding.split(';').next().is_some_and(|name| name.trim() == "gzip"))
}

/// Compresses fast, as a real apiserver does.
fn gzip(bytes: &[u8]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

fn header<'a>(parts: &'a Parts, name: &HeaderName) -> Option<&'a str> {
    parts.headers.get(name)?.to_str().ok()
}

/// Whether a path is public, as for `system:public-info-viewer`.
fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/livez" | "/readyz" | "/version")
}

fn describe(shared: &Arc<Shared>, parts: &Parts) -> Result<Response<Body>, Status> {
    if parts.method != "GET" {
        return Err(Status::no_such_path());
    }
    let (media_type, body) = match discovery::document(parts.uri.path(), shared.address) {
        Some(Document::Json(json)) => (JSON, Bytes::from(json.to_string())),
        Some(Document::Text(text)) => ("text/plain; charset=utf-8", Bytes::from_static(text.as_bytes())),
        Some(Document::OpenApiV2) => (discovery::OPENAPI_V2_TYPE, Bytes::from_static(discovery::OPENAPI_V2)),
        None => return Err(Status::no_such_path()),
    };
    Ok(respond(shared, StatusCode::OK, media_type, body))
}

async fn fail(
    shared: &Arc<Shared>,
    failure: Failure,
    of: Option<(Verb, Resource)>,
    path: Option<&Path>,
) -> Result<Response<Body>, Cut> {
    let status = match failure {
        Failure::Unauthorized => Status::unauthorized(),
        Failure::Forbidden => forbidden(of, path),
        Failure::TooManyRequests { retry_after } => {
            let message = "the server has received too many requests and has asked us to try again later";
            let mut status = Status::new(429, "TooManyRequests", message);
            status.retry_after = Some(retry_after);
            status
        }
        Failure::Expired => Status::expired("The provided continue parameter is too old"),
        Failure::Invalid => Status::invalid("Event", "events.k8s.io", "a", &[Cause::required("reason", "")]),
        Failure::InternalError => {
            Status::new(500, "InternalError", "Internal error occurred: etcdserver: no leader")
        }
        Failure::Unavailable => {
            Status::new(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        }
        Failure::Garbage => {
            let page = Bytes::from_static(b"<html><body>Please log in</body></html>");
            return Ok(respond(shared, StatusCode::OK, "text/html", page));
        }
        Failure::Disconnect => return Err(Cut),
        Failure::Hang => return std::future::pending().await,
    };
    Ok(refuse(shared, &status))
}

/// The message is that of RBAC.
fn forbidden(of: Option<(Verb, Resource)>, path: Option<&Path>) -> Status {
    let user = "system:serviceaccount:kube-system:sluice";
    let Some((verb, resource)) = of else {
        return Status::new(403, "Forbidden", format!("forbidden: User {user:?} cannot get this path"));
    };
    let (info, namespace) = (resource.info(), path.and_then(|path| path.namespace.as_deref()));
    let place = match namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let name = path.and_then(|path| path.name.as_deref());
    let object = name.map(|name| format!(" {name:?}")).unwrap_or_default();
    let message = format!(
        "{}{object} is forbidden: User {user:?} cannot {verb} resource {:?} in API group {:?} {place}",
        resource.qualified(),
        info.plural,
        info.group,
    );
    let mut status = Status::new(403, "Forbidden", message);
    status.details = serde_json::json!({ "name": name, "group": info.group, "kind": info.plural });
    if name.is_none()
        && let Some(details) = status.details.as_object_mut()
    {
        details.remove("name");
    }
    status
}

pub(crate) fn refuse(shared: &Arc<Shared>, status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(shared, code, JSON, status.to_json().to_string().into());
    if let Some(seconds) = status.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A whole body, or a slow one if bodies are throttled.
fn respond(shared: &Arc<Shared>, code: StatusCode, media_type: &'static str, body: Bytes) -> Response<Body> {
    if shared.faults.throttle_now().is_none() {
        return response(code, media_type, Body::Whole(Some(body)));
    }
    let (pipe, slow) = Pipe::new(&shared.faults);
    tokio::spawn(async move { pipe.send(body).await });
    response(code, media_type, slow)
}

pub(crate) fn stream(body: Body) -> Response<Body> {
    response(StatusCode::OK, JSON, body)
}

fn response(code: StatusCode, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Parses a JSON body; an empty one is null.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<Value, Status> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Status::bad_request(format!("the object provided is unrecognized: {error}")))
}
