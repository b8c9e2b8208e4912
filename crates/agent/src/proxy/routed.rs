//! Follows the addresses that belong to the node by a route, while nodePorts are served on all addresses of a
//! family. Runs on the controller's thread.

use std::net::IpAddr;
use std::time::Instant;

use sluice_capture::tproxy::LocalRoutes;
use sluice_table::Writer;
use tracing::{debug, warn};

/// Follows these addresses while they matter.
#[derive(Debug, Default)]
pub(super) struct Routed {
    routes: Option<LocalRoutes>,
    /// Whether the last attempt to start following them failed.
    is_failing: bool,
    /// Whether there are more addresses than can be served.
    has_left_out: bool,
}

impl Routed {
    /// Gives the writer the current addresses. Returns those that are gone.
    pub(super) fn follow(&mut self, writer: &mut Writer, now: Instant) -> Vec<IpAddr> {
        if !writer.goes_by_routes() {
            if self.routes.take().is_some() {
                writer.set_routed([]);
            }
            return Vec::new();
        }
        if self.routes.is_none() {
            match LocalRoutes::watch() {
                Ok(routes) => (self.routes, self.is_failing) = (Some(routes), false),
                Err(error) if std::mem::replace(&mut self.is_failing, true) => debug!("{error}"),
                Err(error) => warn!(
                    "no nodePorts on addresses that only a route makes the node's: {error}; it is tried again"
                ),
            }
        }
        let Some(addresses) = self.routes.as_mut().and_then(|routes| routes.changed(now)) else {
            return Vec::new();
        };
        let gone = writer.set_routed(addresses);
        let has_left_out = writer.routed_left_out() > 0;
        if has_left_out && !self.has_left_out {
            warn!("many addresses are this node's by a route alone: only the first ones have nodePorts");
        }
        self.has_left_out = has_left_out;
        gone
    }
}
