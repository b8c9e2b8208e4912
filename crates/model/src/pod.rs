//! Pods of the node and namespaces of the cluster, as far as they decide whose connections are left to the
//! relay.

use std::net::IpAddr;
use std::sync::Arc;

use crate::ObjectName;

/// A Pod object, reduced to where it is and what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// `status.podIPs`; none before its sandbox is known.
    pub addresses: Vec<IpAddr>,
    /// Annotation `sluice.dev/socket-mode`: whether its connections may be translated. `None` without the
    /// annotation: its namespace decides.
    pub at_sockets: Option<bool>,
}

/// A Namespace object, reduced to what it says of its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Like [`Pod::at_sockets`], for pods without the annotation.
    pub at_sockets: Option<bool>,
}
