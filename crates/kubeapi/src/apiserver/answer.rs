//! Responses: the bytes of the body, and the meaning of an error.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use super::decode;
use super::reason::{self, Failure, Reason};
use super::resource::Resource;

/// The maximum number of bytes read of an error response.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The maximum delay: an apiserver that asks for a longer one is asked again after this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    server: String,
    index: usize,
}

impl Answer {
    pub(super) fn new(response: Response, server: String, index: usize) -> Self {
        Self { response, server, index }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self, limit: Duration) -> Result<Option<Bytes>, Failure> {
        match timeout(limit, self.response.chunk()).await {
            Err(_) => Err(self.failure(Reason::Silent(limit))),
            Ok(Err(error)) => Err(self.failure(reason::of_transport(&error))),
            Ok(Ok(bytes)) => Ok(bytes),
        }
    }

    pub(super) fn failure(&self, reason: Reason) -> Failure {
        Failure { reason, server: self.server.clone(), retry_after: None }
    }

    /// The content type, if it is one that no apiserver sends: proxies answer with pages of their own.
    pub(super) fn foreign_type(&self) -> Option<String> {
        let said = self.response.headers().get(CONTENT_TYPE)?.to_str().unwrap_or_default();
        (!said.starts_with("application/json"))
            .then(|| format!("an answer of type {}", reason::one_line(said)))
    }

    /// The index of the apiserver that sends it: for `Transport::give_up`.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The meaning of a response with a status other than 200.
    pub(super) async fn into_failure(mut self, resource: Option<Resource>, limit: Duration) -> Failure {
        let status = self.response.status();
        if status.is_redirection() {
            let location = self.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            return self.failure(elsewhere(status.as_u16(), location));
        }
        let header = self.response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        // Apiservers do not send the other form, a date.
        let header = header.and_then(|text| text.trim().parse::<u32>().ok());
        let mut body = Vec::new();
        while body.len() < MAX_ERROR_BYTES
            && let Ok(Some(bytes)) = self.chunk(limit).await
        {
            body.extend_from_slice(&bytes);
        }
        let said: decode::Status = serde_json::from_slice(&body).unwrap_or_default();
        let retry_after = header.or_else(|| said.details.as_ref().and_then(|details| details.retry_after));
        let reason = match (resource, status) {
            // A namespace that is terminating counts as gone.
            (None, StatusCode::FORBIDDEN) if said.is_of_terminating_namespace() => {
                Reason::Status(404, String::new())
            }
            (None, StatusCode::FORBIDDEN) => Reason::Status(403, reason::one_line(&said.message)),
            (None, status) => of_code(status.as_u16(), &said.message),
            (Some(resource), status) => of_status(resource, status.as_u16(), &said.message),
        };
        let mut failure = self.failure(reason);
        failure.retry_after = seconds(retry_after);
        failure
    }
}

/// The meaning of a redirect. No apiserver redirects these requests: a login page does, or a balancer that
/// requires HTTPS.
fn elsewhere(status: u16, location: Option<&str>) -> Reason {
    let to = location.map_or_else(String::new, |location| format!(" to {}", reason::one_line(location)));
    Reason::NotUnderstood(format!("a redirect ({status}){to}, which is not followed"))
}

pub(super) fn seconds(retry_after: Option<u32>) -> Option<Duration> {
    retry_after.map(|seconds| Duration::from_secs(seconds.into()).min(MAX_RETRY_AFTER))
}

/// The meaning of a status code in a response or an event.
pub(super) fn of_status(resource: Resource, code: u16, message: &str) -> Reason {
    match code {
        403 => Reason::Forbidden(resource),
        _ => of_code(code, message),
    }
}

/// The meaning of a status code for any resource.
fn of_code(code: u16, message: &str) -> Reason {
    match code {
        401 => Reason::Unauthorized,
        410 => Reason::Expired,
        429 => Reason::Busy,
        _ => Reason::Status(code, reason::one_line(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_says_where_to() {
        let said = elsewhere(302, Some("https://login.example.com/")).to_string();
        assert!(said.contains("302") && said.contains("https://login.example.com/"), "{said}");
        assert!(said.contains("check the address"), "{said}");
        assert!(elsewhere(301, None).to_string().contains("a redirect (301), which"));
    }
}
