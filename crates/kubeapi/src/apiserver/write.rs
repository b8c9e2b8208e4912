//! The one thing that is written: Events (events.k8s.io/v1). Whoever calls decides what to do about a failure; nothing is
//! tried again here, but with other credentials.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::Value;
use sluice_model::ObjectName;

use super::health::Health;
use super::reason::{Failure, Reason};
use super::transport::{Transport, Write};

/// Writes Events, with the apiservers and the credentials of the source that it comes from.
#[derive(Debug, Clone)]
pub struct EventWriter {
    transport: Arc<Transport>,
    health: Arc<Health>,
}

/// Why an Event was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// 403: nobody has allowed it, or the namespace has as many Events as its quota allows.
    #[error(
        "the apiserver does not allow to write Events there: apply the RBAC of deploy/ (create and patch of \
         events.k8s.io), or raise the namespace's quota: {0}"
    )]
    Forbidden(String),
    /// 429: not now. When again, if it says so.
    #[error("the apiserver is busy")]
    Busy(Option<Duration>),
    /// 404: what is to be changed is there no more, or its namespace is not, or goes.
    #[error("what it is about is gone")]
    Gone,
    /// Another 4xx: it is never going to take this one.
    #[error("{0}")]
    Refused(String),
    /// Anything else, with what to do about it.
    #[error("{0}")]
    Other(String),
}

impl EventWriter {
    pub(super) fn new(transport: Arc<Transport>, health: Arc<Health>) -> Self {
        Self { transport, health }
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
        let on_answer = |outcome, took| self.health.answered(outcome, took);
        self.transport.write(&write, on_answer).await.map_err(|Failure { reason, server, retry_after }| {
            let said = |reason: Reason| format!("the apiserver {server}: {reason}");
            match reason {
                Reason::Status(403, message) => EventError::Forbidden(message),
                Reason::Status(404, _) => EventError::Gone,
                Reason::Status(400..500, _) => EventError::Refused(said(reason)),
                Reason::Busy => EventError::Busy(retry_after),
                _ => EventError::Other(said(reason)),
            }
        })
    }
}

fn path(namespace: &str, name: Option<&str>) -> String {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    name.map_or(path.clone(), |name| format!("{path}/{name}"))
}
