//! The addresses that are the node's by a route, followed while nodePorts are served on all addresses of a family. Runs on the
//! controller's thread.

use std::net::IpAddr;
use std::time::Instant;

use sluice_capture::tproxy::LocalRoutes;
use sluice_table::Writer;
use tracing::{debug, warn};

/// What follows them, while they matter.
#[derive(Debug, Default)]
pub(super) struct Routed {
    routes: Option<LocalRoutes>,
    /// Whether the last attempt to begin has failed.
    is_failing: bool,
}

impl Routed {
    /// Has the writer go by those that there are now. Returns those that are gone.
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
        let changed = self.routes.as_mut().and_then(|routes| routes.changed(now));
        changed.map_or_else(Vec::new, |addresses| writer.set_routed(addresses))
    }
}
