//! The flows of a worker that use their client's address and port towards their endpoint.
//!
//! Sockets with the same address and port share it (`SO_REUSEADDR`), and the kernel tells them apart by the
//! endpoints that they are connected to. It cannot tell two sockets with the same endpoint apart: one would
//! get the other's replies. TPROXY always gives the datagrams of one client socket to the same worker, so
//! only the worker's own flows matter.

use std::collections::HashSet;
use std::net::SocketAddr;

/// A client's address and port as an endpoint sees them, and the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeptPort {
    pub(crate) client: SocketAddr,
    pub(crate) endpoint: SocketAddr,
}

/// All of them on one worker: at most as many as it has flows.
#[derive(Debug, Default)]
pub(crate) struct KeptPorts(HashSet<KeptPort, foldhash::fast::RandomState>);

impl KeptPorts {
    /// Whether a new flow can use it.
    pub(crate) fn is_free(&self, port: KeptPort) -> bool {
        !self.0.contains(&port)
    }

    /// Records that a flow was opened, with the port that it keeps, if any.
    pub(crate) fn opened(&mut self, port: Option<KeptPort>) {
        self.0.extend(port);
    }

    /// Records that such a flow has ended.
    pub(crate) fn ended(&mut self, port: Option<KeptPort>) {
        if let Some(port) = port {
            self.0.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kept_once_towards_each_endpoint() {
        let [client, other_client, endpoint, other_endpoint] =
            ["10.244.1.10:5000", "10.244.1.11:5000", "10.244.2.10:53", "10.244.2.11:53"]
                .map(|address| address.parse().unwrap());
        let mut ports = KeptPorts::default();
        let port = KeptPort { client, endpoint };
        assert!(ports.is_free(port));
        ports.opened(Some(port));
        ports.opened(None);
        assert!(!ports.is_free(port));
        assert!(ports.is_free(KeptPort { client: other_client, endpoint }));
        assert!(ports.is_free(KeptPort { client, endpoint: other_endpoint }));
        ports.ended(None);
        assert!(!ports.is_free(port), "that flow had another port");
        ports.ended(Some(port));
        assert!(ports.is_free(port) && ports.0.is_empty());
    }
}
