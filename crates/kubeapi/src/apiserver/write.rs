//! Writes Events (events.k8s.io/v1), the only objects that are written. Failures are left to the caller: the
//! only retry here is with other credentials.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::Value;
use sluice_model::ObjectName;

use super::health::Health;
use super::reason::{Failure, Reason};
use super::transport::{Transport, Write};

/// Writes Events, with the apiservers and credentials of its source.
#[derive(Debug, Clone)]
pub struct EventWriter {
    transport: Arc<Transport>,
    health: Arc<Health>,
}

/// Why an Event was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// 403: it is not allowed, or the namespace has reached its quota of Events.
    #[error(
        "the apiserver does not allow to write Events there: apply the RBAC of deploy/ (create and patch of \
         events.k8s.io), or raise the namespace's quota: {0}"
    )]
    Forbidden(String),
    /// 429: too busy; with the delay, if the apiserver names one.
    #[error("the apiserver is busy")]
    Busy(Option<Duration>),
    /// 404: the Event to change no longer exists, or its namespace is gone or terminating.
    #[error("what it is about is gone")]
    Gone,
    /// Another 4xx: the apiserver will never accept this Event.
    #[error("{0}")]
    Refused(String),
    /// Any other failure, with advice.
    #[error("{0}")]
    Other(String),
}

impl EventWriter {
    pub(super) fn new(transport: Arc<Transport>, health: Arc<Health>) -> Self {
        Self { transport, health }
    }

    /// Creates an Event, which must have a namespace and a name.
    ///
    /// # Errors
    /// It was not created.
    pub async fn create(&self, event: &Value) -> Result<(), EventError> {
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
        self.write(Method::POST, path(namespace, None), "application/json", event).await
    }

    /// Changes a part of an Event (a JSON merge patch).
    ///
    /// # Errors
    /// It was not changed.
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
