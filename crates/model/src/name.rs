//! Names of objects and of service ports. Cheap to clone: the strings are shared.

use std::fmt;
use std::sync::Arc;

use crate::Protocol;

/// `namespace/name` of a namespaced object (kube-proxy: `types.NamespacedName`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of one Service (kube-proxy: `ServicePortName`): the unit that connections are
/// balanced over and that numbers are kept for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name; empty where the Service has a single unnamed port.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
}

/// `namespace/name:port`, or `namespace/name` for an unnamed port, as kube-proxy prints it.
impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_port_name_prints_like_kube_proxy() {
        let named = |port: &str| ServicePortName {
            service: ObjectName::new("default", "web"),
            port: port.into(),
            protocol: Protocol::Tcp,
        };
        assert_eq!(named("http").to_string(), "default/web:http");
        assert_eq!(named("").to_string(), "default/web");
    }
}
