//! What comes back of a request: the bytes of its body, and what an answer that is an error means.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use super::decode;
use super::reason::{self, Failure, Reason};
use super::resource::Resource;

/// What of an answer that is an error is read.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// An apiserver that asks to be left alone for longer is asked again after this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// A body that arrives.
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

    /// What it says it is, where that is nothing an apiserver sends: proxies answer with a page of their own.
    pub(super) fn foreign_type(&self) -> Option<String> {
        let said = self.response.headers().get(CONTENT_TYPE)?.to_str().unwrap_or_default();
        (!said.starts_with("application/json"))
            .then(|| format!("an answer of type {}", reason::one_line(said)))
    }

    /// Which apiserver sends it: for `Transport::give_up`.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// What an answer with another status than 200 means.
    pub(super) async fn into_failure(mut self, resource: Option<Resource>, limit: Duration) -> Failure {
        let status = self.response.status();
        if status.is_redirection() {
            let location = self.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            return self.failure(elsewhere(status.as_u16(), location));
        }
        let header = self.response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        // The other form, a date, is not what apiservers send.
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
            // What is in a namespace that goes is as good as gone.
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

/// What a redirect means. No apiserver sends one for what is asked here: a page to log in at does, or a balancer that wants
/// HTTPS.
fn elsewhere(status: u16, location: Option<&str>) -> Reason {
    let to = location.map_or_else(String::new, |location| format!(" to {}", reason::one_line(location)));
    Reason::NotUnderstood(format!("a redirect ({status}){to}, which is not followed"))
}

pub(super) fn seconds(retry_after: Option<u32>) -> Option<Duration> {
    retry_after.map(|seconds| Duration::from_secs(seconds.into()).min(MAX_RETRY_AFTER))
}

/// What a status code means, of an answer or of an event.
pub(super) fn of_status(resource: Resource, code: u16, message: &str) -> Reason {
    match code {
        403 => Reason::Forbidden(resource),
        _ => of_code(code, message),
    }
}

/// The same, whatever it was about.
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
