//! The one thing that is written: Events (events.k8s.io/v1). Whoever calls decides what to do about a failure; nothing is
//! tried again here, but with other credentials.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::Value;
use sluice_model::ObjectName;

use super::reason::Reason;
use super::transport::{Transport, Write};

/// Writes Events, with the apiservers and the credentials of the source that it comes from.
#[derive(Debug, Clone)]
pub struct EventWriter(Arc<Transport>);

/// Why an Event was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// 403: nobody has allowed it.
    #[error(
        "the apiserver does not allow to write Events: apply the RBAC of deploy/ (create and patch of \
         events.k8s.io)"
    )]
    Forbidden,
    /// 429: not now. When again, if it says so.
    #[error("the apiserver is busy")]
    Busy(Option<Duration>),
    /// 404: what is to be changed is there no more, or its namespace is not.
    #[error("what it is about is gone")]
    Gone,
    /// Anything else, with what to do about it.
    #[error("{0}")]
    Other(String),
}

impl EventWriter {
    pub(super) fn new(transport: Arc<Transport>) -> Self {
        Self(transport)
    }

    /// Creates an Event. It has a namespace and a name.
    ///
    /// # Errors
    /// It is not there.
    pub async fn create(&self, event: &Value) -> Result<(), EventError> {
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
        self.write(Method::POST, path(namespace, None), "application/json", event).await
    }

    /// Changes a part of an Event (a JSON merge patch).
    ///
    /// # Errors
    /// It is as it was.
    pub async fn patch(&self, event: &ObjectName, part: &Value) -> Result<(), EventError> {
        let path = path(&event.namespace, Some(&event.name));
        self.write(Method::PATCH, path, "application/merge-patch+json", part).await
    }

    async fn write(
        &self,
        method: Method,
        path: String,
        kind: &'static str,
        body: &Value,
    ) -> Result<(), EventError> {
        let write = Write { method, path, kind, body: Bytes::from(body.to_string()) };
        self.0.write(&write).await.map_err(|failure| match failure.reason {
            Reason::Status(403, _) => EventError::Forbidden,
            Reason::Status(404, _) => EventError::Gone,
            Reason::Busy => EventError::Busy(failure.retry_after),
            reason => EventError::Other(format!("the apiserver {}: {reason}", failure.server)),
        })
    }
}

fn path(namespace: &str, name: Option<&str>) -> String {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    name.map_or(path.clone(), |name| format!("{path}/{name}"))
}
